"""Win rates, length control, strengths and agreement, held against what they are known to be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lit_llm.config import UserError
from lit_llm.evaluation.judging.agreement import agreement, cohens_kappa
from lit_llm.evaluation.judging.outcomes import Outcomes
from lit_llm.evaluation.judging.strengths import MEAN, POINTS, bradley_terry, check_connected, elo
from lit_llm.evaluation.judging.win_rates import fit_logistic, length_controlled, win_rate


def of_two(score: Any, longer: Any = None) -> Outcomes:
    """Comparisons of models 0 and 1, one for each prompt."""
    scores = np.asarray(score, np.float64)
    zeros = np.zeros(len(scores), np.int64)
    lengths = np.zeros(len(scores)) if longer is None else np.asarray(longer, np.float64)
    return Outcomes(np.arange(len(scores)), zeros, zeros + 1, scores, lengths)


def by_length(chance: np.random.Generator, count: int, real: float = 0.0, effect: float = 1.5) -> Outcomes:
    """A judge whose log odds are `real` and `effect` for each spread of length; model 0 is mostly the longer one."""
    longer = chance.normal(100, 150, count).round()
    odds = real + effect * np.tanh(longer / longer.std())
    return of_two(chance.random(count) < 1 / (1 + np.exp(-odds)), longer)


def tournament(strengths: list[float], prompts: int, seed: int = 0, ties: float = 0.0) -> Outcomes:
    """Every model against every other one on each prompt, by Bradley-Terry's chances; a share of ties at random."""
    chance = np.random.default_rng(seed)
    rows = [
        (prompt, one, other)
        for prompt in range(prompts)
        for one in range(len(strengths))
        for other in range(one + 1, len(strengths))
    ]
    prompt, one, other = (np.array(column) for column in zip(*rows, strict=True))
    gap = np.array(strengths)[one] - np.array(strengths)[other]
    score = (chance.random(len(rows)) < 1 / (1 + np.exp(-gap))).astype(np.float64)
    score[chance.random(len(rows)) < ties] = 0.5
    return Outcomes(prompt, one, other, score, np.zeros(len(rows)))


def test_a_tie_is_half_a_win_and_the_interval_is_over_prompts() -> None:
    found = win_rate(of_two([1, 1, 1, 0.5, 0, 0.5, 1, 0]), seed=0)
    assert found.value == 5 / 8 and 0.1 < found.low < found.value < found.high < 1.0
    # the same verdicts four times over, on the same prompts, say nothing more
    score = np.tile([1, 1, 1, 0.5, 0, 0.5, 1, 0], 4)
    zeros = np.zeros(32, np.int64)
    same = win_rate(Outcomes(np.tile(np.arange(8), 4), zeros, zeros + 1, score, np.zeros(32)), seed=0)
    assert (same.value, same.low, same.high) == pytest.approx((found.value, found.low, found.high))
    tied = win_rate(of_two([0.5] * 5), seed=0)
    assert tied.value == 0.5 and tied.low == pytest.approx(1 - tied.high) and tied.low < 0.2
    always = win_rate(of_two([1.0] * 10), seed=0)  # Wilson's: 1 / (1 + 1.96^2 / 10)
    assert always.value == always.high == 1.0 and always.low == pytest.approx(1 / (1 + 1.959964**2 / 10), rel=1e-5)


def test_win_rate_intervals_hold_the_truth() -> None:
    chance = np.random.default_rng(0)
    held = 0
    for seed in range(60):
        found = win_rate(of_two(chance.choice([0.0, 0.5, 1.0], 40, p=[0.2, 0.3, 0.5])), seed)
        held += found.low <= 0.65 <= found.high
    assert held >= 52  # 57 are meant to; 52 are three standard deviations fewer


def test_a_model_that_wins_by_length_alone() -> None:
    outcomes = by_length(np.random.default_rng(0), 600)
    raw, controlled = win_rate(outcomes, 0), length_controlled(outcomes, 0)
    assert controlled is not None
    assert raw.low > 0.55 and controlled.low < 0.5 < controlled.high
    assert abs(controlled.value - 0.5) < 0.06  # its standard error is 0.024
    better = length_controlled(by_length(np.random.default_rng(1), 600, real=0.8), 0)
    assert better is not None and abs(better.value - 1 / (1 + math.exp(-0.8))) < 0.06
    turned = length_controlled(outcomes.turned(), 0)
    assert turned is not None and turned.value == pytest.approx(1 - controlled.value, abs=1e-9)


