"""This file translates those options of each family that are more than another name of one of our fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lit_llm.config import ModelConfig, UserError
from lit_llm.config.model import MOST
from lit_llm.config.serialization import shown
from lit_llm.interop.options import Options
from lit_llm.interop.rope import read_layered_rope, read_rope, write_layered_rope, write_rope

# For each of our activations, its names in transformers; we write the first. In a gated feed-forward `hidden_act` is
# the activation of the gate.
PLAIN_ACTIVATIONS = {
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "gelu": ("gelu", "gelu_python"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "relu2": ("relu2",),
}
GATED_ACTIVATIONS = {
    "swiglu": ("silu", "swish"),
    "geglu": ("gelu", "gelu_python"),
    "geglu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
}


def our_activation(key: str, name: Any, table: dict[str, tuple[str, ...]]) -> str:
    """Give our name of an activation.

    Raises:
        UserError: we have no such activation.
    """
    for ours, theirs in table.items():
        if name in theirs:
            return ours
    raise UserError(f"{key} {shown(name)} is not supported (only {', '.join(sum(table.values(), ()))})")


def their_activation(ours: str, table: dict[str, tuple[str, ...]]) -> str:
    """Give the name that transformers has for an activation; where it has none, one that reads back as another."""
    return table[ours][0] if ours in table else next(iter(table.values()))[0]


def read_gpt2(options: Options) -> dict[str, Any]:
    """Read the options of GPT-2 that are more than another name."""
    options.only("scale_attn_weights", True)
    options.only("scale_attn_by_inverse_layer_idx", False)
    dropout = options.take("resid_pdrop", 0.1)
    options.pass_over("embd_pdrop", dropout)  # we have one dropout outside attention, and only training uses it
    of_attention = options.take("attn_pdrop", 0.1)
    activation = options.take("activation_function", "gelu_new")
    return {
        "activation": our_activation("activation_function", activation, PLAIN_ACTIVATIONS),
        "dropout": dropout,
        "attention_dropout": None if of_attention == dropout else of_attention,
    }


def write_gpt2(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_gpt2`."""
    return {
        "activation_function": their_activation(config.activation, PLAIN_ACTIVATIONS),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout_of_attention,
    }


def read_llama(options: Options) -> dict[str, Any]:
    """Read what Llama and all its descendants have: the gate's activation and rotary positions."""
    activation = our_activation("hidden_act", options.take("hidden_act", "silu"), GATED_ACTIVATIONS)
    options.pass_over("attention_dropout", 0)
    return {"activation": activation, **read_rope(options)}


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_llama`."""
    return {
        "hidden_act": their_activation(config.activation, GATED_ACTIVATIONS),
        "attention_dropout": 0.0,
        **write_rope(config.rope_theta, config.rope_scaling),
    }


def read_biased_llama(options: Options) -> dict[str, Any]:
    """Read Llama's biases: all four projections of the attention have one, or none has."""
    bias = options.take("attention_bias") or False
    return {**read_llama(options), "qkv_bias": bias, "attention_output_bias": bias}


def write_biased_llama(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_biased_llama`."""
    return {**write_llama(config), "attention_bias": config.qkv_bias}


def read_mistral(options: Options) -> dict[str, Any]:
    """Mistral has no bias to switch on."""
    options.only("attention_bias", False)
    return read_llama(options)


def layer_kinds(options: Options, default_layers: int, has_window: Callable[[int], bool]) -> list[str]:
    """Read the kind of attention of each layer: full_attention or sliding_attention.

    Args:
        options: of the file.
        default_layers: how many there are where the file does not say.
        has_window: whether a layer has a window where the file does not say.

    Raises:
        UserError: the number of layers, or the list, cannot be one.
    """
    layers = options.take("num_hidden_layers", default_layers)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= MOST["num_layers"]:
        raise UserError(
            f"num_hidden_layers is {shown(layers)}; it must be a whole number from 1 to {MOST['num_layers']:,}"
        )
    kinds = options.take("layer_types")
    if kinds is None:
        return ["sliding_attention" if has_window(layer) else "full_attention" for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(isinstance(kind, str) for kind in kinds):
        raise UserError(f"layer_types must be a list of text, one for each of the {layers} layers")
    return kinds


def whole_number(options: Options, key: str, default: int) -> int:
    """Take a value of the file that must be a whole number.

    Raises:
        UserError: it is none.
    """
    value = options.take(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"{key} is {shown(value)}; it must be a whole number")
    return default if value is None else value


def read_qwen_window(options: Options) -> dict[str, Any]:
    """Read Qwen's sliding window, which its upper layers may have.

    Raises:
        UserError: some layers have a window and others have not.
    """
    used = options.take("use_sliding_window", False)
    window = options.take("sliding_window", 4096)
    first = whole_number(options, "max_window_layers", 28)
    kinds = layer_kinds(options, 32, lambda layer: bool(used) and window is not None and layer >= first)
    if set(kinds) == {"full_attention"}:
        return {"sliding_window": None}
    if set(kinds) == {"sliding_attention"} and used and window is not None:
        return {"sliding_window": window}
    raise UserError(
        "a sliding window in some layers only (max_window_layers, layer_types) is not supported for this architecture"
    )


def write_qwen_window(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_qwen_window`."""
    used = config.sliding_window is not None
    return {
        "use_sliding_window": used,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0 if used else config.num_layers,
        "layer_types": ["sliding_attention" if used else "full_attention"] * config.num_layers,
    }


