"""How often a model wins, as it is and with the difference in length taken out."""

from __future__ import annotations

import math

import numpy as np

from lit_llm.evaluation.judging.outcomes import Estimate, Outcomes, drawn_prompts, percentile_interval
from lit_llm.evaluation.perplexity import bootstrap_interval
from lit_llm.objectives import accuracy_interval

_LENGTH_SPREAD = 2.0
"""Standard deviation of the normal prior on the effect of length, in log odds."""
_STEPS = 100
_LARGEST_STEP = 2.0
_CLOSE = 1e-8


def win_rate(outcomes: Outcomes, seed: int) -> Estimate:
    """The mean score, in which a tie is half a win, with a bootstrap over prompts (`bootstrap_interval`).

    Where the draws are all alike, as a model wins every time, the interval is Wilson's.

    Args:
        outcomes: at least one, seen from the model.
        seed: of the bootstrap.
    """
    _, own = np.unique(outcomes.prompt, return_inverse=True)
    sums, counts = np.bincount(own, outcomes.score), np.bincount(own).astype(np.float64)
    value = float(outcomes.score.mean())
    means = sums / counts
    interval = None if np.ptp(means) == 0 else bootstrap_interval([(sums, counts)], seed)
    if interval is None:
        wins = round(value * len(counts), 6)
        interval = (
            accuracy_interval(math.floor(wins), len(counts))[0],
            accuracy_interval(math.ceil(wins), len(counts))[1],
        )
    return Estimate(value, min(max(interval[0], 0.0), value), max(min(interval[1], 1.0), value))


def length_controlled(outcomes: Outcomes, seed: int, draws: int = 300) -> Estimate | None:
    """The win rate that a model would have if both answers were of one length.

    The score is regressed on the difference in length, as in AlpacaEval 2.0 (Dubois et al. 2024, arXiv 2404.04475):
    logit p = theta + phi tanh(longer / std(longer)), and p at longer = 0 is what is returned. Two things differ: the
    term for the difficulty of each prompt, which there comes from many models fitted together, is left out; and the
    fit is finite where one model always wins, or the longer answer (see `fit_logistic`).

    Of simulated judges who see length alone (phi 1.5, 100 prompts, a raw win rate of 62%) the mean is 50%, and 90 of
    100 intervals hold it; with a real difference besides (69%) the mean is 69%, and 97 hold it. Of one whose verdict is
    the longer answer in every case (300 prompts, 75% raw) the mean is 54%.

    Args:
        outcomes: at least one, of two models, seen from the one.
        seed: of the bootstrap.
        draws: of it.

    Returns:
        The win rate (where lengths or scores are all equal, that of `win_rate`), or None where one model's answers are
        all the longer ones: length cannot be told from the model.
    """
    if (outcomes.longer > 0).all() or (outcomes.longer < 0).all():
        return None
    if not outcomes.longer.any() or np.ptp(outcomes.score) == 0:
        return win_rate(outcomes, seed)
    features = np.stack([np.ones(len(outcomes)), np.tanh(outcomes.longer / outcomes.longer.std())], axis=1)
    often, column = drawn_prompts(outcomes.prompt, seed, draws)
    priors = np.array([0.0, _LENGTH_SPREAD**-2])
    rates = _logistic(fit_logistic(features, outcomes.score, often[:, column], priors)[:, 0])
    low, high = percentile_interval(rates[1:])
    return Estimate(float(rates[0]), low, high)


def fit_logistic(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Fit logistic regressions of one set of data under several weightings, all at once.

    Newton's method on the likelihood with Jeffreys' prior (Firth 1993), which takes out the bias of small samples and
    has a finite maximum where the data can be separated, and a normal prior on each coefficient.

    Args:
        features: float64 [n, k], a column of ones among them where a constant is wanted.
        targets: shares from 0 to 1, float64 [n].
        weights: how often each row counts, float64 [fits, n].
        priors: precision (1 / variance) of the normal prior on each coefficient [k], whose mean is 0; 0 for none.

    Returns:
        Coefficients [fits, k].
    """
    found = np.zeros((len(weights), features.shape[1]))
    floor = np.diag(priors + 1e-9)
    for _ in range(_STEPS):
        shares = _logistic(found @ features.T)
        spread = weights * shares * (1.0 - shares)
        information = np.einsum("fn,nk,nl->fkl", spread, features, features, optimize=True) + floor
        inverse = np.linalg.inv(information)
        leverage = shares * (1.0 - shares) * np.einsum("nk,fkl,nl->fn", features, inverse, features, optimize=True)
        residuals = weights * (targets - shares + leverage * (0.5 - shares))
        step = np.einsum("fkl,fl->fk", inverse, residuals @ features - priors * found)
        step *= np.minimum(1.0, _LARGEST_STEP / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))
        found += step
        if np.abs(step).max() < _CLOSE:
            break
    return found


def _logistic(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * values))
