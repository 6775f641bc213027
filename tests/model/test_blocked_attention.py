"""Attention by blocks of queries against torch's, in values and gradients, and what it drops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.model import blocked_attention as blocked
from lit_llm.model.attention import AttentionContext, fused_attention
from lit_llm.model.blocked_attention import attend, blocked_attention


def heads(b: int, n_h: int, n_kv: int, t: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and a gradient as they lie in memory between the products around attention."""
    generator = torch.Generator().manual_seed(0)
    counts = (n_h, n_kv, n_kv, n_h)
    made = [torch.randn(b, t, n, d, generator=generator).to(dtype).transpose(1, 2) for n in counts]
    return [*(x.requires_grad_() for x in made[:3]), made[3]]


def results(function, q: Tensor, k: Tensor, v: Tensor, gradient: Tensor) -> list[Tensor]:
    out = function(q, k, v)
    return [out, *torch.autograd.grad(out, (q, k, v), gradient)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("b", "n_h", "n_kv", "t"),
    [(2, 2, 2, 50), (3, 4, 2, 300), (1, 3, 1, 128), (2, 1, 1, 1050)],
    ids=["one block", "ragged blocks of groups", "exactly one", "longer blocks"],
)
def test_it_is_torch_s_attention(b: int, n_h: int, n_kv: int, t: int, kept: bool, monkeypatch) -> None:
    monkeypatch.setattr(blocked, "LONGEST_KEPT", 10**6 if kept else 0)
    monkeypatch.setattr(blocked, "_SCORES", 200_000)  # so that rows are cut into groups as well
    tensors = heads(b, n_h, n_kv, t, 16, torch.float32)

    def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=n_h != n_kv, scale=0.3)

    ours = results(lambda q, k, v: blocked_attention(q, k, v, 0.3), *tensors)
    for found, expected in zip(ours, results(torchs, *tensors), strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-5


def test_bfloat16_rounds_as_its_products_do() -> None:
    tensors = heads(2, 4, 4, 256, 64, torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    expected = results(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *wide)
    ours = results(lambda q, k, v: blocked_attention(q, k, v, 64**-0.5), *tensors)
    for found, exact in zip(ours, expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert relative_error(found, exact) < 3 * torch.finfo(torch.bfloat16).eps


def test_dropped_weights_are_those_of_the_gradient_too() -> None:
    """With weights put into the place of what is drawn, the result and its gradients are those of the formula."""
    q, k, v, gradient = heads(2, 4, 2, 200, 16, torch.float64)
    out, kept = attend(q, k, v, torch.tensor(1), 0.25, 0.3)
    found = [out, *torch.autograd.grad(out, (q, k, v), gradient)]
    drops = torch.zeros(2, 4, 200, 200, dtype=torch.bool)
    for block in blocked._blocks(q):
        part = kept[block.place].view(-1, 4, block.queries.stop - block.queries.start, block.queries.stop)
        drops[block.rows, :, block.queries, : block.queries.stop] = part < 0
    seen = torch.ones(200, 200, dtype=torch.bool).tril()
    assert abs(float(drops[..., seen].double().mean()) - 0.3) < 0.02  # of 160,800 draws

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = (0.25 * q @ k.mT).masked_fill(~seen, float("-inf"))
        return scores.softmax(-1).masked_fill(drops, 0.0).div(0.7) @ v

    for ours, expected in zip(found, results(formula, q, k, v, gradient), strict=True):
        assert relative_error(ours, expected) < 1e-12


def test_dropout_takes_this_way_and_draws_anew_each_time() -> None:
    q, k, v, _ = heads(1, 2, 2, 20, 8, torch.float32)
    first, second = (fused_attention(q, k, v, AttentionContext(), 0.5) for _ in range(2))
    assert "blocked_attention" in str(first.grad_fn)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_takes_this_way_where_the_processor_multiplies_it(native: bool, monkeypatch) -> None:
    monkeypatch.setattr("lit_llm.model.attention.multiplies_bfloat16", lambda device: native)
    q, k, v, _ = heads(1, 2, 2, 20, 8, torch.bfloat16)
    out = fused_attention(q, k, v, AttentionContext(), 0.0)
    assert out.dtype == torch.bfloat16
    assert ("blocked_attention" in str(out.grad_fn)) == native
