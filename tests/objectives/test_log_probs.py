"""Chunked log-probabilities against plain log-softmax, and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_llm.objectives import IGNORE_INDEX, linear_log_probs, sequence_log_probs
from lit_llm.objectives.log_probs import _forward, _Options, _recompute

N, D, V = 37, 8, 23
OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.7},
    "all": {"softcap": 3.0, "temperature": 0.7, "num_classes": 17},
}


def problem(dtype=torch.float64, ignored=0.3, garbage=True):
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, 17, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = IGNORE_INDEX
    if garbage:
        hidden[targets == IGNORE_INDEX] = float("nan")
    return hidden.requires_grad_(), weight, targets


def by_hand(hidden, weight, targets, softcap=None, temperature=1.0, num_classes=None):
    """Log-probabilities and entropies one token at a time, written with exponentials."""
    values, entropies = [], []
    for row, target in zip(hidden, targets.tolist(), strict=True):
        if target == IGNORE_INDEX:
            values.append(weight.new_zeros(()))
            entropies.append(weight.new_zeros(()))
            continue
        logits = weight[:num_classes] @ row
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        probs = torch.exp(logits / temperature)
        probs = probs / probs.sum()
        values.append(probs[target].log())
        entropies.append(-(probs * probs.log()).sum().detach())
    return torch.stack(values), torch.stack(entropies)


def coefficients(dtype=torch.float64):
    return torch.linspace(-2.0, 3.0, N, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 37, 1000])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_entropies_and_gradients(dtype, ignored, chunk_tokens, options):
    hidden, weight, targets = problem(dtype, ignored)
    reference = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    wanted, entropies = by_hand(*reference, targets, **options)
    wanted_grads = torch.autograd.grad((wanted * coefficients()).sum(), reference)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for with_entropy in (False, True):
        got = linear_log_probs(hidden, weight, targets, chunk_tokens=chunk_tokens, with_entropy=with_entropy, **options)
        if with_entropy:
            got, got_entropies = got
            assert not got_entropies.requires_grad
            assert got_entropies.dtype == dtype
            torch.testing.assert_close(got_entropies.double(), entropies, rtol=tolerance, atol=tolerance)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
        grads = torch.autograd.grad((got * coefficients(dtype)).sum(), (hidden, weight))
        for grad, want in zip(grads, wanted_grads, strict=True):
            assert grad.dtype == dtype
            torch.testing.assert_close(grad.double(), want, rtol=tolerance, atol=10 * tolerance)
        assert grads[0][targets == IGNORE_INDEX].count_nonzero() == 0
        assert grads[1][options.get("num_classes", V) :].count_nonzero() == 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_equal_finite_differences(options, frozen):
    hidden, weight, targets = problem(ignored=0.2, garbage=False)
    weight.requires_grad_(not frozen)

    def log_probs(hidden, weight):
        return linear_log_probs(hidden, weight, targets, chunk_tokens=6, **options)

    assert torch.autograd.gradcheck(log_probs, (hidden, weight), fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("hidden", "weight")], ids="+".join)
def test_only_the_gradient_that_is_needed(trained, with_entropy, options):
    hidden, weight, targets = problem()
    names = ("hidden", "weight")
    both = linear_log_probs(hidden, weight, targets, chunk_tokens=8, **options) @ coefficients()
    full = dict(zip(names, torch.autograd.grad(both, (hidden, weight)), strict=True))
    leaves = {"hidden": hidden.detach(), "weight": weight.detach()}
    for name in trained:
        leaves[name].requires_grad_()
    with CountMatmuls() as count:
        result = linear_log_probs(**leaves, targets=targets, chunk_tokens=1000, with_entropy=with_entropy, **options)
        ((result[0] if with_entropy else result) @ coefficients()).backward()
    for name in trained:
        torch.testing.assert_close(leaves[name].grad, full[name])
    # a frozen head needs no second look at the logits
    assert count.total == {("hidden",): 2, ("weight",): 3, ("hidden", "weight"): 4}[trained]


@pytest.mark.parametrize("chunk_tokens", [None, 5])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_likeliest(options, with_entropy, chunk_tokens):
    hidden, weight, targets = problem()
    logits = hidden.detach() @ weight.detach()[: options.get("num_classes")].T
    targets[::3] = torch.where(targets[::3] == IGNORE_INDEX, IGNORE_INDEX, logits[::3].argmax(1))
    log_probs, *_, likeliest = linear_log_probs(
        hidden, weight, targets, chunk_tokens=chunk_tokens, with_likeliest=True, with_entropy=with_entropy, **options
    )
    assert torch.equal(likeliest, (targets == logits.argmax(1)) & (targets != IGNORE_INDEX))
    assert 5 < int(likeliest.sum()) < int((targets != IGNORE_INDEX).sum())
    alone = linear_log_probs(hidden, weight, targets, chunk_tokens=chunk_tokens, **options)
    assert torch.equal(log_probs, alone)
    for one, other in zip(
        torch.autograd.grad(log_probs.sum(), (hidden, weight)),
        torch.autograd.grad(alone.sum(), (hidden, weight)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_no_gradient_costs_one_matrix_product():
    hidden, weight, targets = problem()
    with CountMatmuls() as count, torch.no_grad():
        linear_log_probs(hidden, weight, targets, chunk_tokens=1000)
    assert count.total == 1


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
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_never_more_than_one_chunk_of_logits(autocast, frozen):
    n, d, vocabulary, chunk = 64, 4, 200, 8
    hidden = torch.randn(n, d, requires_grad=True)
    weight = torch.randn(vocabulary, d, requires_grad=not frozen)
    targets = torch.randint(0, vocabulary, (n,))
    targets[::3] = IGNORE_INDEX
    supervised = int((targets != IGNORE_INDEX).sum())

    def largest(chunk_tokens):
        kept = []
        with (
            LargestTensor() as mode,
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            torch.autograd.graph.saved_tensors_hooks(lambda saved: (kept.append(saved.numel()), saved)[1], lambda x: x),
        ):
            log_probs, entropy = linear_log_probs(
                hidden, weight, targets, chunk_tokens=chunk_tokens, softcap=5.0, with_entropy=True
            )
            (log_probs.sum() + entropy.sum()).backward()
        return mode.numel, max(kept)

    assert largest(None)[0] >= supervised * vocabulary  # the probe sees the logits where they do exist
    created, kept = largest(chunk)
    assert created <= chunk * vocabulary
    assert kept <= max(weight.numel(), hidden.numel())


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "temperature": 0.7}], ids=["plain", "all"])
@pytest.mark.parametrize("frozen", [False, True])
def test_bfloat16_autocast(options, frozen):
    hidden, weight, targets = problem(torch.float32, garbage=False)
    weight.requires_grad_(not frozen)
    leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]

    def run(chunk_tokens):
        log_probs = linear_log_probs(hidden, weight, targets, chunk_tokens=chunk_tokens, **options)
        loss = (log_probs * coefficients(torch.float32)).sum()
        return log_probs.detach(), *torch.autograd.grad(loss, leaves)

    expected = run(None)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(10)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 0.02 * want.norm()
    # bfloat16 really took part: float32 products would agree far more closely.
    assert (actual[0] - expected[0]).norm() > 1e-5 * expected[0].norm()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_native_bfloat16_products_agree_with_emulated_ones(softcap):
    """Which of the two runs under autocast depends on the processor; both are tested on any."""
    hidden, weight, targets = (tensor.detach() for tensor in problem(torch.float32, garbage=False))
    results = []
    for product in (torch.bfloat16, torch.float32):
        options = _Options(10, softcap, V, 0.7, True, False, (torch.bfloat16, product))
        *forward, _, grad_inputs = _forward(hidden, weight, targets, options, prepare=True)
        results.append(
            (*forward, grad_inputs, *_recompute(hidden, weight, targets, options, coefficients(torch.float32), True))
        )
    for got, want in zip(*results, strict=True):
        assert (got.float() - want.float()).norm() <= 0.02 * want.float().norm()


@pytest.mark.parametrize("frozen", [False, True])
def test_bfloat16_inputs_get_bfloat16_gradients(frozen):
    hidden, weight, targets = problem(torch.bfloat16)
    weight.requires_grad_(not frozen)
    log_probs = linear_log_probs(hidden, weight, targets, chunk_tokens=5)
    assert log_probs.dtype == torch.float32
    (log_probs * coefficients(torch.float32)).sum().backward()
    reference = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    wanted, _ = by_hand(*reference, targets)
    wanted_grads = torch.autograd.grad((wanted * coefficients()).sum(), reference)
    assert (log_probs.detach() - wanted.detach()).norm() <= 0.01 * wanted.norm()
    for leaf, want in zip((hidden, weight), wanted_grads, strict=True):
        if leaf.requires_grad:
            assert leaf.grad.dtype == torch.bfloat16
            assert (leaf.grad - want).norm() <= 0.01 * want.norm()


def test_known_values():
    hidden = torch.ones(3, 1)
    weight = torch.tensor([[math.log(3.0)], [0.0]])
    log_probs, entropy = linear_log_probs(
        hidden, weight, torch.tensor([0, 1, IGNORE_INDEX]), chunk_tokens=2, with_entropy=True
    )
    assert log_probs.tolist() == pytest.approx([math.log(0.75), math.log(0.25), 0.0], abs=1e-6)
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert entropy.tolist() == pytest.approx([expected, expected, 0.0], abs=1e-6)


def test_equal_logits_have_the_largest_entropy_and_a_certain_token_none():
    targets = torch.zeros(1, dtype=torch.long)
    for scale, expected in ((0.0, math.log(5)), (1e4, 0.0)):
        weight = scale * torch.arange(5.0).unsqueeze(1)
        _, entropy = linear_log_probs(torch.ones(1, 1), weight, targets, chunk_tokens=1, with_entropy=True)
        assert entropy.item() == pytest.approx(expected, abs=1e-6)


def test_a_very_unlikely_target_stays_finite():
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [500.0]])
    log_probs = linear_log_probs(hidden, weight, torch.tensor([0]), chunk_tokens=1)
    log_probs.backward()
    assert log_probs.item() == -500.0
    assert hidden.grad.item() == -500.0


@pytest.mark.parametrize("chunk_tokens", [None, 4])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_supervised(chunk_tokens, frozen):
    hidden, weight, targets = problem()
    weight.requires_grad_(not frozen)
    log_probs, entropy = linear_log_probs(
        hidden, weight, targets.fill_(IGNORE_INDEX), chunk_tokens=chunk_tokens, with_entropy=True
    )
    log_probs.sum().backward()
    assert not log_probs.any() and not entropy.any()
    assert not hidden.grad.any()
    assert frozen or not weight.grad.any()


def test_backward_twice_and_never_double():
    hidden, weight, targets = problem(garbage=False)
    loss = linear_log_probs(hidden, weight, targets, chunk_tokens=8).sum()
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, weight, retain_graph=True)[0])
    grad = torch.autograd.grad(loss.square(), hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_bad_arguments_are_refused():
    hidden, weight, targets = problem()
    for options in ({"chunk_tokens": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"softcap": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            linear_log_probs(hidden, weight, targets, **{"chunk_tokens": 4, **options})
    with pytest.raises(ValueError, match="shapes"):
        linear_log_probs(hidden, weight, targets[1:], chunk_tokens=4)
    with pytest.raises(ValueError, match="shape"):
        sequence_log_probs(torch.zeros(2, 3), torch.ones(2, 4))


def test_sequence_sums_by_hand():
    garbage = float("nan")
    log_probs = torch.tensor([[garbage, -1.0, -2.0], [-4.0, float("inf"), -8.0], [garbage] * 3], requires_grad=True)
    mask = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
    total, count = sequence_log_probs(log_probs, mask)
    assert total.tolist() == [-3.0, -12.0, 0.0]
    assert count.tolist() == [2, 2, 0]
    (total * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert log_probs.grad.tolist() == [[0.0, 1.0, 1.0], [2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
