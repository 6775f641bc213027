"""What a decoder is made of. Every supported architecture is a set of values of `ModelConfig`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lit_llm.config.errors import UserError
from lit_llm.config.serialization import check_types, shown

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "relu2", "swiglu", "geglu", "geglu_tanh"]
GATED_ACTIVATIONS = ("swiglu", "geglu", "geglu_tanh")

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block, those of the attention first; `gate_proj` is there where the feed-forward is gated."""

MOST = {
    "vocab_size": 2**24,
    "pad_vocab_to_multiple_of": 2**20,
    "max_position_embeddings": 2**23,
    "hidden_size": 2**18,
    "num_layers": 10_000,
    "num_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**16,
    "intermediate_size": 2**20,
    "sliding_window": 2**31,
    "full_attention_every": 2**31,
}
"""The largest size of each kind that is taken for one: some ten times what has ever been published. A file that says
more is broken or hostile, and is refused before a loop or a table of that length."""

NULLABLE_SIZES = ("vocab_size", "num_key_value_heads", "head_dim", "intermediate_size", "sliding_window")


@dataclass
class RopeScaling:
    """How rotary frequencies are stretched so that a model reads further than it was trained."""

    type: Literal["linear", "llama3", "yarn"] = "linear"
    """Stretch every frequency ("linear"), only the slow ones ("llama3"), or by ramp with a temperature ("yarn")."""
    factor: float = 1.0
    """How many times longer the context becomes."""
    original_max_position_embeddings: int | None = None
    """Context in tokens that the weights were trained at; needed by "llama3" and "yarn"."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original / this are divided by the whole factor."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original / this are left alone."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original context are left alone."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this over the original context are divided by the whole factor."""
    attention_factor: float | None = None
    """yarn: what cosines and sines are multiplied by; null means 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        check_types(self, "model.rope_scaling.")
        if self.factor < 1.0:
            raise UserError(f"model.rope_scaling.factor is {self.factor}; it must be at least 1")
        original = self.original_max_position_embeddings
        if self.type in ("llama3", "yarn") and not original:
            raise UserError(f"rope scaling {self.type!r} needs model.rope_scaling.original_max_position_embeddings")
        if original is not None and original < 1:
            raise UserError(
                f"model.rope_scaling.original_max_position_embeddings is {shown(original)}; it must be at least 1"
            )
        if self.type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise UserError("model.rope_scaling.high_freq_factor must be above low_freq_factor")
        if self.type == "yarn" and not 0 < self.beta_slow <= self.beta_fast:
            raise UserError("model.rope_scaling.beta_slow must be above 0, and beta_fast no less than it")
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise UserError(f"model.rope_scaling.attention_factor is {self.attention_factor}; it must be above 0")


@dataclass
class ModelConfig:
    """A decoder-only transformer, as data."""

    vocab_size: int | None = None
    """Rows of the embedding that have a token; null takes it from the tokenizer."""
    pad_vocab_to_multiple_of: int = 1
    """Round the embedding up to this many rows (64 or 128 suits GPUs); the extra rows are never predicted."""
    max_position_embeddings: int = 1024
    """Longest sequence in tokens."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_layers: int = 12
    """Blocks."""
    num_heads: int = 12
    """Query heads."""
    num_key_value_heads: int | None = None
    """Key and value heads: null for one per query head, fewer for grouped-query, 1 for multi-query attention."""
    head_dim: int | None = None
    """Width of a head; null means hidden_size / num_heads."""
    intermediate_size: int | None = None
    """Width inside the feed-forward; null means 4 x hidden_size, or 8/3 of it (rounded up to 32) where gated."""
    activation: Activation = "gelu_tanh"
    """Feed-forward: plain (relu, gelu, gelu_tanh, silu, relu2) or gated (swiglu, geglu, geglu_tanh)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of normalisation."""
    norm_eps: float = 1e-5
    """Added to the variance in a norm."""
    norm_placement: Literal["pre", "post", "sublayer", "sandwich"] = "pre"
    """Norm before each sublayer (pre: GPT-2 and after), after each residual sum (post: the 2017 block), on a sublayer's
    output before that sum (sublayer: OLMo 2), or both before a sublayer and on its output (sandwich: Gemma 2 and 3)."""
    norm_weight: bool = True
    """Whether norms have a learned scale."""
    norm_unit_offset: bool = False
    """An RMSNorm's scale is stored as its distance from 1 (Gemma)."""
    norm_bias: bool = True
    """Whether LayerNorm has a learned shift (RMSNorm has none)."""
    position: Literal["learned", "sinusoidal", "rope", "none"] = "learned"
    """How a token knows where it stands."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_theta_windowed: float | None = None
    """Base of the wavelengths, unscaled, in layers with a sliding window; null: as in the others (Gemma 3: 1e4)."""
    rope_scaling: RopeScaling | None = None
    """Rotary frequencies stretched for long contexts."""
    qkv_bias: bool = True
    """Bias on the query, key and value projections."""
    attention_output_bias: bool = True
    """Bias on the attention output projection."""
    mlp_bias: bool = True
    """Bias in the feed-forward."""
    qk_norm: bool = False
    """RMSNorm of q and k before the rotary turn (Qwen3)."""
    qk_norm_width: Literal["head", "all"] = "head"
    """That norm is over each head (Qwen3), or over all heads together (OLMo 2)."""
    query_pre_attention_scalar: float | None = None
    """Attention scores are divided by the square root of this; null: of the width of a head (Gemma)."""
    sliding_window: int | None = None
    """Each token sees itself and the sliding_window - 1 tokens before it; null sees all."""
    full_attention_every: int | None = None
    """Every so many-th layer has no sliding window (Gemma 2: 2, Gemma 3: 6); null: all layers have it."""
    attention_softcap: float | None = None
    """Attention scores become cap * tanh(scores / cap); leaves the fused kernels (Gemma 2)."""
    logits_softcap: float | None = None
    """Logits become cap * tanh(logits / cap)."""
    tie_word_embeddings: bool = True
    """The head shares the embedding's weights."""
    output: Literal["tokens", "score"] = "tokens"
    """What the head gives at each token: a logit for every token of the vocabulary, or one score (reward models)."""
    value_head: bool = False
    """A second head beside the vocabulary's gives one number at each token: the value that PPO's critic predicts."""
    scale_embeddings: bool = False
    """Multiply token embeddings by sqrt(hidden_size) (the 2017 model, Gemma)."""
    embedding_norm: bool = False
    """Norm right after the embedding."""
    x0_shortcut: bool = False
    """Each block reads a learned mix of the stream and of the embedding output (modded-nanogpt)."""
    value_embeddings: bool = False
    """Every second block, the last included, adds a gated embedding of the token itself to its values (nanochat)."""
    token_smear: bool = False
    """A learned gate adds the previous token's embedding to each token's (modded-nanogpt)."""
    dropout: float = 0.0
    """Dropout on embeddings, attention weights and both residual branches, while training."""
    attention_dropout: float | None = None
    """Dropout on attention weights; null: as dropout."""
    init_std: float = 0.02
    """Standard deviation of initial weights; residual projections get init_std / sqrt(2 num_layers)."""
    zero_init_projections: bool = False
    """Start the residual projections at zero, so that every block begins as the identity."""

    def __post_init__(self) -> None:
        check_types(self, "model.")
        self._check_positive()
        self._check_attention()
        self._check_rope()
        self._check_output()
        if self.norm == "rmsnorm":
            self.norm_bias = False
        if self.norm_bias and not self.norm_weight:
            raise UserError("model.norm_bias needs model.norm_weight; set norm_bias to false")
        if self.norm_unit_offset and not (self.norm == "rmsnorm" and self.norm_weight):
            raise UserError("model.norm_unit_offset needs model.norm rmsnorm with model.norm_weight")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise UserError(f"model.{name} is {value}; it must be at least 0 and below 1")

    def _check_positive(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value < 1 and name != "full_attention_every":
                null = ", or null" if name in NULLABLE_SIZES else ""
                raise UserError(f"model.{name} is {shown(value)}; it must be at least 1{null}")
            if value is not None and value > most:
                raise UserError(f"model.{name} is {shown(value)}; it must be at most {most:,}")
        for name in ("attention_softcap", "logits_softcap", "query_pre_attention_scalar"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"model.{name} is {value}; it must be above 0, or null")
        for name in ("norm_eps", "init_std"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be above 0")

    def _check_attention(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise UserError(
                f"model.hidden_size {self.hidden_size} does not divide by model.num_heads {self.num_heads}; "
                "change one of them or set model.head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model.num_heads {self.num_heads} does not divide by "
                f"model.num_key_value_heads {self.num_key_value_heads}"
            )

        if self.qk_norm_width != "head" and not self.qk_norm:
            raise UserError(f"model.qk_norm_width {self.qk_norm_width} has no effect without model.qk_norm")
        if self.full_attention_every is not None:
            if self.full_attention_every < 2:
                raise UserError(
                    f"model.full_attention_every is {self.full_attention_every}; it must be at least 2, or null "
                    "(for no window at all set model.sliding_window to null)"
                )
            if self.sliding_window is None:
                raise UserError("model.full_attention_every has no effect without model.sliding_window")

    def _check_rope(self) -> None:
        for name in ("rope_theta", "rope_theta_windowed"):
            value = getattr(self, name)
            if value is not None and value <= 1:
                raise UserError(f"model.{name} is {value}; it must be above 1")
        if self.position == "rope" and self.width_per_head % 2:
            raise UserError(f"rotary positions need an even head width, not {self.width_per_head}")
        if self.rope_scaling is not None and self.position != "rope":
            raise UserError("model.rope_scaling has no effect without model.position rope")
        if self.rope_theta_windowed is not None and (self.position != "rope" or self.sliding_window is None):
            raise UserError(
                "model.rope_theta_windowed has no effect without model.position rope and model.sliding_window"
            )
        if self.position == "sinusoidal" and self.hidden_size % 2:
            raise UserError(f"sinusoidal positions need an even model.hidden_size, not {self.hidden_size}")

    def _check_output(self) -> None:
        if self.output == "tokens":
            return
        if self.tie_word_embeddings:
            raise UserError(
                "model.output score has no logits to share the embedding's weights; set model.tie_word_embeddings to "
                "false"
            )
        if self.logits_softcap is not None:
            raise UserError("model.logits_softcap has no effect with model.output score; set it to null")
        if self.value_head:
            raise UserError(
                "model.value_head stands beside a vocabulary's head; with model.output score set it to false"
            )

    def as_score(self) -> ModelConfig:
        """The same architecture with a head that gives one score at each token instead of logits."""
        return replace(self, output="score", value_head=False, tie_word_embeddings=False, logits_softcap=None)

    def check_gives_text(self, name: str) -> None:
        """Refuse a model that cannot write.

        Args:
            name: what the model is called in the message.

        Raises:
            UserError: its head gives scores.
        """
        if self.output == "score":
            raise UserError(f"{name} is a reward model: it gives scores, not text; give a language model")

    @property
    def dropout_of_attention(self) -> float:
        """Probability of dropping an attention weight in training."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads: `num_heads` where `num_key_value_heads` is not given."""
        return self.num_key_value_heads or self.num_heads

    @property
    def width_per_head(self) -> int:
        """Width of one head: the hidden size divided by the heads where `head_dim` is not given."""
        return self.head_dim or self.hidden_size // self.num_heads

    def window_of(self, layer: int) -> int | None:
        """Sliding window of a layer in tokens, or None where the layer sees the whole text."""
        every = self.full_attention_every
        return None if every is not None and (layer + 1) % every == 0 else self.sliding_window

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.activation in GATED_ACTIVATIONS

    @property
    def feedforward_size(self) -> int:
        """Width inside the feed-forward: `intermediate_size`, or else the usual multiple of the hidden size."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.gated:
            return -(-8 * self.hidden_size // (3 * 32)) * 32
        return 4 * self.hidden_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to a multiple of `pad_vocab_to_multiple_of`.

        Raises:
            UserError: `vocab_size` has not been set, by hand or from a tokenizer.
        """
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set and no tokenizer was given to take it from")
        multiple = self.pad_vocab_to_multiple_of
        return -(-self.vocab_size // multiple) * multiple
