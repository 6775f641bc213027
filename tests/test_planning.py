"""Counted floating-point operations against formulas."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model

from lit_llm.config import preset
from lit_llm.model import Decoder
from lit_llm.planning import count_parameters, training_flops_per_token


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


@pytest.mark.parametrize("name", ["gpt2", "llama-10m", "modern-1m", "transformer-2017"])
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    config = tiny_model(name, pad_vocab_to_multiple_of=64)
    model = Decoder(config)
    assert count_parameters(config) == len(torch.nn.utils.parameters_to_vector(model.parameters()))