def test_a_judge_of_length_and_nothing_else() -> None:
    """Its verdicts are separable by length, so that the likeliest effect of it is infinite."""
    chance = np.random.default_rng(0)
    found = []
    for seed in range(6):
        longer = chance.normal(100, 150, 300).round()
        outcomes = of_two(np.where(longer == 0, 0.5, longer > 0), longer)
        assert win_rate(outcomes, seed).value > 0.65
        controlled = length_controlled(outcomes, seed, draws=20)
        assert controlled is not None
        found.append(controlled.value)
    assert abs(np.mean(found) - 0.5) < 0.08


def test_length_that_cannot_be_told_from_the_model() -> None:
    assert length_controlled(of_two([1, 0, 1, 1], [3, 5, 1, 2]), 0) is None
    assert length_controlled(of_two([1, 0, 1, 1], [-3, -5, -1, -2]), 0) is None
    equal = of_two([1, 0, 1, 1, 0.5])
    assert length_controlled(equal, 0) == win_rate(equal, 0)


def test_logistic_fits_are_at_their_maximum() -> None:
    chance = np.random.default_rng(0)
    features = np.stack([np.ones(40), chance.normal(size=40)], axis=1)
    targets = chance.choice([0.0, 0.5, 1.0], 40)
    weights = np.stack([np.ones(40), chance.integers(0, 3, 40).astype(np.float64)])
    priors = np.array([0.0, 0.25])

    def objective(values: np.ndarray, own: np.ndarray) -> float:
        """The logarithm of likelihood and priors, Jeffreys' among them."""
        odds = features @ values
        shares = 1 / (1 + np.exp(-odds))
        likelihood = own @ (targets * np.log(shares) + (1 - targets) * np.log(1 - shares))
        information = (features * (own * shares * (1 - shares))[:, None]).T @ features
        return float(likelihood + 0.5 * np.linalg.slogdet(information)[1] - 0.5 * priors @ values**2)

    # Firth's correction takes the leverage from the information with the priors in it; without them it is Jeffreys'
    exact = fit_logistic(features, targets, weights, 0 * priors)
    with_priors = fit_logistic(features, targets, weights, priors)
    priors = 0 * priors
    for values, own in zip(exact, weights, strict=True):
        best = objective(values, own)
        for step in ([1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3]):
            assert objective(values + np.array(step), own) < best
    assert np.all(np.abs(with_priors[:, 1]) < np.abs(exact[:, 1]))
    constant = np.ones((10, 1))
    for wins in (0, 3, 10):  # of a constant alone the maximum is known: (wins + 1/2) / (n + 1)
        shares = np.repeat([1.0, 0.0], [wins, 10 - wins])
        found = fit_logistic(constant, shares, np.ones((1, 10)), np.zeros(1))[0, 0]
        assert 1 / (1 + math.exp(-found)) == pytest.approx((wins + 0.5) / 11, rel=1e-6)


def test_known_strengths_are_recovered() -> None:
    truth = [1.0, 0.3, -0.2, -1.1]
    found = bradley_terry(tournament(truth, 1500), list("abcd"), seed=0, draws=200)
    assert not found.regularized
    assert np.mean([each.value for each in found.ratings]) == pytest.approx(MEAN, abs=1e-9)
    for each, strength in zip(found.ratings, truth, strict=True):
        assert (each.value - MEAN) / POINTS == pytest.approx(strength, abs=0.12)  # 4 standard errors
        assert each.low < each.value < each.high
    # half of the games as ties: the chance of the stronger one is nearer to a half
    tied = bradley_terry(tournament(truth, 1500, ties=0.5), list("abcd"), seed=0, draws=20).ratings
    assert MEAN < tied[0].value < found.ratings[0].value


