"""Self-attention: multi-head, grouped-query and multi-query, windowed, over documents, with a cache.

Notation used for tensor shapes:
    b: rows, t: new tokens, s: tokens attended to, n_h: query heads, n_kv: key and value heads, d: width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import ModelConfig
from lit_llm.model.arithmetic import at_least_float32, compute_dtype, multiplies_bfloat16, without_autocast
from lit_llm.model.blocked_attention import LONGEST, blocked_attention
from lit_llm.model.cache import CacheStep
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.linear import Linear
from lit_llm.model.normalization import make_norm
from lit_llm.model.one_token import OneTokenStep, one_query_attention
from lit_llm.model.piecewise import piecewise_attention
from lit_llm.model.position import RotaryTables, apply_rotary, rotary_tables, token_positions
from lit_llm.model.spans import Spans, spans_of

if TYPE_CHECKING:
    from lit_llm.model.context_parallel import ContextRanks

# The gates of value embeddings and of the token smear read this many of a token's dimensions.
GATE_WIDTH = 32


@dataclass
class AttentionContext:
    """What the layers of one forward pass share that have the same sliding window; see `Attention.context`."""

    tokens: Tensor | None = None
    """Token ids [b, t]; only layers with value embeddings read them."""
    mask: Tensor | None = None
    """True where a query may look, broadcastable to [b, n_h, t, s]; None where `is_causal` says it all."""
    is_causal: bool = True
    """Each token sees itself and every earlier one: fused kernels need no mask for that."""
    rotary: tuple[Tensor, Tensor] | None = None
    """Cosines and sines that queries and keys are rotated by; None: they are not rotated."""
    cache: CacheStep | None = None
    """The part of a cache to read and to extend; None: there is no cache."""
    is_cut: bool = False
    """Each of the ranks that share the products has its own tokens of the stream, but not of what attention reads."""
    spans: Spans | None = None
    """What each token sees, where a kernel reads that instead of a mask; `mask` and `is_causal` mean nothing then."""
    text_ranks: ContextRanks | None = None
    """The ranks that share each text; the rest of the context is that of the whole text but for `tokens`."""


def attention_mask(
    length: int, *, window: int | None, document_ids: Tensor | None, device: torch.device
) -> tuple[Tensor | None, bool]:
    """The mask of a forward pass without a cache, or None with `is_causal` wherever the kernel can do without one.

    Args:
        length: tokens, t.
        window: sliding window in tokens; token i sees j where 0 <= i - j < window.
        document_ids: document of each token [b, t]; tokens of different documents do not see each other.
        device: where the mask is made.

    Returns:
        Boolean mask broadcastable to [b, n_h, t, t] or None, and whether plain causality is meant.
    """
    # a program that is exported serves texts of every length, so that it cannot be asked here how long this one is
    short = window is None or (not torch.compiler.is_exporting() and length <= window)
    if document_ids is None and short:
        return None, True
    query = torch.arange(length, device=device).unsqueeze(1)  # [t, 1]
    key = torch.arange(length, device=device).unsqueeze(0)  # [1, t]
    mask = key <= query
    if window is not None:
        mask = mask & (query - key < window)
    mask = mask.view(1, 1, length, length)
    if document_ids is not None:
        mask = mask & (document_ids.unsqueeze(1) == document_ids.unsqueeze(2)).unsqueeze(1)
    return mask, False


def what_is_seen(
    config: ModelConfig,
    x: Tensor,
    *,
    window: int | None,
    document_ids: Tensor | None,
    training: bool,
    masked: bool = False,
) -> tuple[Tensor | None, bool, Spans | None]:
    """Mask, causality and spans, as in `AttentionContext`, of a pass without a cache.

    Args:
        config: the architecture.
        x: the stream [b, t, hidden].
        window: see `attention_mask`.
        document_ids: see `attention_mask`.
        training: whether the pass drops what the configuration says.
        masked: make a mask wherever causality does not say it all, whatever else the device can read.
    """
    length, device, drops = x.size(1), x.device, training and config.dropout_of_attention > 0.0
    if not masked:
        dtype = compute_dtype(x)
        spans = spans_of(
            config, length, window=window, document_ids=document_ids, device=device, dtype=dtype, drops=drops
        )
        if spans is not None:
            return None, False, spans
    return (*attention_mask(length, window=window, document_ids=document_ids, device=device), None)


class Attention(nn.Module):
    """Causal self-attention, as a part of a decoder or by itself.

    Args:
        config: the architecture.
        layer: number of the block that it stands in, which decides its sliding window and its initial weights.
        seed: of the initial weights: those of this layer in `Decoder(config, seed)`. None leaves them to the caller.

    Source: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Henry et al. 2020 (QK-norm).
    """

    def __init__(self, config: ModelConfig, layer: int = 0, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        divisor = config.query_pre_attention_scalar
        self.scale = None if divisor is None else divisor**-0.5
        width, d = config.hidden_size, config.width_per_head
        self.q_proj = Linear(width, config.num_heads * d, bias=config.qkv_bias)
        self.k_proj = Linear(width, config.kv_heads * d, bias=config.qkv_bias)
        self.v_proj = Linear(width, config.kv_heads * d, bias=config.qkv_bias)
        self.o_proj = Linear(config.num_heads * d, width, bias=config.attention_output_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            over_all = config.qk_norm_width == "all"
            self.q_norm = make_norm(config, config.num_heads * d if over_all else d)
            self.k_norm = make_norm(config, config.kv_heads * d if over_all else d)
        self.value_embedding = self.value_gate = None
        # every second layer, counted so that the last one has it
        if config.value_embeddings and layer % 2 == (config.num_layers - 1) % 2:
            self.value_embedding = nn.Embedding(config.padded_vocab_size, config.kv_heads * d)
            self.value_gate = Linear(min(GATE_WIDTH, width), config.kv_heads, bias=False)
        self._tables: RotaryTables | None = None  # of an attention that is used by itself
        if seed is not None:
            initialize_weights(self, config, seed, prefix=f"blocks.{layer}.attention.")

    def context(
        self,
        x: Tensor,
        *,
        tokens: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: CacheStep | None = None,
    ) -> AttentionContext:
        """What `forward` needs to know of a text besides `x`, when this attention is used by itself.

        Args:
            x: [b, t, hidden].
            tokens: ids [b, t], for value embeddings.
            positions: place of each token that it is rotated to, [t] or [b, t]; None: from the start of its document,
                or after what the cache holds.
            document_ids: document of each token [b, t]: tokens of different documents do not see each other.
            cache: from `KVCache.step`, extended by `forward`; `advance` counts the new tokens once every layer has
                them. Not together with `document_ids`.

        Raises:
            UserError: the text is longer than `max_position_embeddings`.
        """
        config, window = self.config, self.config.window_of(self.layer)
        if cache is None:
            if positions is None:
                positions = token_positions(x.size(1), document_ids, x.device, config.max_position_embeddings)
            seen = what_is_seen(config, x, window=window, document_ids=document_ids, training=self.training)
        elif document_ids is not None:
            raise ValueError("document_ids and a cache cannot be used together")
        else:
            cache.check(config.max_position_embeddings)
            positions = cache.positions if positions is None else positions
            seen = (*cache.mask(window), None)
        if self._tables is None:
            self._tables = rotary_tables(config, window)
        rotary = None if self._tables is None else self._tables(positions, compute_dtype(x))
        mask, is_causal, spans = seen
        return AttentionContext(tokens, mask, is_causal, rotary, cache, spans=spans)

    def forward(self, x: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Mix the tokens of each row.

        Args:
            x: [b, t, hidden].
            context: what a decoder shares among its layers; None: that of one text per row, without a cache.

        Returns:
            The same shape as `x`.

        Raises:
            ValueError: the layer has value embeddings, and the context has no tokens.
        """
        config = self.config
        if context is None:
            context = self.context(x)
        b, t, _ = x.shape
        d = config.width_per_head
        # under tensor parallelism a rank has its share of the heads
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # [b, t, n * d]
        if config.qk_norm_width == "all":
            q, k = self._normed(q, k)
        q, k, v = q.view(b, t, -1, d), k.view(b, t, -1, d), v.view(b, t, -1, d)
        if self.value_embedding is not None and self.value_gate is not None:
            if context.tokens is None:
                raise ValueError("a layer with value embeddings reads the tokens; give context(x, tokens=...)")
            gate = 2.0 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))  # [b, t, n_kv]
            v = v + (gate.unsqueeze(-1) * self.value_embedding(context.tokens).view_as(v)).to(v.dtype)
        if config.qk_norm_width == "head":
            q, k = self._normed(q, k)
        if context.text_ranks is not None:
            q, k, v = context.text_ranks.to_heads(q, k, v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, n, t, d]
        if context.rotary is not None:
            q, k = apply_rotary(q, *context.rotary), apply_rotary(k, *context.rotary)
        if context.cache is not None:
            k, v = context.cache.update(self.layer, k, v)  # [b, n_kv, s, d]
        dropout = config.dropout_of_attention if self.training else 0.0
        if context.spans is not None:
            out = spanned_attention(q, k, v, context.spans, config.attention_softcap, self.scale)
        elif config.attention_softcap is not None:
            out = softcapped_attention(q, k, v, context, config.attention_softcap, dropout, self.scale)
        else:
            out = fused_attention(q, k, v, context, dropout, self.scale)
        out = out.transpose(1, 2)
        if context.text_ranks is not None:
            out = context.text_ranks.to_tokens(out)
        return self.o_proj(out.flatten(2))

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q).to(q.dtype), self.k_norm(k).to(k.dtype)


