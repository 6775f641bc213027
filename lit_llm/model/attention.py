"""Self-attention: multi-head, grouped-query and multi-query, windowed, over documents, with a cache.

Notation used for tensor shapes:
    b: rows, t: new tokens, s: tokens attended to, n_h: query heads, n_kv: key and value heads, d: width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import ModelConfig
from lit_llm.model.arithmetic import without_autocast
from lit_llm.model.normalization import make_norm
from lit_llm.model.position import apply_rotary

# The gates of value embeddings and of the token smear read this many of a token's dimensions.
GATE_WIDTH = 32


class KVCache:
    """Keys and values of the tokens read so far, for every layer, in memory that is allocated once.

    Rows may be left-padded: `starts[r]` tokens at the left of row r are padding that is never attended to.

    Args:
        config: the decoder's configuration.
        batch_size: rows, b.
        max_length: most tokens that a row may reach.
        tensor_parallel_size: ranks that share the heads; each keeps its own.
        starts: number of padding tokens at the left of each row [b], or None for none.
        device: where the memory lies.
        dtype: what keys and values are kept in.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        tensor_parallel_size: int = 1,
        starts: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        kv_heads = config.kv_heads // tensor_parallel_size
        shape = (config.num_layers, batch_size, kv_heads, max_length, config.width_per_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.starts = starts
        self.length = 0
        self.max_length = max_length
        self.previous_embedding: Tensor | None = None  # [b, 1, hidden]; only the token smear reads it

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [b, n_kv, t, d] to a layer; returns everything so far, [b, n_kv, s, d]."""
        end = self.length + keys.size(2)
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` new tokens as read, once every layer has them."""
        self.length += tokens


@dataclass
class AttentionContext:
    """What every layer of one forward pass shares."""

    tokens: Tensor
    """Token ids [b, t], for value embeddings."""
    mask: Tensor | None
    """True where a query may look, broadcastable to [b, n_h, t, s]; None where `is_causal` says it all."""
    is_causal: bool
    """Each token sees itself and every earlier one: fused kernels need no mask for that."""
    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines, or None."""
    cache: KVCache | None
    """The cache to read and extend, or None."""


def attention_mask(
    length: int,
    *,
    window: int | None,
    document_ids: Tensor | None,
    cache: KVCache | None,
    device: torch.device,
) -> tuple[Tensor | None, bool]:
    """The mask of one forward pass, or None with `is_causal` wherever the kernel can do without one.

    Args:
        length: new tokens, t.
        window: sliding window in tokens; token i sees j where 0 <= i - j < window.
        document_ids: document of each token [b, t]; tokens of different documents do not see each other.
        cache: tokens already read, or None.
        device: where the mask is made.

    Returns:
        Boolean mask broadcastable to [b, n_h, t, s] or None, and whether plain causality is meant.
    """
    past = cache.length if cache is not None else 0
    starts = cache.starts if cache is not None else None
    total = past + length
    if document_ids is None and starts is None and (window is None or total <= window):
        if past == 0:
            return None, True
        if length == 1:
            return None, False
    query = torch.arange(past, total, device=device).unsqueeze(1)  # [t, 1]
    key = torch.arange(total, device=device).unsqueeze(0)  # [1, s]
    mask = key <= query
    if window is not None:
        mask = mask & (query - key < window)
    mask = mask.view(1, 1, length, total)
    if document_ids is not None:
        mask = mask & (document_ids.unsqueeze(1) == document_ids.unsqueeze(2)).unsqueeze(1)
    if starts is not None:
        # a padding token still sees itself: a row of nothing but False would turn into NaN
        mask = mask & ((key >= starts.view(-1, 1, 1, 1)) | (key == query))
    return mask, False


class Attention(nn.Module):
    """Causal self-attention.

    Source: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Henry et al. 2020 (QK-norm).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        width, d = config.hidden_size, config.width_per_head
        self.q_proj = nn.Linear(width, config.num_heads * d, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, config.kv_heads * d, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, config.kv_heads * d, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * d, width, bias=config.attention_output_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = make_norm(config, d)
            self.k_norm = make_norm(config, d)
        self.value_embedding = self.value_gate = None
        # every second layer, counted so that the last one has it
        if config.value_embeddings and layer % 2 == (config.num_layers - 1) % 2:
            self.value_embedding = nn.Embedding(config.padded_vocab_size, config.kv_heads * d)
            self.value_gate = nn.Linear(min(GATE_WIDTH, width), config.kv_heads, bias=False)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Args: x: [b, t, hidden]. Returns: the same shape."""
        config = self.config
        b, t, _ = x.shape
        d = config.width_per_head
        # under tensor parallelism a rank has its share of the heads
        q = self.q_proj(x).view(b, t, -1, d)  # [b, t, n_h, d]
        k = self.k_proj(x).view(b, t, -1, d)  # [b, t, n_kv, d]
        v = self.v_proj(x).view(b, t, -1, d)
        if self.value_embedding is not None and self.value_gate is not None:
            gate = 2.0 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))  # [b, t, n_kv]
            v = v + (gate.unsqueeze(-1) * self.value_embedding(context.tokens).view_as(v)).to(v.dtype)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, n, t, d]
        if context.rotary is not None:
            q, k = apply_rotary(q, *context.rotary), apply_rotary(k, *context.rotary)
        if context.cache is not None:
            k, v = context.cache.update(self.layer, k, v)  # [b, n_kv, s, d]
        dropout = config.dropout if self.training else 0.0
        if config.attention_softcap is not None:
            out = softcapped_attention(q, k, v, context, config.attention_softcap, dropout)
        else:
            out = fused_attention(q, k, v, context, dropout)
        return self.o_proj(out.transpose(1, 2).flatten(2))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
    """torch's fused attention; grouped queries share keys and values inside the kernel.

    Args:
        q: [b, n_h, t, d].
        k: [b, n_kv, s, d].
        v: [b, n_kv, s, d].
        context: mask and causality.
        dropout: probability of dropping an attention weight.

    Returns:
        [b, n_h, t, d] in the dtype of q.
    """
    dtype = q.dtype
    # on CPU the bfloat16 kernel's backward takes over twice as long as the float32 one
    if dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad:
        q = q.float()
    with without_autocast(q.device.type):
        out = F.scaled_dot_product_attention(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            attn_mask=context.mask,
            dropout_p=dropout,
            is_causal=context.is_causal,
            enable_gqa=q.size(1) != k.size(1),
        )
    return out.to(dtype)


def softcapped_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, softcap: float, dropout: float
) -> Tensor:
    """Attention whose scores are bounded by `softcap * tanh(scores / softcap)` (Gemma 2); no fused kernel does this.

    Args and returns: as `fused_attention`.
    """
    b, n_h, t, d = q.shape
    n_kv, s = k.size(1), k.size(2)
    grouped = q.reshape(b, n_kv, n_h // n_kv * t, d)
    scores = (grouped @ k.transpose(-1, -2)).float() * d**-0.5
    scores = (softcap * torch.tanh(scores / softcap)).view(b, n_h, t, s)
    mask = context.mask
    if context.is_causal:
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0.0).to(v.dtype)
    return (weights.view(b, n_kv, n_h // n_kv * t, s) @ v).view(b, n_h, t, d)
