"""The feed-forward against its formulas."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder
from torch import Tensor


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * normal_cdf(x),
    "gelu_tanh": gelu_tanh,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": lambda x: x * normal_cdf(x),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", FORMULAS)
def test_feedforward_is_its_formula(activation: str, bias: bool) -> None:
    model = random_decoder(tiny_model("llama-10m", activation=activation, mlp_bias=bias))
    feedforward = model.blocks[0].feedforward
    weights = dict(feedforward.named_parameters())
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    def linear(name: str, x: Tensor) -> Tensor:
        out = x @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if bias else out

    act = FORMULAS[activation]
    if activation.endswith("glu"):
        inner = act(linear("gate_proj", x)) * linear("up_proj", x)
    else:
        assert "gate_proj.weight" not in weights
        inner = act(linear("up_proj", x))
    expected = linear("down_proj", inner)
    with torch.no_grad():
        assert largest_difference(feedforward(x), expected) < 1e-5
    gradients = [torch.autograd.grad(out.square().sum(), list(weights.values())) for out in (feedforward(x), expected)]
    assert all(largest_difference(got, right) < 1e-5 * right.abs().max() for got, right in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("activation", "width", "expected"), [("gelu", 96, 384), ("swiglu", 96, 256), ("geglu", 104, 288)]
)
def test_default_width_inside(activation: str, width: int, expected: int) -> None:
    """4 times the width, or 8/3 of it rounded up to 32 where there is a gate."""
    config = tiny_model("llama-10m", activation=activation, hidden_size=width, intermediate_size=None)
    assert config.feedforward_size == expected
