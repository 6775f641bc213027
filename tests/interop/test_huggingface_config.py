"""Hugging Face config.json files: what is published is read, and what we do not compute is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model
from published_configs import LLAMA32_SCALING, PUBLISHED

from lit_llm.config import PRESETS, ModelConfig, RopeScaling, UserError, preset
from lit_llm.interop import read_model_config
from lit_llm.interop.configuration import family_of, resolved, write_config


def read(folder: Path, values: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return read_model_config(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_the_preset_of_that_name(name: str, tmp_path: Path) -> None:
    assert resolved(read(tmp_path, PUBLISHED[name])) == resolved(preset(name))


def changed(name: str, **values: Any) -> dict[str, Any]:
    return {**PUBLISHED[name], **values}


def test_old_and_new_keys_of_positions(tmp_path: Path) -> None:
    """The new ones are what transformers 5 writes."""
    old = PUBLISHED["llama3.2-1b"]
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new |= {"dtype": "bfloat16", "rope_parameters": {**LLAMA32_SCALING, "rope_theta": 500000.0}}
    assert read(tmp_path, new) == read(tmp_path, old)
    assert read(tmp_path, {**new, "rope_theta": 7.0}).rope_theta == 500000.0
    assert read(tmp_path, {**new, "rope_scaling": LLAMA32_SCALING}) == read(tmp_path, old)
    del new["rope_parameters"]["rope_theta"]
    assert read(tmp_path, {**new, "rope_theta": 7.0}).rope_theta == 7.0
    assert read(tmp_path, new).rope_theta == 10000.0  # which is what its absence means to transformers
    linear = read(tmp_path, changed("llama2-7b", rope_scaling={"type": "linear", "factor": 2.0}))
    assert linear.rope_scaling == RopeScaling("linear", factor=2.0)


def test_what_scaling_takes_from_elsewhere(tmp_path: Path) -> None:
    def scaling(**values: Any) -> RopeScaling | None:
        return read(tmp_path, changed("llama2-7b", rope_scaling=values)).rope_scaling

    assert scaling(rope_type="yarn", factor=4.0) == RopeScaling("yarn", 4.0, original_max_position_embeddings=4096)
    assert scaling(rope_type="yarn", original_max_position_embeddings=1024) == RopeScaling("yarn", 4.0, 1024)
    with_temperature = scaling(rope_type="yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0)
    assert with_temperature is not None
    assert with_temperature.attention_factor == 1.0
    assert scaling(rope_type="default") is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another activation": (changed("llama2-7b", hidden_act="relu"), "hidden_act 'relu' is not supported"),
    "another activation of GPT-2": (changed("gpt2", activation_function="mish"), "activation_function 'mish'"),
    "scores by layer": (
        changed("gpt2", scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx True is not supported",
    ),
    "scores unscaled": (changed("gpt2", scale_attn_weights=False), "scale_attn_weights False"),
    "cross attention": (changed("gpt2", add_cross_attention=True), "add_cross_attention True"),
    "several dropouts": (changed("gpt2", embd_pdrop=0.0), r"only one dropout .* embd_pdrop 0\.0"),
    "half of the rotation": (changed("llama2-7b", partial_rotary_factor=0.5), r"partial_rotary_factor 0\.5"),
    "half of the rotation, inside": (
        changed("llama2-7b", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        r"partial_rotary_factor 0\.5",
    ),
    "interleaved": (changed("smollm2-135m", rope_interleaved=True), "rope_interleaved True"),
    "another scaling": (
        changed("llama2-7b", rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope_type 'dynamic' is not supported",
    ),
    "an option of another scaling": (
        changed("llama2-7b", rope_scaling={"type": "linear", "factor": 2.0, "long_factor": [1.0]}),
        "'linear' has no option long_factor",
    ),
    "scaling without a factor": (changed("llama2-7b", rope_scaling={"type": "linear"}), "'linear' has no factor"),
    "yarn untruncated": (
        changed("llama2-7b", rope_scaling={"type": "yarn", "factor": 2.0, "truncate": False}),
        "truncate False",
    ),
    "scaling that is text": (changed("llama2-7b", rope_scaling="linear"), "rope_scaling is 'linear'; it must be"),
    "old and new scaling that differ": (
        changed("llama3.2-1b", rope_parameters={**LLAMA32_SCALING, "factor": 8.0}),
        "rope_scaling and rope_parameters contradict each other",
    ),
    "a window in upper layers": (
        changed("qwen2.5-0.5b", use_sliding_window=True, max_window_layers=12),
        "a sliding window in some layers only",
    ),
    "layers of several types": (
        changed("qwen3-0.6b", layer_types=["sliding_attention", "full_attention"] * 14),
        "a sliding window in some layers only",
    ),
    "windows in another order": (
        changed("gemma2-2b", layer_types=["full_attention", "sliding_attention"] * 13),
        "layer_types must begin with a layer that has a sliding window",
    ),
    "windows in no order": (
        changed("gemma3-1b", layer_types=["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 22),
        "every n-th layer full_attention",
    ),
    "both directions": (changed("gemma3-1b", use_bidirectional_attention=True), "use_bidirectional_attention True"),
    "a cap that transformers passes over": (changed("gemma3-1b", attn_logit_softcapping=50.0), "softcapping 50"),
    "stretched windows": (
        changed("gemma3-1b", rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
        "stretched positions in layers with a sliding window",
    ),
    "one group of positions": (
        changed("gemma3-1b", rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        "one group for full_attention and one for sliding_attention",
    ),
    "quantized": (changed("llama2-7b", quantization_config={"quant_method": "gptq"}), "quantization_config {'quant_"),
    "what nobody knows": (changed("llama2-7b", flux=1, num_experts=8), "the options flux, num_experts of this model"),
    "code of its own": (changed("llama2-7b", auto_map={"AutoModel": "x.py"}), "the option auto_map of this model"),
    "a number as text": (changed("llama2-7b", hidden_size="4096"), "config.json: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_do_not_compute_is_refused_by_name(name: str, tmp_path: Path) -> None:
    values, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, values)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


# A tiny model of each preset's architecture, and the type that transformers has for it.
TYPES = {
    "gpt2": "gpt2",
    "llama2-7b": "llama",
    "llama3-8b": "llama",
    "llama3.2-1b": "llama",
    "llama3.2-3b": "llama",
    "llama-10m": "llama",
    "llama-50m": "llama",
    "smollm2-135m": "llama",
    "mistral-7b": "mistral",
    "qwen2.5-0.5b": "qwen2",
    "qwen2.5-1.5b": "qwen2",
    "qwen3-0.6b": "qwen3",
    "olmo2-1b": "olmo2",
    "gemma2-2b": "gemma2",
    "gemma3-1b": "gemma3_text",
    "gpt2-medium": "gpt2",
    "gpt2-large": "gpt2",
    "gpt2-xl": "gpt2",
}


@pytest.mark.parametrize("name", PRESETS)
def test_which_presets_transformers_has(name: str, tmp_path: Path) -> None:
    config = tiny_model(name)
    family, reason = family_of(config)
    assert (None if family is None else family.model_type) == TYPES.get(name)
    if family is None:
        assert "transformers has no such architecture" in reason
        return
    assert read(tmp_path, write_config(config, family)) == config


def test_the_reason_names_what_is_lacking() -> None:
    _, reason = family_of(tiny_model("llama-10m", logits_softcap=15.0, embedding_norm=True))
    assert reason.endswith("the nearest, llama, is without logits_softcap 15.0, embedding_norm True")


def test_fields_without_a_word_for_them_are_kept(tmp_path: Path) -> None:
    config = tiny_model(
        "llama-10m",
        dropout=0.2,
        init_std=0.05,
        zero_init_projections=True,
        pad_vocab_to_multiple_of=64,
        vocab_size=390,
        head_dim=None,
        num_key_value_heads=None,
        intermediate_size=None,
    )
    family, _ = family_of(config)
    assert family is not None
    values = write_config(config, family)
    assert values["vocab_size"] == 390
    assert values["initializer_range"] == 0.05
    assert read(tmp_path, values) == config
    # a file that someone has changed
    with pytest.raises(UserError, match="the lit_llm group contradicts the rest of the file about head_dim"):
        read(tmp_path, {**values, "head_dim": 16})


def test_what_has_no_effect_is_no_difference() -> None:
    family, _ = family_of(tiny_model("gpt2", rope_theta=5.0))
    assert family is not None
    assert family.model_type == "gpt2"
    config = tiny_model("llama-10m", rope_scaling={"type": "linear", "factor": 2.0, "high_freq_factor": 7.0})
    family, _ = family_of(config)
    assert family is not None


def test_a_width_that_heads_do_not_divide_is_mistral_s(tmp_path: Path) -> None:
    """transformers' Llama refuses it, and Mistral without a window is Llama."""
    config = tiny_model("llama-10m", num_heads=3, head_dim=8)
    family, _ = family_of(config)
    assert family is not None
    assert family.model_type == "mistral"
    assert read(tmp_path, write_config(config, family)) == config
    assert replace(config, sliding_window=4) == read(tmp_path, {**write_config(config, family), "sliding_window": 4})
