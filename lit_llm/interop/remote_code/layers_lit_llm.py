"""The layers of lit_llm's decoder for transformers; `modeling_lit_llm.py` says what the files are for.

Notation used for tensor shapes:
    b: rows, t: new tokens, s: tokens attended to, n_h: query heads, n_kv: key and value heads, d: width of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lit_llm import LitLLMConfig

GATE_WIDTH = 32  # the gates of value embeddings and of the token smear read this many of a token's dimensions


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if its type is a narrower one."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm whose weight is the distance of its scale from 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [..., d]. Returns: the same shape."""
        scale = 1.0 + at_least_float32(self.weight)
        return F.rms_norm(at_least_float32(x), self.normalized_shape, scale, self.eps).type_as(x)


def make_norm(config: LitLLMConfig, width: int | None = None) -> nn.Module:
    """The norm over the residual stream, or the RMSNorm over `width` dimensions of heads."""
    if config.norm_unit_offset:
        return OffsetRMSNorm(width or config.hidden_size, eps=config.norm_eps)
    if width is not None or config.norm == "rmsnorm":
        return nn.RMSNorm(width or config.hidden_size, eps=config.norm_eps, elementwise_affine=config.norm_weight)
    return nn.LayerNorm(
        config.hidden_size, eps=config.norm_eps, elementwise_affine=config.norm_weight, bias=config.norm_bias
    )


def rotary_frequencies(width: int, theta: float, scaling: dict | None) -> tuple[Tensor, float]:
    """Radians per token of each pair of dimensions [width / 2], and the factor on cosines and sines."""
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)
    if scaling is None:
        return frequencies, 1.0
    kind, factor = scaling["type"], scaling["factor"]
    if kind == "linear":
        return frequencies / factor, 1.0
    original = float(scaling["original_max_position_embeddings"])
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((original * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0.0, 1.0)
        return keep * frequencies + (1.0 - keep) * frequencies / factor, 1.0

    def dimension_that_turns(times):
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_that_turns(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension_that_turns(scaling["beta_slow"])), width - 1)
    ramp = ((torch.arange(width // 2).float() - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
    temperature = scaling["attention_factor"]
    if temperature is None:
        temperature = 0.1 * math.log(factor) + 1.0
    return (1.0 - ramp) * frequencies + ramp * frequencies / factor, temperature


def rotary_tables(config: LitLLMConfig, windowed: bool, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines at `positions` [b, t], each [b, 1, t, d / 2], in layers with or without a sliding window."""
    theta, scaling = config.rope_theta, config.rope_scaling
    if windowed and config.rope_theta_windowed is not None:
        theta, scaling = config.rope_theta_windowed, None
    with torch.device("cpu"):  # rounded alike wherever the model is
        frequencies, factor = rotary_frequencies(config.width_per_head, theta, scaling)
    angles = positions.float().unsqueeze(-1) * frequencies.to(positions.device)
    return (angles.cos() * factor).to(dtype).unsqueeze(1), (angles.sin() * factor).to(dtype).unsqueeze(1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys [b, n, t, d] to their positions, dimension i paired with i + d / 2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """The fixed position vectors of the 2017 model at `positions` [b, t]: float32 [b, t, width]."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angles = positions.double().unsqueeze(-1) * torch.exp(exponents * (-math.log(10000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).float()


def attention_masks(
    windows: list[int | None],
    t: int,
    past: int,
    attended: Tensor | None,
    documents: Tensor | None,
    device: torch.device,
) -> dict[int | None, Tensor | None]:
    """Where each of `t` queries behind `past` tokens may look, for each kind of sliding window.

    Args:
        windows: of the layers.
        t: new tokens.
        past: tokens in the cache.
        attended: False at padding [b, past + t]; None where there is none.
        documents: number of the document that a token is in [b, t]; None where a row is one document.
        device: of the masks.

    Returns:
        Masks [b or 1, 1, t, past + t]; None where a query sees all before it.
    """
    query = torch.arange(past, past + t, device=device).unsqueeze(1)
    key = torch.arange(past + t, device=device).unsqueeze(0)
    masks: dict[int | None, Tensor | None] = {}
    for window in dict.fromkeys(windows):
        whole = attended is None and documents is None and (window is None or past + t <= window)
        if whole and (past == 0 or t == 1):
            masks[window] = None
            continue
        mask = (key <= query) if window is None else (key <= query) & (query - key < window)
        mask = mask.view(1, 1, t, past + t)
        if attended is not None:
            mask = mask & attended[:, None, None, :]
        if documents is not None:
            mask = mask & (documents.unsqueeze(1) == documents.unsqueeze(2)).unsqueeze(1)
        masks[window] = mask | (key == query)  # padding sees itself: a row without any key would be NaN
    return masks


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: LitLLMConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        width, d, n_kv = config.hidden_size, config.width_per_head, config.kv_heads
        self.q_proj = nn.Linear(width, config.num_heads * d, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, n_kv * d, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, n_kv * d, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * d, width, bias=config.attention_output_bias)
        over_all = config.qk_norm_width == "all"
        self.q_norm = make_norm(config, config.num_heads * d if over_all else d) if config.qk_norm else None
        self.k_norm = make_norm(config, n_kv * d if over_all else d) if config.qk_norm else None
        self.value_embedding = self.value_gate = None
        # every second layer, counted so that the last one has it
        if config.value_embeddings and layer % 2 == (config.num_layers - 1) % 2:
            self.value_embedding = nn.Embedding(config.vocab_size, n_kv * d)
            self.value_gate = nn.Linear(min(GATE_WIDTH, width), n_kv, bias=False)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None, rotary, cache) -> Tensor:
        """Args: x: [b, t, hidden]; tokens: ids [b, t]. Returns: [b, t, hidden]."""
        config = self.config
        b, t, _ = x.shape
        d = config.width_per_head
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # [b, t, n * d]
        if self.q_norm is not None and config.qk_norm_width == "all":
            q, k = self.q_norm(q).to(q.dtype), self.k_norm(k).to(k.dtype)
        q, k, v = q.view(b, t, -1, d), k.view(b, t, -1, d), v.view(b, t, -1, d)
        if self.value_embedding is not None:
            gate = 2.0 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))  # [b, t, n_kv]
            v = v + (gate.unsqueeze(-1) * self.value_embedding(tokens).view_as(v)).to(v.dtype)
        if self.q_norm is not None and config.qk_norm_width == "head":
            q, k = self.q_norm(q).to(q.dtype), self.k_norm(k).to(k.dtype)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, n, t, d]
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # [b, n_kv, s, d]
        if mask is not None:
            mask = mask[..., -k.size(2) :]  # a cache of a layer with a window keeps the last tokens alone
        dropout = config.attention_dropout if config.attention_dropout is not None else config.dropout
        dropout = dropout if self.training else 0.0
        return self.o_proj(self._attend(q, k, v, mask, dropout).transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        config = self.config
        scale = (config.query_pre_attention_scalar or config.width_per_head) ** -0.5
        is_causal = mask is None and q.size(2) > 1
        if config.attention_softcap is None:
            return F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal, scale=scale, enable_gqa=q.size(1) != k.size(1)
            )
        groups = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        cap = config.attention_softcap
        scores = cap * torch.tanh(at_least_float32(q @ k.transpose(-1, -2)) * scale / cap)
        if is_causal:
            mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return F.dropout(scores.softmax(-1), dropout, training=dropout > 0.0).to(v.dtype) @ v


