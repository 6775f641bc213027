"""The reward model's loss and measures, against formulae and published numbers."""

from __future__ import annotations

import math

import pytest
import torch

from lit_llm.objectives import accuracy_interval, bradley_terry, calibration, correlation


def rewards(seed=0, n=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("centring", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry(with_margin, centring):
    chosen, rejected, margin = rewards()
    chosen.requires_grad_()
    rejected.requires_grad_()
    actual = bradley_terry(chosen, rejected, margin if with_margin else None, centring)
    difference = chosen - rejected - (margin if with_margin else 0)
    expected = -torch.log(1 / (1 + torch.exp(-difference))) + centring * (chosen + rejected) ** 2
    torch.testing.assert_close(actual, expected)
    grads = [torch.autograd.grad(value.sum(), (chosen, rejected)) for value in (actual, expected)]
    torch.testing.assert_close(*grads)


def test_bradley_terry_in_its_limits():
    zero = torch.zeros(1)
    assert bradley_terry(zero, zero, None, 0.01).item() == pytest.approx(math.log(2))
    far = torch.tensor([-1e4], requires_grad=True)
    loss = bradley_terry(far, zero, None, 0.0)
    loss.backward()
    assert (loss.item(), far.grad.item()) == (1e4, -1.0)
    # without centring only the difference counts, with it the level does
    assert bradley_terry(zero + 9, zero + 8) == bradley_terry(zero + 1, zero)
    assert bradley_terry(zero + 9, zero + 8, None, 0.01) > bradley_terry(zero + 0.5, zero - 0.5, None, 0.01)


def test_bad_arguments_are_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="rejected"):
        bradley_terry(one, torch.ones(2), None, 0.0)
    with pytest.raises(ValueError, match="margin"):
        bradley_terry(one, one, torch.ones(2), 0.0)
    with pytest.raises(ValueError, match="centring"):
        bradley_terry(one, one, None, -0.1)
    with pytest.raises(ValueError, match="correct"):
        accuracy_interval(3, 2)
    with pytest.raises(ValueError, match="bins"):
        calibration(one, 0)
    with pytest.raises(ValueError, match="finite"):
        calibration(torch.tensor([float("nan")]), 10)
    with pytest.raises(ValueError, match="samples"):
        correlation(one, torch.ones(2))


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(correct, total, low, high):
    assert accuracy_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_solves_its_equation():
    """Its ends are the shares from which the observed one is 1.96 standard deviations away."""
    for end in accuracy_interval(37, 50):
        assert abs(0.74 - end) / math.sqrt(end * (1 - end) / 50) == pytest.approx(1.959964, abs=1e-5)
    assert accuracy_interval(0, 0) == (0.0, 1.0)
    assert accuracy_interval(20, 20)[1] == 1.0


def test_calibration_by_hand():
    def margin(probability):
        return math.log(probability / (1 - probability))

    margins = torch.tensor([margin(0.55), -margin(0.65), margin(0.85), margin(0.95), -margin(0.95), 0.0])
    found = calibration(margins, bins=2)
    assert found.counts == [3, 3]
    assert found.predicted == pytest.approx([(0.55 + 0.65 + 0.5) / 3, (0.85 + 0.95 + 0.95) / 3])
    assert found.observed == pytest.approx([1.5 / 3, 2 / 3])
    assert found.error == pytest.approx((abs(1.7 / 3 - 0.5) + abs(2.75 / 3 - 2 / 3)) / 2)


def test_calibration_of_a_model_that_knows_its_odds():
    """Labels drawn with the probability that the margin claims leave no error; margins five times too sure do."""
    generator = torch.Generator().manual_seed(0)
    claimed = torch.randn(20_000, generator=generator)
    margins = torch.where(torch.rand(20_000, generator=generator) < torch.sigmoid(claimed), claimed, -claimed)
    assert calibration(margins, 10).error < 0.02
    assert calibration(5 * margins, 10).error > 0.15
    assert calibration(torch.zeros(0), 3) == ([0.0] * 3, [0.0] * 3, [0] * 3, 0.0)
    assert calibration(torch.tensor([1e9]), 4).counts == [0, 0, 0, 1]


def test_correlation():
    x, y, _ = rewards()
    expected = torch.corrcoef(torch.stack([x, y]))[0, 1].item()
    assert correlation(x, y) == pytest.approx(expected)
    assert correlation(x, 2 - 3 * x) == pytest.approx(-1.0)
    assert correlation(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5, 7, 9])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "y", [[0.1] * 7, [float("nan")] * 7, [1.0, float("inf")] + [0.0] * 5], ids=["constant", "nan", "inf"]
)
def test_correlation_where_undefined(y):
    assert correlation(rewards()[0], torch.tensor(y)) == 0.0
    assert correlation(torch.ones(1), torch.ones(1)) == 0.0
