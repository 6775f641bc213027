"""Counted parameters and floating-point operations against published figures and formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from published import PUBLISHED

from lit_llm.config import preset
from lit_llm.model import Decoder
from lit_llm.planning import count_parameters, parameters_by_part, training_flops_per_token
from lit_llm.planning.counting import _count


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name: str) -> None:
    """As their authors' checkpoints have them, tied weights once."""
    assert count_parameters(preset(name)) == PUBLISHED[name]


@pytest.mark.parametrize("length", [256, 1024])
def test_gpt2_against_the_usual_estimate(length: int) -> None:
    """6 N + 12 L h T per token, N without the position embeddings. Source: PaLM, appendix B."""
    parameters = count_parameters(preset("gpt2")) - 1024 * 768
    estimate = 6 * parameters + 12 * 12 * 768 * length
    assert training_flops_per_token(preset("gpt2"), length) == pytest.approx(estimate, rel=0.005)


@pytest.mark.parametrize("softcap", [None, 10.0])
def test_a_tiny_model_by_hand(softcap: float | None) -> None:
    """Every product costs 2 operations per weight forward and 4 backward; attention is counted whole."""
    length, width, layers, heads, kv, d, inner, vocab = 24, 32, 2, 4, 2, 12, 64, 400
    config = tiny_model("llama-10m", num_key_value_heads=kv, head_dim=d, attention_softcap=softcap)
    projections = width * heads * d + 2 * width * kv * d + heads * d * width
    attention = 2 * length * heads * d  # scores, and the mix of values
    forward = 2 * (layers * (projections + 3 * width * inner + attention) + width * vocab)
    assert training_flops_per_token(config, length) == 3 * forward
    # frozen weights have no gradients; attention, which has no weights, is passed back through as before
    weights = layers * (projections + 3 * width * inner) + width * vocab
    assert training_flops_per_token(config, length, frozen=True) == 3 * forward - 2 * weights


@pytest.mark.parametrize(("name", "layers"), [("llama-10m", 5), ("modern-1m", 6), ("modern-1m", 7)])
def test_a_deep_model_follows_from_shallow_ones(name: str, layers: int) -> None:
    config = replace(tiny_model(name), num_layers=layers)
    assert training_flops_per_token(config, 16) == _count(config, 16) / 16


@pytest.mark.parametrize("name", ["gpt2", "llama-10m", "modern-1m", "transformer-2017"])
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    config = tiny_model(name, pad_vocab_to_multiple_of=64)
    model = Decoder(config)
    assert count_parameters(config) == len(torch.nn.utils.parameters_to_vector(model.parameters()))


def test_parts_of_gpt2() -> None:
    width = 768
    layer = {"attention": 4 * (width * width + width), "feed-forward": 8 * width * width + 5 * width}
    assert parameters_by_part(preset("gpt2")) == {
        "embedding": 50257 * width,  # and head
        "position embedding": 1024 * width,
        "norms": (12 * 2 + 1) * 2 * width,
        **{part: 12 * count for part, count in layer.items()},
    }


def test_parts_of_the_modern_stack() -> None:
    width, heads, vocab, layers = 128, 4, 1000, 4
    parts = parameters_by_part(preset("modern-1m", vocab_size=vocab))
    assert parts["embedding"] == parts["head"] == vocab * width
    assert parts["value embeddings"] == layers // 2 * vocab * width
    # a gate for each head with a value embedding, the smear's gate and strength, two shares for each layer
    assert parts["gates and shares"] == layers // 2 * 32 * heads + 32 + 1 + 2 * layers
    assert "norms" not in parts  # it has none with weights
