"""Figures of finished tasks: shares with intervals that hold the truth, paired differences and a centred mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Z = 1.959963984540054  # quantile 0.975 of the normal distribution


def share_interval(scores: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of scores from 0 to 1, which holds the truth at least so often, for any n and mean.

    Of right and wrong answers it is the exact one (Clopper and Pearson 1934). Scores between 0 and 1, as the share of
    right ones among several answers, vary less than right and wrong ones of the same mean; their sum is rounded
    outwards.

    Args:
        scores: at least one.
    """
    n, total = len(scores), math.fsum(scores)
    few, many = math.floor(total + 1e-9), math.ceil(total - 1e-9)
    low = 0.0 if few == 0 else 1 - _upper_end(n - few, n)
    high = 1.0 if many == n else _upper_end(many, n)
    return low, high


def _upper_end(successes: int, n: int) -> float:
    """The share under which so few successes of n, or fewer, have a probability of 2.5%."""
    counts = np.arange(successes + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])  # of factorials
    ways = logs[n] - logs[counts] - logs[n - counts]
    low, high = successes / n, 1.0
    for _ in range(60):
        share = (low + high) / 2
        with np.errstate(divide="ignore"):
            terms = ways + counts * math.log(share) + (n - counts) * math.log1p(-share)
        if float(np.exp(terms).sum()) > 0.025:
            low = share
        else:
            high = share
    return (low + high) / 2


def paired_difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """How much better the same questions are answered by the second of two models, and how sure that is.

    The interval is Agresti and Min's (2005): that of the normal approximation once half an answer has been added to
    each cell of the table of right and wrong, which keeps it honest where few answers differ or none.

    Args:
        before: scores from 0 to 1 of the first model.
        after: of the second, question by question.
    """
    n = len(before)
    gaps = np.asarray(after, float) - np.asarray(before, float)
    mean = float(gaps.sum()) / (n + 2)
    variance = (float(np.square(gaps).sum()) + 1) / (n + 2) - mean**2
    reach = Z * math.sqrt(variance / (n + 2))
    return {
        "from": math.fsum(before) / n,
        "to": math.fsum(after) / n,
        "difference": float(gaps.mean()),
        "interval": (max(-1.0, mean - reach), min(1.0, mean + reach)),
        "better": int((gaps > 0).sum()),
        "worse": int((gaps < 0).sum()),
        "questions": n,
    }


def centred_mean(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over tasks of (accuracy - chance) / (1 - chance), as DCLM's CORE (Li et al. 2024) centres them.

    Args:
        tasks: each with `accuracy`, `chance` and `questions`.

    Returns:
        `value`; `interval` from the tasks' own errors, by the normal approximation once two right and two wrong answers
        have been added to each (Agresti and Coull 1998); and the number of `tasks`.
    """
    centred = [(task["accuracy"] - task["chance"]) / (1 - task["chance"]) for task in tasks]
    variance = 0.0
    for task in tasks:
        n = task["questions"] + 4
        share = (task["accuracy"] * task["questions"] + 2) / n
        variance += share * (1 - share) / n / (1 - task["chance"]) ** 2
    value, reach = sum(centred) / len(tasks), Z * math.sqrt(variance) / len(tasks)
    return {"value": value, "interval": (value - reach, min(1.0, value + reach)), "tasks": len(tasks)}
