"""Architectures as data: what is impossible is refused, and what is written is read back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lit_llm.config import PRESETS, ModelConfig, RopeScaling, UserError, from_plain, preset, to_plain
from lit_llm.config.model import MOST

IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    *[
        ({name: 0}, rf"model\.{name} is 0; it must be at least 1$")
        for name in ("hidden_size", "num_layers", "num_heads", "max_position_embeddings", "pad_vocab_to_multiple_of")
    ],
    *[
        ({name: 0}, rf"model\.{name} is 0; it must be at least 1, or null")
        for name in ("vocab_size", "num_key_value_heads", "head_dim", "intermediate_size", "sliding_window")
    ],
    *[({name: 0.0}, rf"model\.{name} is 0\.0; it must be above 0") for name in ("attention_softcap", "logits_softcap")],
    ({"query_pre_attention_scalar": 0.0}, r"model\.query_pre_attention_scalar is 0\.0; it must be above 0"),
    ({"rope_theta_windowed": 0.0}, r"model\.rope_theta_windowed is 0\.0; it must be above 1"),
    ({"rope_theta_windowed": 1e4}, r"model\.rope_theta_windowed has no effect without model\.position rope"),
    ({"norm_unit_offset": True}, r"model\.norm_unit_offset needs model\.norm rmsnorm"),
    ({"qk_norm_width": "all"}, r"model\.qk_norm_width all has no effect without model\.qk_norm"),
    ({"full_attention_every": 2}, r"model\.full_attention_every has no effect without model\.sliding_window"),
    ({"full_attention_every": 1, "sliding_window": 8}, r"full_attention_every is 1; it must be at least 2, or null"),
    *[({name: -1.0}, rf"model\.{name} is -1\.0; it must be above 0") for name in ("norm_eps", "init_std")],
    *[({"rope_theta": value}, rf"model\.rope_theta is {value}; it must be above 1") for value in (-1.0, 0, 1.0)],
    ({"dropout": 1.0}, r"model\.dropout is 1\.0"),
    ({"dropout": -0.1}, r"model\.dropout is -0\.1"),
    ({"attention_dropout": 1.0}, r"model\.attention_dropout is 1\.0"),
    (
        {"hidden_size": 100, "num_heads": 12},
        r"model\.hidden_size 100 does not divide by model\.num_heads 12; .*head_dim",
    ),
    ({"num_heads": 12, "num_key_value_heads": 5}, r"num_heads 12 does not divide by model\.num_key_value_heads 5"),
    ({"num_heads": 2, "num_key_value_heads": 4}, r"num_heads 2 does not divide by model\.num_key_value_heads 4"),
    ({"position": "rope", "head_dim": 7}, r"even head width, not 7"),
    ({"position": "sinusoidal", "hidden_size": 33, "num_heads": 3}, r"even model\.hidden_size, not 33"),
    ({"rope_scaling": RopeScaling()}, r"model\.rope_scaling has no effect without model\.position rope"),
    ({"norm_weight": False}, r"model\.norm_bias needs model\.norm_weight"),
    *[({name: most + 1}, rf"model\.{name} is {most + 1}; it must be at most {most:,}$") for name, most in MOST.items()],
    ({"num_layers": 2**62}, r"model\.num_layers is 4611686018427387904; it must be at most 10,000$"),
    ({"num_layers": True}, r"model\.num_layers is True; it must be a whole number$"),
    ({"num_layers": 4.0}, r"model\.num_layers is 4\.0; it must be a whole number$"),
    ({"num_layers": None}, r"model\.num_layers is None; it must be a whole number$"),
    ({"hidden_size": "64"}, r"model\.hidden_size is '64'; it must be a whole number$"),
    ({"head_dim": 8.0}, r"model\.head_dim is 8\.0; it must be a whole number or null$"),
    ({"norm_eps": True}, r"model\.norm_eps is True; it must be a finite number$"),
    ({"qk_norm": 1}, r"model\.qk_norm is 1; it must be true or false$"),
    ({"activation": "mish"}, r"model\.activation is 'mish'; it must be relu or gelu or "),
    ({"activation": ["relu"] * 99}, r"model\.activation is \['relu', .{40,60}\.\.\.; it must be relu or"),
    (
        {"rope_scaling": {"type": "linear"}},
        r"model\.rope_scaling is \{'type': 'linear'\}; it must be a group of options",
    ),
    *[
        ({name: value}, rf"model\.{name} is {value}; it must be a finite number( or null)?$")
        for name in ("rope_theta", "norm_eps", "init_std", "dropout", "logits_softcap", "rope_theta_windowed")
        for value in (math.nan, math.inf)
    ],
    ({"rope_theta": 10**400}, r"model\.rope_theta is 10{59}\.\.\.; it must be a finite number$"),
]


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE)
def test_impossible_combinations_name_the_option(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 0.5}, r"rope_scaling\.factor is 0\.5; it must be at least 1"),
        ({"type": "llama3"}, r"'llama3' needs model\.rope_scaling\.original_max_position_embeddings"),
        ({"type": "yarn"}, r"'yarn' needs model\.rope_scaling\.original_max_position_embeddings"),
        (
            {"type": "llama3", "original_max_position_embeddings": 8, "low_freq_factor": 4.0},
            r"high_freq_factor must be above low_freq_factor",
        ),
        ({"factor": math.nan}, r"rope_scaling\.factor is nan; it must be a finite number"),
        ({"factor": True}, r"rope_scaling\.factor is True; it must be a finite number"),
        ({"type": "ntk"}, r"rope_scaling\.type is 'ntk'; it must be linear or llama3 or yarn"),
        ({"type": "yarn", "original_max_position_embeddings": -8}, r"embeddings is -8; it must be at least 1"),
        ({"type": "yarn", "original_max_position_embeddings": 8, "beta_slow": 0.0}, r"beta_slow must be above 0"),
        ({"attention_factor": -1.0}, r"attention_factor is -1\.0; it must be above 0"),
    ],
)
def test_impossible_rope_scaling_names_the_option(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RopeScaling(**fields)


def test_what_is_left_open_is_resolved() -> None:
    config = ModelConfig(hidden_size=96, num_heads=6)
    assert (config.kv_heads, config.width_per_head, config.feedforward_size) == (6, 16, 384)
    config = ModelConfig(hidden_size=96, num_heads=6, num_key_value_heads=2, head_dim=20, activation="swiglu")
    assert (config.kv_heads, config.width_per_head, config.feedforward_size) == (2, 20, 256)
    assert ModelConfig(hidden_size=100, num_heads=12, head_dim=8).width_per_head == 8
    assert ModelConfig(norm="rmsnorm", norm_weight=False).norm_bias is False


@pytest.mark.parametrize(
    ("size", "multiple", "rows"), [(400, 1, 400), (390, 64, 448), (384, 64, 384), (50257, 128, 50304)]
)
def test_rows_of_the_embedding(size: int, multiple: int, rows: int) -> None:
    assert ModelConfig(vocab_size=size, pad_vocab_to_multiple_of=multiple).padded_vocab_size == rows


def test_an_unset_vocabulary_is_said() -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size is not set and no tokenizer"):
        _ = ModelConfig().padded_vocab_size


def test_a_preset_with_fields_replaced() -> None:
    config = preset("llama3.2-1b", num_layers=3, rope_scaling={"type": "linear", "factor": 2.0})
    assert (config.num_layers, config.hidden_size, config.num_key_value_heads) == (3, 2048, 8)
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert preset("llama3.2-1b").rope_scaling == RopeScaling("llama3", 32.0, 8192, 1.0, 4.0)
    assert preset("llama3.2-1b", rope_scaling=None).rope_scaling is None
    # presets are not worn out by use
    assert preset("llama3.2-1b").num_layers == 16


def test_gpt2_is_the_default_shape() -> None:
    assert preset("gpt2", vocab_size=None, dropout=0.0) == ModelConfig()


@pytest.mark.parametrize(
    ("name", "near"),
    [("gpt-2", "gpt2"), ("llama3-8B", "llama3-8b"), ("qwen3-0.6", "qwen3-0.6b"), ("modern", "modern-1m")],
)
def test_an_unknown_preset_names_the_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"there is no model preset '{name}'; try .*{near}"):
        preset(name)


def test_a_preset_unlike_any_names_all() -> None:
    with pytest.raises(UserError) as error:
        preset("zzz")
    assert all(name in str(error.value) for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_plain_dict_through_json_is_the_same_configuration(name: str) -> None:
    config = preset(name)
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(ModelConfig, plain) == config
    assert isinstance(from_plain(ModelConfig, plain).rope_scaling, RopeScaling | None)


def test_unknown_options_are_named() -> None:
    with pytest.raises(UserError, match=r"ModelConfig has no option n_head, n_layer$"):
        from_plain(ModelConfig, {"n_layer": 2, "hidden_size": 8, "n_head": 2})
    with pytest.raises(UserError, match=r"ModelConfig has no option num_layer$"):
        preset("gpt2", num_layer=3)
    with pytest.raises(UserError, match=r"RopeScaling has no option rope_type$"):
        preset("llama3-8b", rope_scaling={"rope_type": "linear"})
