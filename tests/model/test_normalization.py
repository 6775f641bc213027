"""The lean RMSNorm is torch's in value and gradient, and keeps one tensor of the stream's size."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder
from torch import nn

from lit_llm.model import Decoder
from lit_llm.model.normalization import RMSNorm


def both(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[RMSNorm, nn.RMSNorm, torch.Tensor]:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(shape[-1], eps=1e-3).to(dtype), nn.RMSNorm(shape[-1], eps=1e-3).to(dtype)
    with torch.no_grad():
        ours.weight.normal_()
        theirs.weight.copy_(ours.weight)
    return ours, theirs, torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 16), (2, 3, 4, 8)])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...]) -> None:
    ours, theirs, x = both(shape, torch.float64)
    gradient = torch.randn_like(x)
    results = []
    for norm in (ours, theirs):
        inputs = x.clone().requires_grad_()
        out = norm(inputs)
        out.backward(gradient)
        results.append((out.detach(), inputs.grad, norm.weight.grad))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


def test_one_tensor_is_kept_for_the_gradient() -> None:
    def kept(norm: nn.Module) -> int:
        sizes = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = norm(x.clone().requires_grad_())
        del out
        return sum(size == x.numel() for size in sizes.values())

    ours, theirs, x = both((64, 32), torch.float32)
    assert kept(ours) == 1
    assert kept(theirs) > 1


def test_bfloat16_and_inference_are_torchs() -> None:
    ours, theirs, x = both((5, 8), torch.bfloat16)
    assert torch.equal(ours(x), theirs(x))
    ours, theirs, x = both((5, 8), torch.float32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_a_scale_stored_as_its_distance_from_one_by_hand() -> None:
    config = tiny_model("gemma2-2b", num_key_value_heads=2)
    assert not Decoder(config).final_norm.weight.any()  # it starts as no scale at all
    norm = random_decoder(config).final_norm
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    expected = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * (1 + norm.weight)
    assert largest_difference(norm(x), expected) < 1e-6
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_a_narrow_input_is_widened_to_the_weight_without_a_warning() -> None:
    """As queries and keys are under autocast."""
    ours, theirs, x = both((5, 8), torch.float32)
    narrow = x.bfloat16().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = ours(narrow)
    out.sum().backward()
    wide = narrow.detach().float().requires_grad_()
    theirs(wide).sum().backward()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, theirs(wide), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(narrow.grad, wide.grad.bfloat16(), rtol=2**-7, atol=1e-6)