def spanned_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, softcap: float | None, scale: float | None
) -> Tensor:
    """Attention in which each token sees a run of tokens, by the kernel that `spans` was made for.

    Args:
        q: [b, n_h, t, d].
        k: [b, n_kv, t, d].
        v: [b, n_kv, t, d].
        spans: what each token sees.
        softcap: see `softcapped_attention`; None: scores are as they are.
        scale: what scores are multiplied by; None means 1 / sqrt(d).

    Returns:
        [b, n_h, t, d] in the dtype of q.
    """
    dtype = q.dtype
    if spans.tiles is not None:
        from lit_llm.model.block_sparse import block_sparse_attention

        with without_autocast(q.device.type):
            return block_sparse_attention(q, k.to(dtype), v.to(dtype), spans.tiles, scale, softcap)
    assert spans.pieces is not None
    q = _for_backward(q)
    scale = q.size(3) ** -0.5 if scale is None else scale
    return piecewise_attention(q, k.to(q.dtype), v.to(q.dtype), spans.first, spans.pieces, scale, softcap)[0].to(dtype)


def _for_backward(q: Tensor) -> Tensor:
    """Queries in float32 where, on the CPU, the bfloat16 kernel's backward takes over twice as long."""
    return q.float() if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad else q


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float, scale: float | None = None
) -> Tensor:
    """torch's fused attention; grouped queries share keys and values inside the kernel where one can.

    Args:
        q: [b, n_h, t, d].
        k: [b, n_kv, s, d].
        v: [b, n_kv, s, d].
        context: mask and causality.
        dropout: probability of dropping an attention weight.
        scale: what scores are multiplied by; None means 1 / sqrt(d).

    Returns:
        [b, n_h, t, d] in the dtype of q.
    """
    if isinstance(context.cache, OneTokenStep) and q.device.type == "cpu":
        return one_query_attention(q, k, v, context.mask, scale)
    if context.is_causal and _is_fastest_by_blocks(q, k, dropout):
        with without_autocast(q.device.type):
            scale = q.size(3) ** -0.5 if scale is None else scale
            return blocked_attention(q, k.to(q.dtype), v.to(q.dtype), scale, dropout)
    dtype = q.dtype
    q = _for_backward(q)
    k, v = k.to(q.dtype), v.to(q.dtype)
    b, n_h, t, d = q.shape
    is_causal, group = context.is_causal, n_h // k.size(1)
    if group > 1 and t == 1:  # a group's queries stand as tokens of one head, which every kernel takes
        q, is_causal, group = q.reshape(b, -1, group, d), False, 1
    elif group > 1 and (torch.compiler.is_exporting() or _needs_equal_heads(q, context.mask)):
        # few runtimes of exported programs know grouped queries
        k, v, group = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), 1
    with without_autocast(q.device.type):
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=context.mask,
            dropout_p=dropout,
            is_causal=is_causal,
            enable_gqa=group > 1,
            scale=scale,
        )
    return out.reshape(b, n_h, t, d).to(dtype)


