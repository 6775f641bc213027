"""Hugging Face config.json files: what is published is read, and what we do not compute is refused by name."""

from __future__ import annotations

import json
import math
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
    "a number as text": (changed("llama2-7b", hidden_size="4096"), "hidden_size is '4096'; it must be a whole number"),
    "a wavelength as text": (changed("llama2-7b", rope_theta="1e4"), "rope_theta is '1e4'; it must be a finite number"),
    "no wavelength": (changed("llama2-7b", rope_theta=0), r"rope_theta is 0\.0; it must be above 1"),
    "a wavelength that is no number": (
        changed("llama2-7b", rope_theta=math.nan),
        "rope_theta is nan; it must be a fin",
    ),
    "an infinite wavelength": (changed("gemma3-1b", rope_local_base_freq=math.inf), "base_freq is inf; it must be a f"),
    "a wavelength that is true": (changed("llama2-7b", rope_theta=True), "rope_theta is True; it must be a finite"),
    "scaling by no number": (
        changed("llama2-7b", rope_scaling={"type": "linear", "factor": math.nan}),
        "factor is nan; it must be a finite number",
    ),
    "scaling by text": (
        changed("llama2-7b", rope_scaling={"type": "yarn", "factor": "2", "mscale": 1.0, "mscale_all_dim": 1.0}),
        "factor is '2'; it must be a finite number",
    ),
    "scaling of a strange type": (changed("llama2-7b", rope_scaling={"type": ["linear"]}), r"rope_type \['linear'\]"),
    "two original lengths": (
        changed("llama3.2-1b", original_max_position_embeddings=4096),
        "original_max_position_embeddings is 4096, and 8192 in the rotary options",
    ),
    "a thousand million layers": (
        changed("llama2-7b", num_hidden_layers=10**9),
        "1000000000; it must be at most 10,000",
    ),
    "a thousand million layers with windows": (
        changed("qwen2.5-0.5b", num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000; it must be a whole number from 1 to 10,000",
    ),
    "as many that alternate": (changed("gemma2-2b", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "layers that are true": (changed("qwen3-0.6b", num_hidden_layers=True), "num_hidden_layers is True; it must be"),
    "four layers and a bit": (changed("llama2-7b", num_hidden_layers=4.0), r"num_layers is 4\.0; it must be a whole"),
    "layers below none": (changed("llama2-7b", num_hidden_layers=-1), "num_layers is -1; it must be at least 1"),
    "a width beyond all": (
        changed("llama2-7b", hidden_size=2**62),
        "hidden_size is 4611686018427387904; it must be at",
    ),
    "positions beyond all": (
        changed("llama2-7b", max_position_embeddings=2**40),
        "embeddings is 1099511627776; it must",
    ),
    "kinds of layers that are none": (changed("qwen3-0.6b", layer_types=5), "layer_types must be a list of text"),
    "kinds of too few layers": (changed("gemma2-2b", layer_types=["full_attention"]), "one for each of the 26 layers"),
    "a pattern of no layer": (
        changed("gemma3-1b", sliding_window_pattern=0),
        "sliding_window_pattern is 0; it must be",
    ),
    "an activation that is a list": (
        changed("llama2-7b", hidden_act=["silu"]),
        r"hidden_act \['silu'\] is not supported",
    ),
    "architectures that are a number": (changed("llama2-7b", architectures=5), "has a value that cannot be read: "),
    "a group of ours that is a list": (changed("llama2-7b", lit_llm=[1]), r"lit_llm is \[1\]; it must be a group"),
    "a type that is a list": (changed("llama2-7b", model_type=["llama"]), r"has model_type \['llama'\]; only lit_llm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_do_not_compute_is_refused_by_name(name: str, tmp_path: Path) -> None:
    values, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, values)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


HARMLESS: dict[str, Any] = {
    "_model_name_or_path": "somewhere/else",
    "_name": "a model",
    "adapter_path": None,
    "alibi": False,
    "architecture_version": 2.0,
    "attention_dropout": 0.1,
    "attn_config": None,
    "auto_map": {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"},
    "aux_loss_coef": 0.001,
    "base_model": "meta-llama/Llama-2-7b-hf",
    "batch_size": 64,
    "clip_qkv": None,
    "creation_date": "2024-01-01",
    "datasets": ["c4", "pile"],
    "embedding_multiplier": 1.0,
    "final_logit_softcapping": None,
    "flash_attention": True,
    "hidden_dropout_prob": 0.1,
    "image_token_index": 32000,
    "drop_path_rate": 0.1,
    "final_logit_scale": None,
    "initializer_factor": 1,
    "is_causal": True,
    "language": ["en", "de"],
    "layer_options": [None, []],
    "layer_types": ["full_attention"] * 32,
    "layerdrop": 0.05,
    "learning_rate": 3e-4,
    "license": "llama2",
    "logit_scale": 1.0,
    "max_sequence_length": 4096,
    "model_max_length": 4096,
    "moe": {},
    "num_experts": 0,
    "output_router_logits": False,
    "parallel_attn": False,
    "provenance": {"team": "us", "commit": "abc123", "run": {"seed": 1}},
    "quantization": None,
    "residual_multiplier": 1,
    "rope_scaling_type": "default",
    "seq_length": 4096,
    "sliding_window": None,
    "tokenizer_name": "llama",
    "training_args": {"lr": 3e-4, "weight_decay": 0.1, "bf16": True},
    "unk_token_id": 0,
    "unsloth_training": True,
    "use_alibi": False,
    "use_bias": False,
    "use_flash_attn": True,
    "use_parallel_residual": False,
    "use_post_norm": False,
    "use_scaled_rope": False,
    "scale_embedding": False,
    "no_norm": False,
    "use_qk_norm": False,
    "version": 1.1,
    "wandb_run": "https://wandb.ai/x",
    "weight_decay": 0.1,
}
"""Keys of no class of transformers, with values under which Llama stays Llama."""


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_logit_passes_with_a_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = read(tmp_path, PUBLISHED["llama2-7b"])
    assert capsys.readouterr().err == ""
    assert read(tmp_path, changed("llama2-7b", **{name: HARMLESS[name]})) == usual
    line = f"{tmp_path / 'config.json'}: passed over, as not changing the logits: {name}\n"
    assert capsys.readouterr().err == line
    read_model_config(tmp_path)
    assert capsys.readouterr().err == ""  # once for each process


def test_all_that_changes_no_logit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(HARMLESS) >= 35
    read(tmp_path, changed("llama2-7b", **HARMLESS, **{"a\nname": None, "x" * 200: None}))
    (line,) = capsys.readouterr().err.splitlines()
    assert all(f" {name}" in line for name in HARMLESS)
    assert r"'a\nname'" in line
    assert len(line) < 1_500


LOGITS: dict[str, Any] = {
    "alibi": True,
    "attention_multiplier": 0.0078,
    "attention_scale": 0.0,
    "attention_type": "linear",
    "apply_layernorm": 0,
    "attn_dropout_rescale": 2.0,
    "attn_logit_softcapping": 50.0,
    "causal_mask": False,
    "clip_qkv": 8.0,
    "dim_model_base": 256,
    "embedding_multiplier": 12.0,
    "expert_layers": {"count": 4},
    "ffn_act": "gelu",
    "final_logit_softcapping": 30.0,
    "flux": "geglu",
    "group": {"inside": {"deep": 2}},
    "is_causal": False,
    "layer_types": ["sliding_attention"] * 32,
    "local_attention_length": 256,
    "logit_scale": 0.0625,
    "mup_scale_token_id": 3,
    "mup_width_multiplier": 2,
    "no_rope": True,
    "no_rope_layers": [0],
    "norm_type": "none",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 1,
    "output_multiplier": 0.5,
    "parallel_attn": True,
    "partial_rotary_factor": 0.5,
    "position_embedding_type": "alibi",
    "quantization": "fp8",
    "residual_multiplier": 0.22,
    "residual_connection": False,
    "residual_scale": 0,
    "rotary": False,
    "rotary_dim": 0,
    "rotary_pct": 0.25,
    "rope_layers": [True, False],
    "scale_depth": 1.4,
    "scale_emb": 12,
    "scale_qk": False,
    "skipped_layers": [0],
    "sliding_window": 4096,
    "use_gated_mlp": False,
    "use_norm": False,
    "use_parallel_residual": True,
    "use_qk_norm": True,
    "use_rope": False,
}
"""Keys that other architectures, or other programs, compute with."""


@pytest.mark.parametrize("name", LOGITS)
def test_what_could_change_logits_is_refused_by_name(name: str, tmp_path: Path) -> None:
    assert len(LOGITS) >= 20
    with pytest.raises(UserError, match=name) as error:
        read(tmp_path, changed("llama2-7b", **{name: LOGITS[name]}))
    assert "not supported" in str(error.value)


def test_options_of_an_architecture_are_honoured_and_no_leftovers(tmp_path: Path) -> None:
    """The same names, where the architecture has them."""
    assert read(tmp_path, changed("llama2-7b", mlp_bias=True)).mlp_bias is True
    assert read(tmp_path, changed("mistral-7b", sliding_window=64)).sliding_window == 64
    assert read(tmp_path, changed("gemma2-2b", final_logit_softcapping=7.5)).logits_softcap == 7.5
    assert read(tmp_path, changed("llama2-7b", mlp_bias=None, tie_word_embeddings=None)) == read(
        tmp_path, PUBLISHED["llama2-7b"]
    )


def test_dropouts_of_their_training_pass_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read(tmp_path, changed("gpt2", embd_pdrop=0.0, attn_pdrop=0.1))
    assert (config.dropout, config.attention_dropout) == (0.1, None)
    assert capsys.readouterr().err.endswith("passed over, as not changing the logits: embd_pdrop\n")
    config = read(tmp_path, changed("gpt2", attn_pdrop=0.0))
    assert (config.dropout, config.attention_dropout) == (0.1, 0.0)
    family, _ = family_of(config)
    assert family is not None
    assert (write_config(config, family)["resid_pdrop"], write_config(config, family)["attn_pdrop"]) == (0.1, 0.0)


def test_an_original_length_beside_the_scaling(tmp_path: Path) -> None:
    scaling = {key: value for key, value in LLAMA32_SCALING.items() if key != "original_max_position_embeddings"}
    values = changed("llama3.2-1b", rope_scaling=scaling, original_max_position_embeddings=8192)
    assert read(tmp_path, values) == read(tmp_path, PUBLISHED["llama3.2-1b"])
    assert read(tmp_path, changed("llama2-7b", original_max_position_embeddings=8192)).rope_scaling is None


# A tiny model of each preset's architecture, and the type that transformers has for it.
TYPES = {
    "gpt2": "gpt2",
    "llama2-7b": "llama",
    "llama3-8b": "llama",
    "llama3-70b": "llama",
    "llama3.1-405b": "llama",
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