def relu_squared(x: Tensor) -> Tensor:
    """The square of what is above zero."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": gelu_tanh, "silu": F.silu, "relu2": relu_squared}
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


class FeedForward(nn.Module):
    """`down(act(up x))`, or `down(act(gate x) * up x)` where gated."""

    def __init__(self, config: LitLLMConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        gated = config.activation in GATED
        if inner is None:
            inner = -(-8 * width // (3 * 32)) * 32 if gated else 4 * width
        self.activation = ACTIVATIONS[GATED.get(config.activation, config.activation)]
        self.gate_proj = nn.Linear(width, inner, bias=config.mlp_bias) if gated else None
        self.up_proj = nn.Linear(width, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [b, t, hidden]. Returns: the same shape."""
        inner = self.up_proj(x)
        inner = self.activation(inner) if self.gate_proj is None else self.activation(self.gate_proj(x)) * inner
        return self.down_proj(inner)


class Block(GradientCheckpointingLayer):
    """Attention and feed-forward, each with its norms and its residual sum."""

    def __init__(self, config: LitLLMConfig, layer: int):
        super().__init__()
        self.norm_placement = config.norm_placement
        sandwich = config.norm_placement == "sandwich"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)
        self.attention_output_norm = make_norm(config) if sandwich else nn.Identity()
        self.feedforward_output_norm = make_norm(config) if sandwich else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None, rotary, cache=None) -> Tensor:
        """Args: x: stream [b, t, hidden]; the rest as for `Attention`. Returns: the stream."""
        context = (tokens, mask, rotary, cache)
        if self.norm_placement == "post":
            x = self.attention_norm(x + self.dropout(self.attention(x, *context)))
            return self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        if self.norm_placement == "sublayer":
            x = x + self.dropout(self.attention_norm(self.attention(x, *context)))
            return x + self.dropout(self.feedforward_norm(self.feedforward(x)))
        x = x + self.dropout(self.attention_output_norm(self.attention(self.attention_norm(x), *context)))
        return x + self.dropout(self.feedforward_output_norm(self.feedforward(self.feedforward_norm(x))))


class TokenSmear(nn.Module):
    """Adds to each token's embedding a gated share of the one before it."""

    def __init__(self, config: LitLLMConfig):
        super().__init__()
        self.gate = nn.Linear(min(GATE_WIDTH, config.hidden_size), 1, bias=False)
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Args: x: [b, t, hidden]; positions: [b, t], 0 at the first token of a document."""
        previous = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        gate = self.strength * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))
        return x + gate * (positions > 0).unsqueeze(-1) * previous