def read_qwen2(options: Options) -> dict[str, Any]:
    """Qwen2 is Llama with biases on q, k and v."""
    return {**read_llama(options), **read_qwen_window(options)}


def write_qwen2(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_qwen2`."""
    return {**write_llama(config), **write_qwen_window(config)}


def read_qwen3(options: Options) -> dict[str, Any]:
    """Qwen3 is Llama with norms on q and k."""
    return {**read_biased_llama(options), **read_qwen_window(options)}


def write_qwen3(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_qwen3`."""
    return {**write_biased_llama(config), **write_qwen_window(config)}


def read_gemma(options: Options, every: int) -> dict[str, Any]:
    """Read what Gemma 2 and 3 have in common: the gate's activation, biases, and a window in some layers.

    Args:
        options: of the file.
        every: which layers have no window, where the file does not say.
    """
    options.pass_over("attention_dropout", 0)
    options.only("use_bidirectional_attention", False, None)
    options.take("hidden_act")  # transformers does not read this key here
    activation = options.take("hidden_activation", "gelu_pytorch_tanh")
    bias = options.take("attention_bias") or False
    return {
        "activation": our_activation("hidden_activation", activation, GATED_ACTIVATIONS),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        **read_alternating_window(options, every),
    }


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_gemma`."""
    windows = [config.window_of(layer) for layer in range(config.num_layers)]
    divisor = config.query_pre_attention_scalar or config.width_per_head
    return {
        # transformers takes only a whole number
        "query_pre_attn_scalar": int(divisor) if divisor == int(divisor) else divisor,
        "hidden_activation": their_activation(config.activation, GATED_ACTIVATIONS),
        "attention_dropout": 0.0,
        "attention_bias": config.qkv_bias,
        # transformers makes the mask of a window whatever the layers are, and fails where there is none
        "sliding_window": config.sliding_window or config.max_position_embeddings,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


def read_alternating_window(options: Options, every: int) -> dict[str, Any]:
    """Read a sliding window that all layers but every n-th have.

    Raises:
        UserError: layers have windows in another order.
    """
    if every < 1:
        raise UserError(f"sliding_window_pattern is {shown(every)}; it must be at least 1")
    window = options.take("sliding_window", 4096)
    kinds = layer_kinds(options, 26, lambda layer: (layer + 1) % every != 0)
    first = kinds.index("full_attention") + 1 if "full_attention" in kinds else None
    if window is None or first == 1:
        if window is None or "sliding_attention" not in kinds:
            return {"sliding_window": None}
        raise UserError("layer_types must begin with a layer that has a sliding window")
    wanted = [
        "full_attention" if first and (layer + 1) % first == 0 else "sliding_attention" for layer in range(len(kinds))
    ]
    if kinds != wanted:
        raise UserError("layer_types must be all sliding_attention but every n-th layer full_attention")
    return {"sliding_window": window, "full_attention_every": first}


def read_gemma2(options: Options) -> dict[str, Any]:
    """Every second layer of Gemma 2 sees all."""
    return {**read_gemma(options, 2), **read_rope(options)}


def write_gemma2(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_gemma2`."""
    return {**write_gemma(config), **write_rope(config.rope_theta, config.rope_scaling)}


def read_gemma3(options: Options) -> dict[str, Any]:
    """Gemma 3 has other rotary wavelengths in the layers with a window."""
    options.only("attn_logit_softcapping", None)  # transformers has the key, and does not compute it
    pattern = whole_number(options, "_sliding_window_pattern", 6)
    fields = read_gemma(options, whole_number(options, "sliding_window_pattern", pattern))
    rope = read_layered_rope(options)
    if fields["sliding_window"] is None:
        rope["rope_theta_windowed"] = None
    return {**fields, **rope}


def write_gemma3(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_gemma3`."""
    windowed = config.rope_theta_windowed or config.rope_theta
    return {**write_gemma(config), **write_layered_rope(config.rope_theta, config.rope_scaling, windowed)}
