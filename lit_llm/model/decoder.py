"""The decoder: embedding, blocks, norm, head. GPT-2, Llama, Mistral, Qwen and the modern stack are its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import ModelConfig
from lit_llm.model.arithmetic import at_least_float32, compute_dtype
from lit_llm.model.attention import GATE_WIDTH, Attention, AttentionContext, what_is_seen
from lit_llm.model.cache import CacheStep, KVCache
from lit_llm.model.checkpointing import run_checkpointed
from lit_llm.model.feedforward import FeedForward
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.linear import Linear
from lit_llm.model.normalization import make_norm
from lit_llm.model.position import SinusoidalTable, rotary_tables, token_positions
from lit_llm.model.scores import token_scores

if TYPE_CHECKING:
    from lit_llm.model.context_parallel import ContextRanks
    from lit_llm.model.tensor_parallel import TensorRanks


class Block(nn.Module):
    """Attention and feed-forward, each with its norms and its residual sum; a part of a decoder, or by itself.

    Args:
        config: the architecture.
        layer: its number in a decoder, which decides its sliding window and its initial weights.
        seed: of the initial weights: those of this block in `Decoder(config, seed)`. None leaves them to the caller.
    """

    def __init__(self, config: ModelConfig, layer: int = 0, seed: int | None = 0) -> None:
        super().__init__()
        self.norm_placement = config.norm_placement
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer, seed=None)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)
        sandwich = config.norm_placement == "sandwich"
        self.attention_output_norm = make_norm(config) if sandwich else None
        self.feedforward_output_norm = make_norm(config) if sandwich else None
        self.dropout = nn.Dropout(config.dropout)
        self.checkpointing = "none"  # or "full" or "selective"; see `run_checkpointed`
        self.ranks: TensorRanks | None = None  # that share the products; see `arrange`
        if seed is not None:
            initialize_weights(self, config, seed, prefix=f"blocks.{layer}.")

    def forward(self, x: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Read the residual stream and add to it.

        Args:
            x: the stream [b, t, hidden].
            context: what a decoder shares among its blocks, or that of `attention.context`; None: one text per row,
                without a cache.

        Returns:
            The stream [b, t, hidden].
        """
        return run_checkpointed(self.checkpointing, self._compute, x, context)

    def _compute(self, x: Tensor, context: AttentionContext | None) -> Tensor:
        if self.norm_placement == "post":
            x = self.attention_norm(x + self.dropout(self._attend(x, context)))
            return self.feedforward_norm(x + self.dropout(self._feed(x, context)))
        if self.norm_placement == "sublayer":
            x = x + self.dropout(self.attention_norm(self._attend(x, context)))
            return x + self.dropout(self.feedforward_norm(self._feed(x, context)))
        x = x + self.dropout(_normed(self.attention_output_norm, self._attend(self.attention_norm(x), context)))
        return x + self.dropout(_normed(self.feedforward_output_norm, self._feed(self.feedforward_norm(x), context)))

    def _attend(self, x: Tensor, context: AttentionContext | None) -> Tensor:
        x = _narrow(x)
        if self.ranks is None:
            return self.attention(x, context)
        is_cut = context is not None and context.is_cut
        out = self.attention(self.ranks.enter(x, is_cut), context)
        return self.ranks.leave(out, self.attention.o_proj.bias, is_cut)

    def _feed(self, x: Tensor, context: AttentionContext | None) -> Tensor:
        x = _narrow(x)
        if self.ranks is None:
            return self.feedforward(x)
        is_cut = context is not None and context.is_cut
        out = self.feedforward(self.ranks.enter(x, is_cut))
        return self.ranks.leave(out, self.feedforward.down_proj.bias, is_cut)


def _normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _into_block(layer: int, x: Tensor, x0: Tensor, stream: Tensor | None, shortcut: Tensor | None) -> Tensor:
    if stream is None or shortcut is None:
        return x
    return stream[layer] * x + shortcut[layer] * x0


def _narrow(x: Tensor) -> Tensor:
    """Under autocast, cast once what several projections read, instead of once for each of them."""
    return x.to(compute_dtype(x))


class TokenSmear(nn.Module):
    """Add to each token's embedding a gated share of the previous token's. Source: modded-nanogpt, nanochat."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Linear(min(GATE_WIDTH, config.hidden_size), 1, bias=False)
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Smear x [b, t, hidden]; positions ([t] or [b, t]) are 0 where a document begins, and nothing is added."""
        previous = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        gate = self.strength * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # [b, t, 1]
        return x + gate * (positions > 0).unsqueeze(-1) * previous


