"""Intervals hold the truth as often as they say, and a centred mean is what CORE's definition gives."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from lit_llm.evaluation.battery.numbers import centred_mean, paired_difference, share_interval


@pytest.mark.parametrize("n", [1, 5, 20, 100])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.95, 0.99, 0.999])
def test_an_interval_of_a_share_holds_it_at_least_95_times_of_100(n: int, share: float) -> None:
    """By every outcome that there is, with its probability; Wilson's interval of 10 answers at 0.99 has 90%."""
    held = 0.0
    for right in range(n + 1):
        low, high = share_interval([1.0] * right + [0.0] * (n - right))
        held += (low <= share <= high) * math.comb(n, right) * share**right * (1 - share) ** (n - right)
    assert held >= 0.95 - 1e-9


def test_ends_are_the_exact_ones() -> None:
    """Under each end's share an outcome so far away has a probability of 2.5%."""
    low, high = share_interval([1.0] * 7 + [0.0] * 3)
    above = sum(math.comb(10, k) * low**k * (1 - low) ** (10 - k) for k in range(7, 11))
    below = sum(math.comb(10, k) * high**k * (1 - high) ** (10 - k) for k in range(8))
    assert (above, below) == pytest.approx((0.025, 0.025), abs=1e-9)
    assert share_interval([0.0] * 4)[0] == 0.0 and share_interval([1.0] * 4)[1] == 1.0
    assert share_interval([1.0] * 3000 + [0.0])[1] < 1.0


def test_scores_between_right_and_wrong_are_held_too() -> None:
    """Shares of right ones among four answers, of questions that are hard to different degrees."""
    draws = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        difficulty = draws.beta(0.5, 0.2, size=15)
        low, high = share_interval((draws.binomial(4, difficulty) / 4).tolist())
        held += low <= 0.5 / 0.7 <= high
    assert held >= 0.95 * 400


@pytest.mark.parametrize(("n", "better", "worse"), [(20, 0.02, 0.01), (20, 0.3, 0.1), (100, 0.0, 0.03), (50, 0.0, 0.0)])
def test_an_interval_of_a_paired_difference_holds_it(n: int, better: float, worse: float) -> None:
    draws = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        kind = draws.choice(3, size=n, p=[better, worse, 1 - better - worse])
        before, after = (kind == 1).astype(float), (kind == 0).astype(float)
        low, high = paired_difference(before.tolist(), after.tolist())["interval"]
        held += low <= better - worse <= high
    assert held >= 940  # 950, less three standard errors of the simulation, rounded up


def test_a_paired_difference_counts_pairs() -> None:
    found = paired_difference([1, 0, 0, 1, 0.5], [1, 1, 1, 0, 0.5])
    assert (found["from"], found["to"], found["difference"]) == pytest.approx((0.5, 0.7, 0.2))
    assert (found["better"], found["worse"], found["questions"]) == (2, 1, 5)
    # no answer differs, and yet one might have
    low, high = paired_difference([1.0] * 10, [1.0] * 10)["interval"]
    assert low == -high < -0.1


def test_the_centred_mean_is_that_of_core() -> None:
    tasks = [
        {"accuracy": 0.75, "chance": 0.5, "questions": 100},
        {"accuracy": 0.25, "chance": 0.25, "questions": 400},
        {"accuracy": 0.4, "chance": 0.0, "questions": 50},
    ]
    found = centred_mean(tasks)
    assert found["value"] == pytest.approx(float((Fraction(1, 2) + 0 + Fraction(2, 5)) / 3))
    assert found["interval"][0] < found["value"] < found["interval"][1]
    draws = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        drawn = [{**t, "accuracy": draws.binomial(t["questions"], t["accuracy"]) / t["questions"]} for t in tasks]
        low, high = centred_mean(drawn)["interval"]
        held += low <= found["value"] <= high
    assert held >= 935