def test_two_models_have_the_odds_of_their_games() -> None:
    found = bradley_terry(of_two([1] * 30 + [0] * 10), ["a", "b"], seed=0)
    assert (found.ratings[0].value - found.ratings[1].value) / POINTS == pytest.approx(math.log(3), rel=1e-6)


def test_the_order_of_games_and_models_means_nothing() -> None:
    outcomes = tournament([0.5, 0.0, -0.5], 60, ties=0.2)
    found = bradley_terry(outcomes, list("abc"), seed=0, draws=50)
    shuffled = outcomes.where(np.random.default_rng(1).permutation(len(outcomes)))
    mixed = bradley_terry(shuffled, list("abc"), seed=0, draws=50)
    renamed = Outcomes(shuffled.prompt, 2 - shuffled.one, 2 - shuffled.other, shuffled.score, shuffled.longer)
    other = bradley_terry(renamed.turned(), list("cba"), seed=0, draws=50)
    for model in range(3):
        expected = pytest.approx([getattr(found.ratings[model], name) for name in ("value", "low", "high")], abs=1e-6)
        assert [getattr(mixed.ratings[model], name) for name in ("value", "low", "high")] == expected
        assert [getattr(other.ratings[2 - model], name) for name in ("value", "low", "high")] == expected


def test_groups_that_never_met_are_named() -> None:
    outcomes = Outcomes(np.arange(2), np.array([0, 2]), np.array([1, 3]), np.array([1.0, 0.5]), np.zeros(2))
    with pytest.raises(UserError, match=r"\{a, b\} and \{c, d\} cannot be compared"):
        bradley_terry(outcomes, list("abcd"), seed=0)
    with pytest.raises(UserError, match=r"\{a, b\} and \{c\}"):
        check_connected(outcomes.where(np.array([True, False])), list("abc"))


def test_a_model_that_never_loses_gets_a_finite_strength() -> None:
    outcomes = tournament([50.0, 0.0, 0.1], 40)
    found = bradley_terry(outcomes, list("abc"), seed=0, draws=100)
    assert found.regularized
    # 40 wins and half a pseudo-win of 41 games against each of two equal models
    gap = found.ratings[0].value - np.mean([found.ratings[1].value, found.ratings[2].value])
    assert gap / POINTS == pytest.approx(math.log(40.5 / 0.5), rel=0.02)
    assert all(math.isfinite(end) for each in found.ratings for end in (each.low, each.high))


def test_elo() -> None:
    found = elo(tournament([0.8, 0.0, -0.8], 100), 3, seed=0)
    assert sum(each.value for each in found) == pytest.approx(3 * MEAN)
    assert found[0].value > found[1].value + 40 and found[1].value > found[2].value + 40
    # one game: half of the points at stake change hands
    one = elo(of_two([1.0]), 2, seed=0, step=8.0)
    assert [each.value for each in one] == [MEAN + 4, MEAN - 4]


@pytest.mark.slow  # importing scikit-learn takes seconds
def test_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    chance = np.random.default_rng(0)
    one = chance.choice(["a", "b", "tie"], 60, p=[0.5, 0.3, 0.2])
    other = np.where(chance.random(60) < 0.6, one, chance.choice(["a", "b", "tie"], 60))
    found = agreement(one.tolist(), other.tolist(), seed=0)
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(metrics.cohen_kappa_score(one, other), rel=1e-12)
    assert found.kappa.low < found.kappa.value < found.kappa.high
    assert found.share.value == pytest.approx(float((one == other).mean())) and found.verdicts == 60


def test_kappa_at_its_ends() -> None:
    assert cohens_kappa(np.array([[[5.0, 0], [0, 5]], [[0, 5.0], [5, 0]], [[4.0, 4], [4, 4]]])).tolist() == [1, -1, 0]
    # alike are 35 of 50, and 25 (25 * 30 / 50 + 25 * 20 / 50) would be by chance: (35 - 25) / (50 - 25)
    assert cohens_kappa(np.array([[20.0, 5], [10, 15]])) == pytest.approx(0.4)
    throughout = agreement(["a"] * 4, ["a"] * 4, seed=0)
    assert throughout.kappa is None and throughout.share.value == 1.0
