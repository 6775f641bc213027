"""Sinusoidal and rotary positions."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder, random_tokens

from lit_llm.config import RopeScaling
from lit_llm.model.position import RotaryTables, apply_rotary, rotary_frequencies, sinusoidal_table


@pytest.mark.parametrize(("position", "dimension"), [(0, 0), (0, 1), (1, 0), (1, 1), (37, 6), (37, 7), (499, 510)])
def test_sinusoidal_table_is_the_formula_of_2017(position: int, dimension: int) -> None:
    angle = position / 10000 ** (2 * (dimension // 2) / 512)
    expected = math.cos(angle) if dimension % 2 else math.sin(angle)
    assert sinusoidal_table(512, 512)[position, dimension].item() == pytest.approx(expected, abs=1e-6)


def test_embeddings_of_the_2017_model_by_hand() -> None:
    model = random_decoder(tiny_model("transformer-2017"))
    tokens = random_tokens(model.config, 1, 5)
    x = model._embed(tokens, torch.arange(5), None)
    expected = model.embedding.weight[tokens[0, 3]] * math.sqrt(32) + sinusoidal_table(32, 32)[3]
    assert largest_difference(x[0, 3], expected) < 1e-5


def test_rotary_turns_dimension_i_with_the_one_half_a_head_further() -> None:
    config = tiny_model("llama-10m", head_dim=8, rope_theta=100.0)
    cos, sin = RotaryTables(config)(torch.tensor([5]), torch.float32)
    x = torch.zeros(1, 1, 1, 8)
    x[..., 1] = 1.0
    turned = apply_rotary(x, cos, sin).flatten()
    angle = 5 * 100.0 ** (-2 / 8)
    expected = torch.zeros(8)
    expected[1], expected[5] = math.cos(angle), math.sin(angle)
    assert largest_difference(turned, expected) < 1e-6


@pytest.mark.parametrize("shift", [1, 17, 900])
def test_scores_depend_on_the_distance_alone(shift: int) -> None:
    tables = RotaryTables(tiny_model("llama-10m", max_position_embeddings=1024, head_dim=16))
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def score(i: int, j: int) -> torch.Tensor:
        turned = [apply_rotary(x, *tables(torch.tensor([position]), torch.float32)) for x, position in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    assert score(11 + shift, 3 + shift).item() == pytest.approx(score(11, 3).item(), abs=2e-4)
    assert abs(score(11, 4) - score(11, 3)) > 1e-2


def test_a_rotary_model_does_not_see_where_a_text_starts() -> None:
    """The same text at positions 0 to 19, and at 7 to 26."""
    model = random_decoder(tiny_model("llama-10m"))
    frequencies, _ = rotary_frequencies(8, 10000.0, None)
    angles = torch.outer(torch.arange(20.0) + 7, frequencies)
    tokens = random_tokens(model.config, 1, 20)
    expected = model(tokens)
    model.rotary._by_device[torch.device("cpu")] = (angles.cos(), angles.sin())
    assert largest_difference(model(tokens), expected) < 1e-4


def test_the_gradient_of_a_turn_is_autograds() -> None:
    cos, sin = RotaryTables(tiny_model("llama-10m"))(torch.arange(4), torch.float64)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, cos, sin), x)


def test_scaled_frequencies_by_hand() -> None:
    plain = [10000.0 ** (-2 * i / 8) for i in range(4)]  # 1, 0.1, 0.01, 0.001
    linear, factor = rotary_frequencies(8, 10000.0, RopeScaling("linear", 4.0))
    assert factor == 1.0
    assert linear.tolist() == pytest.approx([f / 4 for f in plain])
    # full turns over 100 tokens: 15.9, 1.59, 0.159, 0.0159
    llama3, _ = rotary_frequencies(
        8, 10000.0, RopeScaling("llama3", 4.0, original_max_position_embeddings=100, low_freq_factor=1.0)
    )
    keep = (100 * 0.1 / (2 * math.pi) - 1) / 3
    between = keep * 0.1 + (1 - keep) * 0.1 / 4
    assert llama3.tolist() == pytest.approx([1.0, between, 0.01 / 4, 0.001 / 4], rel=1e-5)
    yarn, factor = rotary_frequencies(8, 10000.0, RopeScaling("yarn", 4.0, original_max_position_embeddings=100))
    assert factor == pytest.approx(0.1 * math.log(4.0) + 1.0)
    # 1 turn in 100 tokens: dimension 8 ln(100 / 2 pi) / (2 ln 10000) = 1.2, rounded up to 2; 32 turns: below 0
    assert yarn.tolist() == pytest.approx([1.0, 0.05 + 0.05 / 4, 0.01 / 4, 0.001 / 4], rel=1e-5)


def test_bfloat16_weights_leave_the_tables_in_float32() -> None:
    config = tiny_model("llama-10m", max_position_embeddings=4096)
    model = random_decoder(config).to(torch.bfloat16)
    cos, sin = model.rotary.on(torch.device("cpu"))
    assert cos.dtype == sin.dtype == torch.float32
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angles = torch.outer(torch.arange(4096, dtype=torch.float64), frequencies)
    # bfloat16 positions alone would be off by up to 8 radians up there
    assert largest_difference(cos.double(), angles.cos()) < 1e-3
    assert largest_difference(sin.double(), angles.sin()) < 1e-3
    logits = model(random_tokens(config, 1, 8))
    assert logits.dtype == torch.bfloat16
    assert "rotary" not in " ".join(model.state_dict())


@pytest.mark.parametrize("name", ["llama-10m", "transformer-2017"])
def test_tables_first_read_in_inference_mode_can_be_trained_with(name: str) -> None:
    model = random_decoder(tiny_model(name))
    tokens = random_tokens(model.config, 1, 8)
    with torch.inference_mode():
        model(tokens)
    model(tokens).sum().backward()
