"""Invariant 6: logits and gradients are those of Hugging Face transformers, for every architecture both have.

Everything goes through folders on disk: theirs are written by `save_pretrained` and read by us, ours are written by
`save_model_folder` and read by `AutoModelForCausalLM`.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import largest_difference, random_tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_llm.config import ModelConfig, RopeScaling
from lit_llm.interop import load_weights, read_model_config, save_model_folder
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer

# Longer than the windows and the original contexts below, so that both have something to do.
LENGTH = 40
# About 3 times the largest that was measured (1.6e-5 and 1.9e-6); every mutation below is at least 20 times over.
LOGITS_TOLERANCE = 5e-5
GRADIENT_TOLERANCE = 6e-6

SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.05, "original_max_position_embeddings": 16}
QWEN = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
GEMMA = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9, "num_hidden_layers": 4}
LAYERED = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GPT2 = {"vocab_size": 400, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64}


def scaled(kind: str, **more: Any) -> dict[str, Any]:
    return {**SIZES, "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


# name: family and options of transformers
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 80, "activation_function": "gelu"}),
    "llama": ("Llama", SIZES),
    "llama-tied": ("Llama", {**SIZES, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biased": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama-wide": ("Llama", {**SIZES, "head_dim": 24}),
    "llama-llama3": ("Llama", scaled("llama3", **LLAMA3)),
    "llama-llama3-factors": ("Llama", scaled("llama3", **{**LLAMA3, "low_freq_factor": 0.3, "high_freq_factor": 2.0})),
    "llama-linear": ("Llama", scaled("linear", factor=4.0)),
    "llama-yarn": ("Llama", scaled("yarn", **YARN)),
    "llama-yarn-mscale": ("Llama", scaled("yarn", **YARN, mscale=2.0, mscale_all_dim=0.5)),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 9}),
    "qwen2": ("Qwen2", {**QWEN, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {**QWEN, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {**QWEN, "head_dim": 24, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", SIZES),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}),
    "gemma2-plain": ("Gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("Gemma3Text", {**GEMMA, "sliding_window_pattern": 3, "rope_parameters": LAYERED}),
    "qwen3-biased": ("Qwen3", {**QWEN, "head_dim": 16, "attention_bias": True}),
}


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    return pytest.importorskip("transformers")


class Reference:
    """A tiny random transformers model in a folder, and what it makes of one batch."""

    def __init__(self, transformers: ModuleType, folder: Path, family: str, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(
            **options, initializer_range=0.2, attn_implementation="eager", bos_token_id=0, eos_token_id=0
        )
        suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
        model = getattr(transformers, f"{family.removesuffix('Text')}{suffix}")(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases, which would all be alike
                    parameter += 0.3 * torch.randn(parameter.shape)
        self.folder = folder / "theirs"
        model.save_pretrained(self.folder)
        self.tokens = random_tokens(tiny_model(vocab_size=400), 2, LENGTH)
        self.logits = model(self.tokens).logits
        next_token_loss(self.logits, self.tokens).backward()
        # gradients are laid out as the weights are, so that the same reader gives them our names
        gradients = folder / "gradients"
        gradients.mkdir()
        (gradients / "config.json").write_text((self.folder / "config.json").read_text())
        save_file({name: p.grad.contiguous() for name, p in model.named_parameters()}, gradients / "model.safetensors")
        self.config = read_model_config(self.folder)
        self.weights = load_weights(self.folder, self.config)
        self.gradients = load_weights(gradients, self.config)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def differences(reference: Reference, config: ModelConfig) -> tuple[float, float]:
    """Largest difference of the logits and of the gradients, of the same weights in our decoder."""
    model = Decoder(config).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():  # a mutation may leave parameters out
            parameter.copy_(reference.weights[name])
    logits = model(reference.tokens)
    next_token_loss(logits, reference.tokens).backward()
    gradient = max(largest_difference(p.grad, reference.gradients[name]) for name, p in parameters.items())
    return largest_difference(logits, reference.logits), gradient


@pytest.fixture(scope="module")
def references(transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    return {name: Reference(transformers, tmp_path_factory.mktemp(name), *case) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case: str, references: dict[str, Reference]) -> None:
    logits, gradient = differences(references[case], references[case].config)
    assert logits < LOGITS_TOLERANCE
    assert gradient < GRADIENT_TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_transformers_reads(
    case: str,
    references: dict[str, Reference],
    transformers: ModuleType,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    """No weight is missing or left over, and nothing is lost on the way there and back."""
    reference = references[case]
    family = CASES[case][0].lower().replace("text", "_text")
    if family == "qwen2":  # whose folders transformers reads with Qwen's tokenizer only
        tokenizer = Tokenizer.load(save_foreign_tokenizer("qwen", tmp_path / "tokenizer"))
    assert save_model_folder(tmp_path, reference.config, reference.weights, tokenizer, form="huggingface") == family
    # in some versions the default attention leaves a soft cap of the scores out
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    assert type(model).__name__ == json.loads((reference.folder / "config.json").read_text())["architectures"][0]
    with torch.no_grad():
        assert largest_difference(model.eval()(reference.tokens).logits, reference.logits) < LOGITS_TOLERANCE
    stored, written = load_file(reference.folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert stored.keys() == written.keys()
    for name, tensor in stored.items():
        assert torch.equal(tensor, written[name]), name
    assert read_model_config(tmp_path) == reference.config


MUTATIONS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"norm_eps": 1e-3}),
    ("gpt2", {"activation": "gelu"}),
    ("llama", {"norm_eps": 1e-3}),
    ("llama", {"activation": "geglu"}),
    ("llama", {"rope_theta": 12000.0}),
    ("llama-llama3", {"rope_scaling": None}),
    ("llama-llama3-factors", {"rope_scaling": RopeScaling("llama3", **{**LLAMA3, "low_freq_factor": 0.3})}),
    ("llama-llama3-factors", {"rope_scaling": RopeScaling("llama3", **{**LLAMA3, "high_freq_factor": 2.0})}),
    ("llama-linear", {"rope_scaling": None}),
    ("llama-yarn", {"rope_scaling": None}),
    ("llama-yarn", {"rope_scaling": RopeScaling("yarn", **YARN, attention_factor=1.0)}),
    ("llama-yarn-mscale", {"rope_scaling": RopeScaling("yarn", **YARN)}),
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": 10}),
    ("qwen2", {"qkv_bias": False}),
    ("qwen2-window", {"sliding_window": None}),
    ("qwen3", {"qk_norm": False}),
    ("qwen3", {"norm_eps": 1e-3}),
    ("olmo2", {"norm_placement": "pre"}),
    ("olmo2", {"norm_eps": 1e-3}),
    ("gemma2", {"norm_unit_offset": False}),
    ("gemma2", {"scale_embeddings": False}),
    ("gemma2", {"query_pre_attention_scalar": None}),
    ("gemma2", {"attention_softcap": None}),
    ("gemma2", {"logits_softcap": None}),
    ("gemma2", {"activation": "geglu"}),
    ("gemma2", {"sliding_window": 10}),
    ("gemma2", {"full_attention_every": 3}),
    ("gemma2-plain", {"query_pre_attention_scalar": None}),
    ("gemma3", {"rope_theta_windowed": None}),
    ("gemma3", {"rope_scaling": None}),
    ("gemma3", {"full_attention_every": 2}),
    ("gemma3", {"sliding_window": 8}),
]


@pytest.mark.parametrize(("case", "mutation"), MUTATIONS)
def test_a_wrong_option_is_noticed(case: str, mutation: dict[str, Any], references: dict[str, Reference]) -> None:
    logits, gradient = differences(references[case], replace(references[case].config, **mutation))
    assert logits > 20 * LOGITS_TOLERANCE
    assert gradient > 20 * GRADIENT_TOLERANCE


def test_interleaved_rotary_pairs_are_noticed(
    references: dict[str, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    monkeypatch.setattr("lit_llm.model.attention.apply_rotary", interleaved)
    logits, gradient = differences(references["llama"], references["llama"].config)
    assert logits > 20 * LOGITS_TOLERANCE
    assert gradient > 20 * GRADIENT_TOLERANCE