def _is_fastest_by_blocks(q: Tensor, k: Tensor, dropout: float) -> bool:
    """Whether causal attention of whole texts with a gradient takes less time as products of blocks than fused."""
    if q.device.type != "cpu" or not q.requires_grad or q.size(2) != k.size(2) or not 1 < q.size(2) <= LONGEST:
        return False
    return dropout > 0.0 or (q.dtype == torch.bfloat16 and multiplies_bfloat16(q.device))


def _needs_equal_heads(q: Tensor, mask: Tensor | None) -> bool:
    """Whether no fused CUDA kernel takes fewer heads of keys than of queries, so that torch would write out the scores.

    Of those that compute in tiles flash takes them without a mask, cuDNN with one; both in half precision only.
    """
    if q.device.type != "cuda":
        return False
    if q.dtype not in (torch.bfloat16, torch.float16):
        return True
    cudnn = q.size(3) <= 128 and not torch.are_deterministic_algorithms_enabled() and _cudnn_comes_first(q.device.index)
    return mask is not None and not cudnn


def _cudnn_comes_first(device: int | None) -> bool:
    """Whether torch asks cuDNN for attention before it writes out the scores: on data-centre Hopper and Blackwell."""
    return torch.backends.cuda.cudnn_sdp_enabled() and torch.cuda.get_device_capability(device) in ((9, 0), (10, 0))


# what torch.compiler.assume_constant_result does, which would import the compiler for it
_cudnn_comes_first._dynamo_marked_constant = True  # type: ignore[attr-defined]


def softcapped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: AttentionContext,
    softcap: float,
    dropout: float,
    scale: float | None = None,
) -> Tensor:
    """Attention whose scores are bounded by `softcap * tanh(scores / softcap)` (Gemma 2); no fused kernel does this.

    Scores are float32, or float64 where queries and keys are.

    Args and returns: as `fused_attention`.
    """
    b, n_h, t, d = q.shape
    n_kv, s = k.size(1), k.size(2)
    grouped = q.reshape(b, n_kv, n_h // n_kv * t, d)
    scores = at_least_float32(grouped @ k.transpose(-1, -2)) * (d**-0.5 if scale is None else scale)
    scores = (softcap * torch.tanh(scores / softcap)).view(b, n_h, t, s)
    mask = context.mask
    if context.is_causal:
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0.0).to(v.dtype)
    return (weights.view(b, n_kv, n_h // n_kv * t, s) @ v).view(b, n_h, t, d)
