"""Options of a foreign config.json that are no mere names of ours: for each family, to our fields and back."""

from __future__ import annotations

from typing import Any

from lit_llm.config import ModelConfig, UserError
from lit_llm.interop.options import Options
from lit_llm.interop.rope import read_layered_rope, read_rope, write_layered_rope, write_rope

# Our activation: its names there, the one that we write first. `hidden_act` of a gated feed-forward is the gate's.
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

GPT2_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def our_activation(key: str, name: str, table: dict[str, tuple[str, ...]]) -> str:
    """Our name of an activation.

    Raises:
        UserError: we have no such activation.
    """
    for ours, theirs in table.items():
        if name in theirs:
            return ours
    raise UserError(f"{key} {name!r} is not supported (only {', '.join(sum(table.values(), ()))})")


def their_activation(ours: str, table: dict[str, tuple[str, ...]]) -> str:
    """Their name of an activation; where they have none, one that reads back as another."""
    return table[ours][0] if ours in table else next(iter(table.values()))[0]


def read_gpt2(options: Options) -> dict[str, Any]:
    """GPT-2's options that are no mere names."""
    options.only("scale_attn_weights", True)
    options.only("scale_attn_by_inverse_layer_idx", False)
    dropouts = {key: options.take(key, 0.1) for key in GPT2_DROPOUTS}
    if len(set(dropouts.values())) > 1:
        found = ", ".join(f"{key} {value}" for key, value in dropouts.items())
        raise UserError(f"only one dropout for all is supported, not {found}; make them equal (training alone uses it)")
    activation = options.take("activation_function", "gelu_new")
    return {
        "activation": our_activation("activation_function", activation, PLAIN_ACTIVATIONS),
        "dropout": dropouts[GPT2_DROPOUTS[0]],
    }


def write_gpt2(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_gpt2`."""
    return {
        "activation_function": their_activation(config.activation, PLAIN_ACTIVATIONS),
        **dict.fromkeys(GPT2_DROPOUTS, config.dropout),
    }


def read_llama(options: Options) -> dict[str, Any]:
    """What Llama and all its descendants have: the gate's activation and rotary positions."""
    activation = our_activation("hidden_act", options.take("hidden_act", "silu"), GATED_ACTIVATIONS)
    options.only("attention_dropout", 0.0, 0, None)
    return {"activation": activation, **read_rope(options)}


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_llama`."""
    return {
        "hidden_act": their_activation(config.activation, GATED_ACTIVATIONS),
        "attention_dropout": 0.0,
        **write_rope(config.rope_theta, config.rope_scaling),
    }


def read_biased_llama(options: Options) -> dict[str, Any]:
    """Llama's own biases: all four projections of the attention have one, or none has."""
    bias = options.take("attention_bias", False)
    return {**read_llama(options), "qkv_bias": bias, "attention_output_bias": bias}


def write_biased_llama(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_biased_llama`."""
    return {**write_llama(config), "attention_bias": config.qkv_bias}


def read_mistral(options: Options) -> dict[str, Any]:
    """Mistral has no bias to switch on."""
    options.only("attention_bias", False)
    return read_llama(options)


def read_qwen_window(options: Options) -> dict[str, Any]:
    """Qwen's sliding window, which its upper layers may have.

    Raises:
        UserError: some layers have a window and others have not.
    """
    used = options.take("use_sliding_window", False)
    window = options.take("sliding_window", 4096)
    first, layers = options.take("max_window_layers", 28), options.take("num_hidden_layers", 32)
    kinds = options.take("layer_types") or [
        "sliding_attention" if used and window is not None and layer >= first else "full_attention"
        for layer in range(layers)
    ]
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
    """What Gemma 2 and 3 have in common: the gate's activation, biases, and a window in some layers.

    Args:
        options: of the file.
        every: which layers have no window, where the file does not say.
    """
    options.only("attention_dropout", 0.0, 0, None)
    options.only("use_bidirectional_attention", False, None)
    options.take("hidden_act")  # which transformers does not read here
    activation = options.take("hidden_activation", "gelu_pytorch_tanh")
    bias = options.take("attention_bias", False)
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
        # which transformers takes as a whole number only
        "query_pre_attn_scalar": int(divisor) if divisor == int(divisor) else divisor,
        "hidden_activation": their_activation(config.activation, GATED_ACTIVATIONS),
        "attention_dropout": 0.0,
        "attention_bias": config.qkv_bias,
        "sliding_window": config.sliding_window,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


def read_alternating_window(options: Options, every: int) -> dict[str, Any]:
    """A sliding window in all layers but every n-th.

    Raises:
        UserError: layers have windows in another order.
    """
    window, layers = options.take("sliding_window", 4096), options.take("num_hidden_layers", 26)
    kinds = options.take("layer_types") or [
        "sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)
    ]
    first = kinds.index("full_attention") + 1 if "full_attention" in kinds else None
    if window is None or first == 1:
        if window is None or "sliding_attention" not in kinds:
            return {"sliding_window": None}
        raise UserError("layer_types must begin with a layer that has a sliding window")
    wanted = [
        "full_attention" if first and (layer + 1) % first == 0 else "sliding_attention" for layer in range(layers)
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
    pattern = options.take("_sliding_window_pattern", 6)
    fields = read_gemma(options, options.take("sliding_window_pattern", pattern))
    rope = read_layered_rope(options)
    if fields["sliding_window"] is None:
        rope["rope_theta_windowed"] = None
    return {**fields, **rope}


def write_gemma3(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_gemma3`."""
    windowed = config.rope_theta_windowed or config.rope_theta
    return {**write_gemma(config), **write_layered_rope(config.rope_theta, config.rope_scaling, windowed)}
