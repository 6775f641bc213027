"""The decoder: embedding, blocks, norm, head. GPT-2, Llama, Mistral, Qwen and the modern stack are its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.config import ModelConfig, UserError
from lit_llm.model.arithmetic import compute_dtype
from lit_llm.model.attention import GATE_WIDTH, Attention, AttentionContext, KVCache, attention_mask
from lit_llm.model.checkpointing import run_checkpointed
from lit_llm.model.feedforward import FeedForward
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.normalization import make_norm
from lit_llm.model.position import RotaryTables, SinusoidalTable


class Block(nn.Module):
    """Attention and feed-forward, each with its norm and its residual sum."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.pre_norm = config.norm_placement == "pre"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.checkpointing = "none"  # or "full" or "selective"; see `run_checkpointed`

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Args: x: stream [b, t, hidden]. Returns: the stream."""
        return run_checkpointed(self.checkpointing, self._compute, x, context)

    def _compute(self, x: Tensor, context: AttentionContext) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(_narrow(self.attention_norm(x)), context))
            return x + self.dropout(self.feedforward(_narrow(self.feedforward_norm(x))))
        x = self.attention_norm(x + self.dropout(self.attention(_narrow(x), context)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(_narrow(x))))


def _narrow(x: Tensor) -> Tensor:
    """Under autocast, cast once what several projections read, instead of once for each of them."""
    return x.to(compute_dtype(x))


class TokenSmear(nn.Module):
    """Adds to each token's embedding a gated share of the one before it. Source: modded-nanogpt, nanochat."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(min(GATE_WIDTH, config.hidden_size), 1, bias=False)
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, positions: Tensor, cache: KVCache | None) -> Tensor:
        """Args: x: [b, t, hidden]; positions: [t] or [b, t], 0 at the first token of a document."""
        before = torch.zeros_like(x[:, :1])
        if cache is not None:
            if cache.previous_embedding is not None:
                before = cache.previous_embedding
            cache.previous_embedding = x[:, -1:]
        previous = torch.cat([before, x[:, :-1]], dim=1)
        gate = self.strength * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # [b, t, 1]
        return x + gate * (positions > 0).unsqueeze(-1) * previous


class Decoder(nn.Module):
    """A decoder-only transformer.

    Args:
        config: the architecture; `vocab_size` must be set.
        seed: seed of the initial weights. Each parameter draws from a stream of its own, named by the seed and the
            parameter, so the same weights come out for any device, strategy or order of construction.

    Raises:
        UserError: `config.vocab_size` is not set.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.tensor_parallel_size = 1  # ranks that share the heads; see `arrange`
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embedding: nn.Embedding | None = None
        self.sinusoids: SinusoidalTable | None = None
        self.rotary: RotaryTables | None = None
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        elif config.position == "sinusoidal":
            self.sinusoids = SinusoidalTable(config)
        elif config.position == "rope":
            self.rotary = RotaryTables(config)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.smear = TokenSmear(config) if config.token_smear else None
        # shares of the stream and of the embedding output that each block reads [layers]
        self.stream_share = nn.Parameter(torch.ones(config.num_layers)) if config.x0_shortcut else None
        self.shortcut_share = nn.Parameter(torch.zeros(config.num_layers)) if config.x0_shortcut else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        # the 2017 block ends in a norm of its own
        self.final_norm = make_norm(config) if config.norm_placement == "pre" else None
        self.head = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.tie()
        initialize_weights(self, config, seed)

    def tie(self) -> None:
        """Make the head's weight the embedding's, where configured; again after memory has been given to both."""
        if self.config.tie_word_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        tokens: Tensor,
        *,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        head: Callable[[Tensor, nn.Linear], Any] | None = None,
    ) -> Any:
        """Read tokens; return logits, or whatever `head` makes of the last hidden states.

        Args:
            tokens: ids [b, t].
            document_ids: document of each token [b, t]: attention, positions and the token smear stay inside one, so
                several texts can share a row. Left padding is a document of its own.
            cache: tokens already read; extended by these. Not together with `document_ids`.
            head: called with the hidden states [b, t, hidden] and the output layer instead of computing logits, so
                that a loss need never hold all of them and runs inside the model's forward, where sharded weights are
                whole.

        Returns:
            Logits [b, t, vocab_size], in the dtype of the arithmetic; or what `head` returns.

        Raises:
            UserError: the text is longer than `max_position_embeddings` or than the cache.
        """
        t = tokens.size(1)
        self._check_length(t, cache)
        positions = self._positions(t, document_ids, cache, tokens.device)
        x = self._embed(tokens, positions, cache)
        mask, is_causal = attention_mask(
            t, window=self.config.sliding_window, document_ids=document_ids, cache=cache, device=tokens.device
        )
        rotary = self.rotary(positions, compute_dtype(x)) if self.rotary is not None else None
        context = AttentionContext(tokens, mask, is_causal, rotary, cache)
        x0 = x
        for layer, block in enumerate(self.blocks):
            if self.stream_share is not None and self.shortcut_share is not None:
                x = self.stream_share[layer] * x + self.shortcut_share[layer] * x0
            x = block(x, context)
        if cache is not None:
            cache.advance(t)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if head is not None:
            return head(x, self.head)
        return self.logits(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token [..., vocab_size] from normed hidden states [..., hidden]."""
        logits: Tensor = self.head(hidden)[..., : self.config.vocab_size]
        cap = self.config.logits_softcap
        if cap is not None:
            logits = cap * torch.tanh(logits.float() / cap)
        return logits

    def _check_length(self, t: int, cache: KVCache | None) -> None:
        total = t + (cache.length if cache is not None else 0)
        limit = self.config.max_position_embeddings
        if total > limit:
            raise UserError(f"a text of {total} tokens is longer than the model's context of {limit} tokens")
        if cache is not None and total > cache.max_length:
            raise UserError(f"a text of {total} tokens is longer than the cache of {cache.max_length} tokens")

    def _positions(self, t: int, document_ids: Tensor | None, cache: KVCache | None, device: torch.device) -> Tensor:
        """Distance of each token from the start of its document: [t], or [b, t] where rows differ."""
        past = cache.length if cache is not None else 0
        index = torch.arange(past, past + t, device=device)
        if document_ids is not None:
            if cache is not None:
                raise ValueError("document_ids and a cache cannot be used together")
            begins = torch.ones_like(document_ids, dtype=torch.bool)
            begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
            return index - torch.where(begins, index, 0).cummax(dim=1).values
        if cache is not None and cache.starts is not None:
            return (index - cache.starts.unsqueeze(1)).clamp(min=0)
        return index

    def _embed(self, tokens: Tensor, positions: Tensor, cache: KVCache | None) -> Tensor:
        x = self.embedding(tokens)  # [b, t, hidden]
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.hidden_size)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        if self.sinusoids is not None:
            x = x + self.sinusoids(positions).to(x.dtype)
        x = self.dropout(x)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.smear is not None:
            x = self.smear(x, positions, cache)
        return x