class Decoder(nn.Module):
    """A decoder-only transformer.

    Args:
        config: the architecture; `vocab_size` must be set.
        seed: seed of the initial weights. Each parameter draws from a stream of its own, named by the seed and the
            parameter, so the same weights come out for any device, strategy or order of construction. None leaves them
            to the caller.

    Raises:
        UserError: `config.vocab_size` is not set.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.ranks: TensorRanks | None = None  # that share heads and products; see `arrange`
        self.masks_attention = False  # documents and windows by a mask, whatever the device can do; see `arrange`
        self.text_ranks: ContextRanks | None = None  # that share each text without a cache; see `arrange`
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embedding: nn.Embedding | None = None
        self.sinusoids: SinusoidalTable | None = None
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        elif config.position == "sinusoidal":
            self.sinusoids = SinusoidalTable(config)
        self.rotary = self.windowed_rotary = rotary_tables(config, None)
        self.windows = [config.window_of(layer) for layer in range(config.num_layers)]
        if config.rope_theta_windowed is not None:
            self.windowed_rotary = rotary_tables(config, config.sliding_window)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.smear = TokenSmear(config) if config.token_smear else None
        # shares of the stream and of the embedding output that each block reads [layers]
        self.stream_share = nn.Parameter(torch.ones(config.num_layers)) if config.x0_shortcut else None
        self.shortcut_share = nn.Parameter(torch.zeros(config.num_layers)) if config.x0_shortcut else None
        self.blocks = nn.ModuleList(Block(config, layer, seed=None) for layer in range(config.num_layers))
        # the 2017 block ends in a norm of its own
        self.final_norm = make_norm(config) if config.norm_placement != "post" else None
        outputs = 1 if config.output == "score" else config.padded_vocab_size
        self.head = Linear(config.hidden_size, outputs, bias=False)
        # for a `head` callback alone: see `forward`
        self.value_head = Linear(config.hidden_size, 1, bias=False) if config.value_head else None
        self.tie()
        if seed is not None:
            initialize_weights(self, config, seed)

    @property
    def tensor_parallel_size(self) -> int:
        """The number of ranks that share the heads."""
        return 1 if self.ranks is None else self.ranks.size

    @property
    def stream_parts(self) -> int:
        """The number of parts that ranks cut the tokens of the stream into; it divides the length that they read."""
        parts = 1 if self.text_ranks is None else self.text_ranks.size
        return parts * (self.ranks.size if self.ranks is not None and self.ranks.splits_tokens else 1)

    def tie(self) -> None:
        """Let head and embedding share one weight where configured; call it again after both were given new memory."""
        if self.config.tie_word_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        tokens: Tensor,
        *,
        document_ids: Tensor | None = None,
        cache: KVCache | CacheStep | None = None,
        head: Callable[[Tensor, nn.Linear], Any] | None = None,
        head_reads_part: bool = False,
    ) -> Any:
        """Read tokens; return logits or scores, or whatever `head` makes of the last hidden states.

        Args:
            tokens: ids [b, t].
            document_ids: document of each token [b, t]: attention, positions and the token smear stay inside one, so
                several texts can share a row. Left padding is a document of its own.
            cache: tokens already read, extended by these: every row of a cache, or those of `KVCache.step`. Not
                together with `document_ids`.
            head: called with the hidden states [b, t, hidden] and the output layer instead of computing logits, so
                that a loss need never hold all of them and runs inside the model's forward, where sharded weights are
                whole; so it is there that `value_head` is read.
            head_reads_part: whether `head` takes those of this rank's tokens alone, where `text_ranks` share a text;
                else they are gathered for it, and no gradient may flow to the head.

        Returns:
            Logits [b, t, vocab_size], in the dtype of the arithmetic; scores [b, t] as float32 (float64 for
            float64 weights) where the configuration's output is "score"; or what `head` returns.

        Raises:
            UserError: the text is longer than `max_position_embeddings` or than the cache.
        """
        step = cache.step(tokens.size(1)) if isinstance(cache, KVCache) else cache
        length, is_cut = tokens.size(1), step is None and self.ranks is not None and self.ranks.splits_tokens
        text_ranks = self.text_ranks if step is None else None
        if is_cut or text_ranks is not None:
            tokens, document_ids = self._filled_up(tokens, document_ids)
        positions = self._positions(tokens, document_ids, step)
        x = self._embed(tokens, positions, step)
        contexts = {
            window: self._context(window, x, tokens, positions, document_ids, step, is_cut)
            for window in dict.fromkeys(self.windows)
        }
        if text_ranks is not None:
            x = text_ranks.own(x)
            for context in contexts.values():
                context.tokens, context.text_ranks = text_ranks.own(tokens), text_ranks
        x = self._run_blocks(x, contexts, is_cut)
        if text_ranks is not None and not head_reads_part:
            x, text_ranks = text_ranks.joined(x), None
        if text_ranks is None and x.size(1) != length:
            x = x[:, :length]
        if step is not None:
            step.advance(tokens)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if head is not None:
            return head(x, self.head)
        return token_scores(x, self.head) if self.config.output == "score" else self.logits(x)

    def _filled_up(self, tokens: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Lengthen rows, at their ends where no token sees it, until the ranks that share them divide the length."""
        extra = -tokens.size(1) % self.stream_parts
        if document_ids is not None:
            document_ids = F.pad(document_ids, (0, extra), value=-1)
        return F.pad(tokens, (0, extra)), document_ids

    def _positions(self, tokens: Tensor, document_ids: Tensor | None, step: CacheStep | None) -> Tensor:
        """The position of each token in its text, or after what the cache holds of it."""
        context = self.config.max_position_embeddings
        if step is None:
            return token_positions(tokens.size(1), document_ids, tokens.device, context)
        if document_ids is not None:
            raise ValueError("document_ids and a cache cannot be used together")
        step.check(context)
        return step.positions

    def _run_blocks(self, x: Tensor, contexts: dict[int | None, AttentionContext], is_cut: bool) -> Tensor:
        """Send the stream [b, t, hidden] through the blocks; with `is_cut` each rank its tokens of it."""
        shares: tuple[Tensor | None, Tensor | None] = self.stream_share, self.shortcut_share
        if is_cut and self.ranks is not None:
            x = self.ranks.cut_tokens(x)
            shares = self.ranks.shared(shares[0]), self.ranks.shared(shares[1])
        x0 = x
        for layer, block in enumerate(self.blocks):
            x = block(_into_block(layer, x, x0, *shares), contexts[self.windows[layer]])
        return self.ranks.join_tokens(x) if is_cut and self.ranks is not None else x

    def into_block(self, layer: int, x: Tensor, x0: Tensor) -> Tensor:
        """What a block reads [b, t, hidden] of the stream before it and of that before the first block."""
        return _into_block(layer, x, x0, self.stream_share, self.shortcut_share)

    def before_blocks(self, tokens: Tensor) -> tuple[Tensor, list[AttentionContext]]:
        """The stream [b, t, hidden] before the first block and the context of each block, without a cache.

        For what goes through the blocks one by one: `blocks[i](into_block(i, x, x0), contexts[i])`.

        Args:
            tokens: ids [b, t].

        Raises:
            UserError: the text is longer than `max_position_embeddings`.
        """
        positions = self._positions(tokens, None, None)
        x = self._embed(tokens, positions, None)
        contexts = {
            window: self._context(window, x, tokens, positions, None, None, False)
            for window in dict.fromkeys(self.windows)
        }
        return x, [contexts[window] for window in self.windows]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token [..., vocab_size] from normed hidden states [..., hidden]."""
        logits: Tensor = self.head(hidden)[..., : self.config.vocab_size]
        cap = self.config.logits_softcap
        if cap is not None:
            logits = cap * torch.tanh(at_least_float32(logits) / cap)
        return logits

    def _context(
        self,
        window: int | None,
        x: Tensor,
        tokens: Tensor,
        positions: Tensor,
        document_ids: Tensor | None,
        step: CacheStep | None,
        is_cut: bool,
    ) -> AttentionContext:
        """Make the context that all layers with this sliding window share."""
        if step is None:
            mask, is_causal, spans = what_is_seen(
                self.config,
                x,
                window=window,
                document_ids=document_ids,
                training=self.training,
                masked=self.masks_attention,
            )
        else:
            mask, is_causal, spans = *step.mask(window), None
        tables = self.rotary if window is None else self.windowed_rotary
        rotary = tables(positions, compute_dtype(x)) if tables is not None else None
        return AttentionContext(tokens, mask, is_causal, rotary, step, is_cut, spans)

    def _embed(self, tokens: Tensor, positions: Tensor, step: CacheStep | None) -> Tensor:
        if self.smear is not None and step is not None:
            # the token before the new ones is embedded again, for the first of them to look at
            tokens = torch.cat([step.last_tokens, tokens], dim=1)
            positions = torch.cat([(positions[..., :1] - 1).clamp(min=0), positions], dim=-1)
        x = self.embedding(tokens)  # [b, t, hidden]
        if self.config.scale_embeddings:
            # rounded as the embeddings are, which is how the models with bfloat16 weights were trained
            x = x * torch.full((), math.sqrt(self.config.hidden_size), dtype=x.dtype, device=x.device)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        if self.sinusoids is not None:
            x = x + self.sinusoids(positions).to(x.dtype)
        x = self.dropout(x)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.smear is not None:
            x = self.smear(x, positions)
            if step is not None:
                x = x[:, 1:]
        return x
