"""Architectures by name. Figures from each model's published config.json."""

from __future__ import annotations

from typing import Any

from lit_llm.config.errors import UserError
from lit_llm.config.model import ModelConfig
from lit_llm.config.run import PretrainConfig
from lit_llm.config.serialization import from_plain

_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "norm_bias": False,
    "norm_eps": 1e-5,
    "position": "rope",
    "activation": "swiglu",
    "qkv_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_LLAMA32_SCALING = {
    "type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA31_SCALING = {**_LLAMA32_SCALING, "factor": 8.0}
_QWEN = {**_LLAMA, "norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 151936}
_GEMMA = {
    **_LLAMA,
    "norm_eps": 1e-6,
    "norm_placement": "sandwich",
    "norm_unit_offset": True,
    "activation": "geglu_tanh",
    "scale_embeddings": True,
    "query_pre_attention_scalar": 256,
    "head_dim": 256,
    "tie_word_embeddings": True,
}
_MODERN: dict[str, Any] = {
    **_LLAMA,
    "activation": "relu2",
    "norm_weight": False,
    "qk_norm": True,
    "logits_softcap": 15.0,
    "embedding_norm": True,
    "zero_init_projections": True,
    "x0_shortcut": True,
    "value_embeddings": True,
    "token_smear": True,
}


def _gpt2(hidden_size: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 50257,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "dropout": 0.1,
    }


def _shape(base: dict[str, Any], width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {**base, "hidden_size": width, "num_layers": layers, "num_heads": heads, **more}


PRESETS: dict[str, dict[str, Any]] = {
    "transformer-2017": {
        "norm_placement": "post",
        "position": "sinusoidal",
        "scale_embeddings": True,
        "activation": "relu",
        "hidden_size": 512,
        "num_layers": 6,
        "num_heads": 8,
        "max_position_embeddings": 512,
        "dropout": 0.1,
    },
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "llama2-7b": _shape(_LLAMA, 4096, 32, 32, intermediate_size=11008, vocab_size=32000, max_position_embeddings=4096),
    "llama3-8b": _shape(
        _LLAMA,
        4096,
        32,
        32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
        rope_theta=500000.0,
        max_position_embeddings=8192,
    ),
    "llama3-70b": _shape(
        _LLAMA,
        8192,
        80,
        64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
        rope_theta=500000.0,
        max_position_embeddings=8192,
    ),
    "llama3.1-405b": _shape(
        _LLAMA,
        16384,
        126,
        128,
        num_key_value_heads=8,
        intermediate_size=53248,
        vocab_size=128256,
        rope_theta=500000.0,
        rope_scaling=_LLAMA31_SCALING,
        max_position_embeddings=131072,
    ),
    "llama3.2-1b": _shape(
        _LLAMA,
        2048,
        16,
        32,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128256,
        rope_theta=500000.0,
        rope_scaling=_LLAMA32_SCALING,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    "llama3.2-3b": _shape(
        _LLAMA,
        3072,
        28,
        24,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128256,
        rope_theta=500000.0,
        rope_scaling=_LLAMA32_SCALING,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    "mistral-7b": _shape(
        _LLAMA,
        4096,
        32,
        32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=32000,
        sliding_window=4096,
        max_position_embeddings=32768,
    ),
    "smollm2-135m": _shape(
        _LLAMA,
        576,
        30,
        9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        rope_theta=100000.0,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": _shape(
        _QWEN,
        896,
        24,
        14,
        num_key_value_heads=2,
        intermediate_size=4864,
        qkv_bias=True,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": _shape(
        _QWEN,
        1536,
        28,
        12,
        num_key_value_heads=2,
        intermediate_size=8960,
        qkv_bias=True,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": _shape(
        _QWEN,
        1024,
        28,
        16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        qk_norm=True,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "olmo2-1b": _shape(
        _LLAMA,
        2048,
        16,
        16,
        intermediate_size=8192,
        norm_eps=1e-6,
        norm_placement="sublayer",
        qk_norm=True,
        qk_norm_width="all",
        vocab_size=100352,
        rope_theta=500000.0,
        max_position_embeddings=4096,
    ),
    "gemma2-2b": _shape(
        _GEMMA,
        2304,
        26,
        8,
        num_key_value_heads=4,
        intermediate_size=9216,
        vocab_size=256000,
        sliding_window=4096,
        full_attention_every=2,
        attention_softcap=50.0,
        logits_softcap=30.0,
        max_position_embeddings=8192,
    ),
    "gemma3-1b": _shape(
        _GEMMA,
        1152,
        26,
        4,
        num_key_value_heads=1,
        intermediate_size=6912,
        vocab_size=262144,
        qk_norm=True,
        rope_theta=1e6,
        rope_theta_windowed=1e4,
        sliding_window=512,
        full_attention_every=6,
        max_position_embeddings=32768,
    ),
    # initial weights of about sqrt(2 / width): 0.12 was the best of 0.02, 0.06, 0.12 and 0.2 at width 128
    "modern-1m": _shape(_MODERN, 128, 4, 4, max_position_embeddings=256, init_std=0.12),
    "modern-10m": _shape(_MODERN, 320, 8, 5, max_position_embeddings=512, init_std=0.08),
    "modern-30m": _shape(_MODERN, 512, 10, 8, max_position_embeddings=1024, init_std=0.06),
    "modern-124m": _shape(_MODERN, 768, 12, 12, max_position_embeddings=2048, init_std=0.05),
    "llama-10m": _shape(_LLAMA, 320, 6, 5, max_position_embeddings=1024, tie_word_embeddings=True),
    "llama-50m": _shape(_LLAMA, 512, 12, 8, max_position_embeddings=1024, tie_word_embeddings=True),
}


_TRAINING: dict[str, dict[str, dict[str, Any]]] = {
    # zero-initialised projections and norms without weights were made for Muon: with AdamW a modern-1m came to a loss
    # of 6.2 where this brings it to 4.9
    "modern": {
        "optimizer": {"name": "muon", "weight_decay": 0.0},
        "schedule": {"name": "wsd", "decay_fraction": 0.9, "min_ratio": 0.0},
    }
}
"""Options of optimizer and schedule that a family of presets is pretrained with, where they are not the defaults."""


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of the model that the preset `name` sets.

    Raises:
        UserError: there is no such preset; the message names the nearest ones.
    """
    if name not in PRESETS:
        from difflib import get_close_matches

        near = get_close_matches(name, PRESETS, n=3, cutoff=0.4) or list(PRESETS)
        raise UserError(f"there is no model preset {name!r}; try {', '.join(near)}")
    return dict(PRESETS[name])


def preset_training(name: str) -> dict[str, dict[str, Any]]:
    """The options of `optimizer` and `schedule` that the preset `name` brings to pretraining, by group."""
    return {group: dict(values) for group, values in _TRAINING.get(name.partition("-")[0], {}).items()}


def preset_run(name: str, **options: Any) -> PretrainConfig:
    """A pretraining run of the architecture `name` with the optimizer and schedule that suit it.

    As on the command line: `preset_run("modern-1m", data={"paths": ["shards"]}, trainer={"max_steps": 500})`.

    Args:
        name: a key of `PRESETS`.
        **options: fields of `PretrainConfig`; a dict changes single fields of its group.

    Raises:
        UserError: there is no such preset, or an option does not exist or cannot be.
    """
    brought = {"model": preset_fields(name), **preset_training(name)}
    for group, values in options.items():
        both = isinstance(values, dict) and group in brought
        brought[group] = {**brought[group], **values} if both else values
    return from_plain(PretrainConfig, brought)


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The architecture `name`, with any field replaced.

    Args:
        name: a key of `PRESETS`.
        **overrides: fields of `ModelConfig`.
    """
    return from_plain(ModelConfig, {**preset_fields(name), **overrides})
