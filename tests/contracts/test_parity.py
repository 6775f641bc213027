"""Invariant 6: logits and gradients are those of Hugging Face transformers, for every architecture both have."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import largest_difference, random_tokens
from torch import Tensor

from lit_llm.config import ModelConfig
from lit_llm.model import Decoder

# Longer than the windows and the original contexts below, so that both have something to do.
LENGTH = 40
# About 4 times the largest that was measured (1.0e-5 and 9.5e-7); every mutation below is at least 20 times over.
LOGITS_TOLERANCE = 4e-5
GRADIENT_TOLERANCE = 4e-6

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
OURS = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_heads": 4,
    "num_layers": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.05, "original_max_position_embeddings": 16}


def llama(**more: Any) -> tuple[str, dict[str, Any]]:
    return "Llama", {**SIZES, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, **more}


def scaled(kind: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return llama(rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **more})


QWEN = {**SIZES, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64}
# name: (family and options of transformers, our preset and what differs from it)
CASES: dict[str, tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "gpt2": (("GPT2", GPT2), ("gpt2", {"intermediate_size": None})),
    "llama": (llama(), ("llama3-8b", {"num_key_value_heads": 2})),
    "llama-tied": (llama(tie_word_embeddings=True), ("llama-10m", {"num_key_value_heads": 2})),
    "llama-llama3": (
        scaled("llama3", **LLAMA3),
        ("llama3-8b", {"num_key_value_heads": 2, "rope_scaling": {"type": "llama3", **LLAMA3}}),
    ),
    "llama-linear": (
        scaled("linear", factor=4.0),
        ("llama3-8b", {"num_key_value_heads": 2, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ),
    "llama-yarn": (
        scaled("yarn", **YARN),
        ("llama3-8b", {"num_key_value_heads": 2, "rope_scaling": {"type": "yarn", **YARN}}),
    ),
    "mistral": (
        ("Mistral", {**llama()[1], "sliding_window": 9}),
        ("mistral-7b", {"num_key_value_heads": 2, "sliding_window": 9}),
    ),
    "qwen2": (
        ("Qwen2", {**QWEN, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("qwen2.5-0.5b", {"num_key_value_heads": 1, "rope_theta": 1e6}),
    ),
    "qwen3": (
        ("Qwen3", {**QWEN, "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True}),
        ("qwen3-0.6b", {"num_key_value_heads": 2, "head_dim": 24, "rope_theta": 1e6}),
    ),
}

# Hugging Face's names as patterns, and ours.
LLAMA_NAMES = {
    r"model\.embed_tokens": "embedding",
    r"model\.norm": "final_norm",
    r"lm_head": "head",
    r"model\.layers": "blocks",
    r"input_layernorm": "attention_norm",
    r"post_attention_layernorm": "feedforward_norm",
    r"self_attn": "attention",
    r"\bmlp\b": "feedforward",
}
GPT2_NAMES = {
    r"transformer\.wte": "embedding",
    r"transformer\.wpe": "position_embedding",
    r"transformer\.ln_f": "final_norm",
    r"transformer\.h": "blocks",
    r"ln_1": "attention_norm",
    r"ln_2": "feedforward_norm",
    r"attn\.c_proj": "attention.o_proj",
    r"attn\.c_attn": "attention.qkv_proj",
    r"mlp\.c_fc": "feedforward.up_proj",
    r"mlp\.c_proj": "feedforward.down_proj",
}


def as_ours(family: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a transformers model (weights or gradients) under our names and in our layout."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, ours in (GPT2_NAMES if family == "GPT2" else LLAMA_NAMES).items():
            name = re.sub(pattern, ours, name)
        if family == "GPT2" and name.endswith("_proj.weight"):
            tensor = tensor.t()  # Conv1D keeps [in, out]
        if "qkv_proj" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("qkv_proj", f"{letter}_proj")] = part
        else:
            renamed[name] = tensor
    return renamed


class Reference:
    """A tiny random transformers model, and what it makes of one batch."""

    def __init__(self, transformers: ModuleType, family: str, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(
            **options, initializer_range=0.2, attn_implementation="eager", bos_token_id=0, eos_token_id=0
        )
        suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
        model = getattr(transformers, f"{family}{suffix}")(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases, which would all be alike
                    parameter += 0.3 * torch.randn(parameter.shape)
        self.tokens = random_tokens(tiny_model(vocab_size=options["vocab_size"]), 2, LENGTH)
        self.logits = model(self.tokens).logits
        next_token_loss(self.logits, self.tokens).backward()
        self.weights = as_ours(family, {name: p.detach() for name, p in model.named_parameters()})
        self.gradients = as_ours(family, {name: p.grad for name, p in model.named_parameters()})


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def our_config(case: str, **mutation: Any) -> ModelConfig:
    name, fields = CASES[case][1]
    return tiny_model(name, **{**OURS, **fields, **mutation})


def differences(reference: Reference, config: ModelConfig) -> tuple[float, float]:
    """Largest difference of the logits and of the gradients, of the same weights in our decoder."""
    model = Decoder(config).eval()
    parameters = dict(model.named_parameters())
    # a mutation may leave parameters out
    assert parameters.keys() <= reference.weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(reference.weights[name])
    logits = model(reference.tokens)
    next_token_loss(logits, reference.tokens).backward()
    gradient = max(largest_difference(p.grad, reference.gradients[name]) for name, p in parameters.items())
    return largest_difference(logits, reference.logits), gradient


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    transformers = pytest.importorskip("transformers")
    return {name: Reference(transformers, *theirs) for name, (theirs, _) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case: str, references: dict[str, Reference]) -> None:
    config = our_config(case)
    assert set(dict(Decoder(config).named_parameters())) == set(references[case].weights)
    logits, gradient = differences(references[case], config)
    assert logits < LOGITS_TOLERANCE
    assert gradient < GRADIENT_TOLERANCE


MUTATIONS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"norm_eps": 1e-3}),
    ("gpt2", {"activation": "gelu"}),
    ("llama", {"norm_eps": 1e-3}),
    ("llama", {"activation": "geglu"}),
    ("llama", {"rope_theta": 12000.0}),
    ("llama-llama3", {"rope_scaling": None}),
    ("llama-linear", {"rope_scaling": None}),
    ("llama-yarn", {"rope_scaling": None}),
    ("llama-yarn", {"rope_scaling": {"type": "yarn", **YARN, "attention_factor": 1.0}}),
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": 10}),
    ("qwen2", {"qkv_bias": False}),
    ("qwen3", {"qk_norm": False}),
    ("qwen3", {"norm_eps": 1e-3}),
]


@pytest.mark.parametrize(("case", "mutation"), MUTATIONS)
def test_a_wrong_option_is_noticed(case: str, mutation: dict[str, Any], references: dict[str, Reference]) -> None:
    logits, gradient = differences(references[case], our_config(case, **mutation))
    assert logits > 20 * LOGITS_TOLERANCE
    assert gradient > 20 * GRADIENT_TOLERANCE


def test_interleaved_rotary_pairs_are_noticed(
    references: dict[str, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    monkeypatch.setattr("lit_llm.model.attention.apply_rotary", interleaved)
    logits, gradient = differences(references["llama"], our_config("llama"))
    assert logits > 20 * LOGITS_TOLERANCE
    assert gradient > 20 * GRADIENT_TOLERANCE
