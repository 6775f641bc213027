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


def both(shape: tuple[int, ...], dtype: torch.dtype, weight: bool = True) -> tuple[RMSNorm, nn.RMSNorm, torch.Tensor]:
    torch.manual_seed(0)
    ours, theirs = (norm(shape[-1], eps=1e-3, elementwise_affine=weight).to(dtype) for norm in (RMSNorm, nn.RMSNorm))
    if weight:
        with torch.no_grad():
            ours.weight.normal_()
            theirs.weight.copy_(ours.weight)
    return ours, theirs, torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 16), (2, 3, 4, 8)])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], weight: bool) -> None:
    ours, theirs, x = both(shape, torch.float64, weight)
    gradient = torch.randn_like(x)
    results = []
    for norm in (ours, theirs):
        inputs = x.clone().requires_grad_()
        out = norm(inputs)
        out.backward(gradient)
        results.append((out.detach(), inputs.grad, *(each.grad for each in norm.parameters())))
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

    for weight in (True, False):
        ours, theirs, x = both((64, 32), torch.float32, weight)
        assert kept(ours) == 1
        assert kept(theirs) > weight


@pytest.mark.parametrize("narrow_weight", [True, False])
@pytest.mark.parametrize("weight", [True, False])
def test_bfloat16_is_rounded_once(weight: bool, narrow_weight: bool) -> None:
    """As under autocast, where the weight is float32, and in a model that is bfloat16 altogether."""
    ours, _, x = both((50, 64), torch.bfloat16, weight)
    if not narrow_weight:
        ours.float()
    _, exact, _ = both((50, 64), torch.float64, weight)
    exact.load_state_dict(ours.state_dict())
    gradient, found = torch.randn_like(x), []
    for norm, dtype in ((ours, torch.bfloat16), (exact, torch.float64)):
        inputs = x.detach().to(dtype, copy=True).requires_grad_()
        out = norm(inputs)
        assert out.dtype == dtype
        out.backward(gradient.to(dtype))
        found.append((out.detach(), inputs.grad, *(each.grad for each in norm.parameters())))
    for mine, reference in zip(*found, strict=True):
        error = (mine.double() - reference).norm() / reference.norm()
        assert error < torch.finfo(torch.bfloat16).eps


def test_inference_is_torchs() -> None:
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
    """As queries and keys are under autocast, where nothing is trained."""
    ours, theirs, x = both((5, 8), torch.float32)
    narrow = x.bfloat16()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        out = ours(narrow)
    torch.testing.assert_close(out, theirs(narrow.float()), rtol=1e-6, atol=1e-6)
