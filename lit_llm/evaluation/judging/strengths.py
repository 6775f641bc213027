"""One number for each of several models that were compared in pairs: Bradley-Terry strengths and Elo ratings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_llm.config import UserError
from lit_llm.evaluation.judging.outcomes import Estimate, Outcomes, drawn_prompts, percentile_interval

POINTS = 400 / math.log(10)
"""Elo points in a unit of log odds: 400 points more are odds of 10 to 1."""
MEAN = 1000.0
"""Mean of the ratings."""
_PSEUDO = 0.5
_STEPS = 100


@dataclass(frozen=True)
class Strengths:
    """How strong models are.

    Attributes:
        ratings: of each model, in Elo points with the mean `MEAN`.
        regularized: whether the wins alone would give no finite strengths.
    """

    ratings: list[Estimate]
    regularized: bool


def bradley_terry(outcomes: Outcomes, names: Sequence[str], seed: int, draws: int = 1000) -> Strengths:
    """The strengths with which the chance that i beats j is 1 / (1 + exp(strength j - strength i)), a tie being half a
    win for each (Bradley and Terry 1952), with the percentiles of a bootstrap over prompts.

    Where some models never lose to the rest, no finite strengths are the likeliest; then each pair that has met is
    given one more tie. A draw of the bootstrap for which that is so gets the same.

    Args:
        outcomes: comparisons of the models.
        names: of the models, by number.
        seed: of the bootstrap.
        draws: of it.

    Raises:
        UserError: the comparisons fall into groups of models that have never met.
    """
    check_connected(outcomes, names)
    often, column = drawn_prompts(outcomes.prompt, seed, draws)
    of_prompts = np.zeros((often.shape[1], len(names), len(names)))
    np.add.at(of_prompts, (column, outcomes.one, outcomes.other), outcomes.score)
    np.add.at(of_prompts, (column, outcomes.other, outcomes.one), 1.0 - outcomes.score)
    wins = np.tensordot(often, of_prompts, axes=1)
    met = (wins[0] + wins[0].T) > 0
    endless = ~_strongly_connected(wins)
    wins[endless] += _PSEUDO * met
    ratings = MEAN + POINTS * fit_bradley_terry(wins)
    return Strengths([_estimate(ratings[:, model]) for model in range(len(names))], bool(endless[0]))


def fit_bradley_terry(wins: np.ndarray) -> np.ndarray:
    """The likeliest strengths, which sum to zero, by Newton's method.

    Args:
        wins: [fits, models, models] how often (ties as halves) row has beaten column; strongly connected.

    Returns:
        Strengths in log odds [fits, models].
    """
    fits, models, _ = wins.shape
    games = wins + wins.transpose(0, 2, 1)
    strengths = np.zeros((fits, models))
    level = np.ones((models, models)) / models  # the likelihood does not change along (1, ..., 1)
    for _ in range(_STEPS):
        chances = 0.5 * (1.0 + np.tanh(0.5 * (strengths[:, :, None] - strengths[:, None, :])))
        gradient = (wins - games * chances).sum(2)
        spread = games * chances * (1.0 - chances)
        curvature = spread.sum(2)[:, :, None] * np.eye(models) - spread + level * games.sum((1, 2))[:, None, None]
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        step *= np.minimum(1.0, 1.0 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))
        strengths += step
        if np.abs(step).max() < 1e-10:
            break
    return strengths - strengths.mean(1, keepdims=True)


def elo(outcomes: Outcomes, models: int, seed: int, draws: int = 200, step: float = 8.0) -> list[Estimate]:
    """Elo ratings (Elo 1978), which go up and down by `step` times (score - expected score) with each comparison.

    They depend on the order, and with few comparisons stay near the mean. So the comparisons are put into another
    random order in each draw: the value is the mean over orders, the interval holds draws of other prompts as well.

    Args:
        outcomes: comparisons of the models.
        models: how many there are.
        seed: of orders and draws.
        draws: of each.
        step: points that are at stake.
    """
    chance = np.random.default_rng(seed)
    order = chance.permuted(np.tile(np.arange(len(outcomes)), (2 * draws, 1)), axis=1)
    often, column = drawn_prompts(outcomes.prompt, seed, draws)
    often = np.concatenate([np.ones_like(often[1:]), often[1:]])
    ratings = np.full((2 * draws, models), MEAN)
    rows = np.arange(2 * draws)
    for game in order.T:
        one, other = outcomes.one[game], outcomes.other[game]
        gap = ratings[rows, one] - ratings[rows, other]
        gained = step * often[rows, column[game]] * (outcomes.score[game] - 1.0 / (1.0 + np.exp(-gap / POINTS)))
        ratings[rows, one] += gained
        ratings[rows, other] -= gained
    return [
        Estimate(float(ratings[:draws, model].mean()), *percentile_interval(ratings[draws:, model]))
        for model in range(models)
    ]


def check_connected(outcomes: Outcomes, names: Sequence[str]) -> None:
    """Refuse comparisons that leave two models without any chain of comparisons from the one to the other.

    Raises:
        UserError: names the groups.
    """
    met = np.eye(len(names), dtype=bool)
    met[outcomes.one, outcomes.other] = met[outcomes.other, outcomes.one] = True
    reach = _closure(met[None])[0]
    groups = list(dict.fromkeys(tuple(np.flatnonzero(row).tolist()) for row in reach))
    if len(groups) > 1:
        told = " and ".join("{" + ", ".join(names[model] for model in group) + "}" for group in groups)
        raise UserError(
            f"the strengths of {told} cannot be compared, as no comparison links these groups; compare models of "
            "different groups, or judge each group by itself"
        )


def _strongly_connected(wins: np.ndarray) -> np.ndarray:
    """Whether in each fit every model has beaten every other one, by a chain of wins and ties at least [fits]."""
    return np.asarray(_closure((wins > 0) | np.eye(wins.shape[1], dtype=bool)).all((1, 2)))


def _closure(reach: np.ndarray) -> np.ndarray:
    for _ in range(max(1, math.ceil(math.log2(reach.shape[1])))):
        reach = (reach.astype(np.float64) @ reach.astype(np.float64)) > 0
    return reach


def _estimate(draws: np.ndarray) -> Estimate:
    return Estimate(float(draws[0]), *percentile_interval(draws[1:]))
