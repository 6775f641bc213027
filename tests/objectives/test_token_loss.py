"""The chunked loss against the plain one, and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_llm.objectives import IGNORE_INDEX, cross_entropy_sum, head_chunks, linear_cross_entropy
from lit_llm.objectives.head_chunks import SupervisedRows
from lit_llm.objectives.token_loss import _loss_and_gradients, _Options, loss_and_gradient

N, D, V = 37, 8, 23


def problem(dtype=torch.float32, ignored=0.3, scale=1.0, classes=V):
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).mul(scale).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, classes, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = IGNORE_INDEX
    return hidden, weight, targets


def value_and_grads(hidden, weight, targets, factor=1.0, **options):
    loss = linear_cross_entropy(hidden, weight, targets, **options)
    return loss.detach(), *torch.autograd.grad(loss * factor, (hidden, weight))


def test_the_reference_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [5.0, -5.0]])
    targets = torch.tensor([1, 0, IGNORE_INDEX])
    expected = math.log(2) + math.log(4 / 3)
    assert cross_entropy_sum(logits, targets).item() == pytest.approx(expected, abs=1e-6)
    normalisers = math.log(2) ** 2 + math.log(4) ** 2
    assert cross_entropy_sum(logits, targets, z_loss=0.5).item() == pytest.approx(
        expected + 0.5 * normalisers, abs=1e-6
    )


def test_the_reference_caps_before_the_softmax():
    logits = torch.tensor([[100.0, 0.0]])
    capped = math.log(1 + math.exp(2 * math.tanh(50.0)))
    assert cross_entropy_sum(logits, torch.tensor([1]), softcap=2.0).item() == pytest.approx(capped, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 37, 1000])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 3.0}, {"z_loss": 0.1}, {"num_classes": 17}, {"softcap": 3.0, "z_loss": 0.1, "num_classes": 17}],
    ids=["plain", "softcap", "z_loss", "num_classes", "all"],
)
def test_chunked_equals_plain(dtype, ignored, chunk_tokens, options):
    classes = options.get("num_classes", V)
    hidden, weight, targets = problem(dtype, ignored, classes=classes)
    # The reference runs in float64 whatever the type under test.
    reference = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = value_and_grads(*reference, targets, factor=0.37, chunk_tokens=None, **options)
    actual = value_and_grads(hidden, weight, targets, factor=0.37, chunk_tokens=chunk_tokens, **options)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() <= tolerance * max(1.0, want.abs().max().item())
    assert actual[2][classes:].count_nonzero() == 0
    assert actual[1][targets == IGNORE_INDEX].count_nonzero() == 0


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "z_loss": 0.05, "num_classes": 20}])
def test_gradients_equal_finite_differences(options):
    hidden, weight, targets = problem(torch.float64, ignored=0.2, classes=20)

    def loss(hidden, weight):
        return linear_cross_entropy(hidden, weight, targets, chunk_tokens=6, **options)

    assert torch.autograd.gradcheck(loss, (hidden, weight), fast_mode=True)


def test_a_very_unlikely_target_has_a_finite_loss():
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [500.0]], requires_grad=True)
    loss, grad, _ = value_and_grads(hidden, weight, torch.tensor([0]), chunk_tokens=1)
    assert loss.item() == 500.0
    assert grad.item() == 500.0


@pytest.mark.parametrize("chunk_tokens", [None, 4])
def test_nothing_supervised(chunk_tokens):
    hidden, weight, targets = problem()
    targets.fill_(IGNORE_INDEX)
    loss, grad_hidden, grad_weight = value_and_grads(hidden, weight, targets, chunk_tokens=chunk_tokens)
    assert loss.item() == 0.0
    assert torch.equal(grad_hidden, torch.zeros_like(hidden))
    assert torch.equal(grad_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_only_the_gradient_that_is_needed(wanted):
    hidden, weight, targets = problem()
    full = dict(zip(("hidden", "weight"), value_and_grads(hidden, weight, targets, chunk_tokens=8)[1:], strict=True))
    leaves = {"hidden": hidden.detach(), "weight": weight.detach()}
    leaves[wanted].requires_grad_()
    with CountMatmuls() as count:
        linear_cross_entropy(**leaves, targets=targets, chunk_tokens=1000).backward()
    assert torch.allclose(leaves[wanted].grad, full[wanted], atol=1e-6)
    assert count.total == 2


def test_no_gradient_costs_one_matrix_product():
    hidden, weight, targets = problem()
    with CountMatmuls() as count, torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=1000)
    assert count.total == 1
    assert not loss.requires_grad


class CountMatmuls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return function(*args, **(kwargs or {}))


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.numel = max(
            [self.numel, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))]
        )
        return result


@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.parametrize("autocast", [False, True])
def test_never_more_than_one_chunk_of_logits(autocast, ignored):
    n, d, vocabulary, chunk = 64, 4, 200, 8
    hidden = torch.randn(n, d, requires_grad=True)
    weight = torch.randn(vocabulary, d, requires_grad=True)
    targets = torch.randint(0, vocabulary, (n,))
    targets[torch.rand(n) < ignored] = IGNORE_INDEX

    def largest(chunk_tokens):
        with LargestTensor() as mode, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens, softcap=5.0, z_loss=0.1).backward()
        return mode.numel

    assert largest(None) >= n * vocabulary  # the probe sees the logits where they do exist
    assert largest(chunk) <= chunk * vocabulary


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "z_loss": 0.01}])
def test_bfloat16_autocast(options):
    hidden, weight, targets = problem()
    expected = value_and_grads(hidden, weight, targets, chunk_tokens=None, **options)
    with torch.autocast("cpu", torch.bfloat16):
        actual = value_and_grads(hidden, weight, targets, chunk_tokens=10, **options)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 0.01 * want.norm()
    # bfloat16 really took part: float32 products would agree far more closely.
    assert (actual[2] - expected[2]).norm() > 1e-5 * expected[2].norm()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_native_bfloat16_products_agree_with_emulated_ones(softcap):
    """Which of the two runs under autocast depends on the processor; both are tested on any."""
    hidden, weight, targets = (tensor.detach() for tensor in problem())
    native, emulated = (
        _loss_and_gradients(
            SupervisedRows(targets),
            hidden,
            weight,
            targets,
            _Options(10, softcap, 0.01, V, torch.bfloat16, product),
            True,
            True,
        )
        for product in (torch.bfloat16, torch.float32)
    )
    for got, want in zip(native, emulated, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 0.01 * want.norm()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_kernels_that_convert_compute_the_same(z_loss, monkeypatch):
    """As on CUDA; the CPU converts before and after."""
    hidden, weight, targets = (tensor.detach() for tensor in problem())
    options, rows = _Options(10, None, z_loss, V, torch.bfloat16, torch.bfloat16), SupervisedRows(targets)
    passes = _loss_and_gradients(rows, hidden, weight, targets, options, True, True)
    monkeypatch.setattr(head_chunks, "_kernels_convert", lambda product, wide: True)
    # which is an error where the result of a pass is not of the type that the next one reads
    for got, want in zip(_loss_and_gradients(rows, hidden, weight, targets, options, True, True), passes, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"z_loss": 0.01}, {"softcap": 2.0, "z_loss": 0.1}])
def test_the_formula_for_the_compiler(options, monkeypatch):
    """Where it is asked for, it is what is computed; its values and gradients are those of the plain loss."""
    seen = []

    def noted(product, *rest):
        seen.append(product.shape)
        return loss_and_gradient(product, *rest)

    monkeypatch.setattr("lit_llm.objectives.token_loss.compiled_loss", lambda: noted)
    hidden, weight, targets = problem(torch.float64, classes=V - 2)
    places = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    options |= {"num_classes": V - 2}
    expected = value_and_grads(hidden, weight, targets, 2.0, chunk_tokens=None, **options)
    actual = value_and_grads(hidden, weight, targets, 2.0, chunk_tokens=10, supervised=places, compiled=True, **options)
    assert sum(rows for rows, _ in seen) == len(places) and {classes for _, classes in seen} == {V - 2}
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        halved = value_and_grads(
            *(tensor.detach().float().requires_grad_() for tensor in (hidden, weight)),
            targets,
            2.0,
            chunk_tokens=10,
            compiled=True,
            **options,
        )
    for got, want in zip(halved, expected, strict=True):
        assert (got - want).norm() <= 0.015 * want.norm()
    # nothing to learn from: the loss alone is not worth compiling
    seen.clear()
    linear_cross_entropy(hidden.detach(), weight.detach(), targets, chunk_tokens=10, compiled=True)
    assert seen == []


def test_places_that_are_known_are_not_looked_for():
    hidden, weight, targets = problem()
    half = (targets != IGNORE_INDEX).nonzero().squeeze(1)[::2]
    known = value_and_grads(hidden, weight, targets, chunk_tokens=10, supervised=half)
    others = targets.clone()
    others[half] = IGNORE_INDEX
    expected = value_and_grads(
        hidden, weight, torch.where(others == IGNORE_INDEX, targets, IGNORE_INDEX), chunk_tokens=10
    )
    for got, want in zip(known, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"z_loss": 0.01}, {"num_classes": 17}])
def test_bfloat16_on_cuda(options, compiled):
    hidden, weight, targets = problem(classes=17)
    expected = value_and_grads(hidden, weight, targets, chunk_tokens=None, **options)
    on_device = [tensor.detach().cuda().requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast("cuda", torch.bfloat16):
        actual = value_and_grads(*on_device, targets.cuda(), chunk_tokens=10, compiled=compiled, **options)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == torch.float32
        assert (got.cpu() - want).norm() <= 0.01 * want.norm()


def test_bfloat16_inputs_get_bfloat16_gradients():
    hidden, weight, targets = problem(torch.bfloat16)
    reference = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    expected = value_and_grads(*reference, targets, chunk_tokens=None)
    loss, *grads = value_and_grads(hidden, weight, targets, chunk_tokens=5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected[0].item(), rel=0.01)
    for got, want in zip(grads, expected[1:], strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() <= 0.01 * want.norm()


def test_weight_gradient_is_accumulated_in_float32():
    """Summed in bfloat16, 2,000 equal contributions would stop growing at 256 times the first."""
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(2000, dtype=torch.long), chunk_tokens=1).backward()
    assert weight.grad[0].item() == pytest.approx(-1000, rel=0.005)


def test_backward_twice_and_never_double():
    hidden, weight, targets = problem()
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=8)
    first = torch.autograd.grad(3 * loss, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(3 * loss, weight, retain_graph=True)[0])
    grad = torch.autograd.grad(loss.square(), hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_target_outside_the_vocabulary_is_refused():
    hidden, weight, targets = problem(ignored=0.0)
    targets[3] = 17
    with pytest.raises((IndexError, RuntimeError)):
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=8, num_classes=17)


def test_equals_torch_mean_after_division_by_the_count():
    hidden, weight, targets = problem()
    total = linear_cross_entropy(hidden, weight, targets, chunk_tokens=8)
    mean = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE_INDEX)
    assert (total / (targets != IGNORE_INDEX).sum()).item() == pytest.approx(mean.item(), abs=1e-6)
