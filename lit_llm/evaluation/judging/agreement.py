"""How far two judges agree: a judge with people, or with itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_llm.evaluation.judging.outcomes import DRAWS, Estimate, percentile_interval
from lit_llm.objectives import accuracy_interval


@dataclass(frozen=True)
class Agreement:
    """How far two lists of verdicts agree.

    Attributes:
        share: Of equal verdicts, with Wilson's interval.
        kappa: Cohen's, with a bootstrap over verdicts; None where both lists say one and the same throughout, so that
            there is nothing to tell from chance.
        verdicts: How many were compared.
    """

    share: Estimate
    kappa: Estimate | None
    verdicts: int


def agreement(one: Sequence[str], other: Sequence[str], seed: int) -> Agreement:
    """Compare two lists of verdicts, of one length and not empty.

    Args:
        one: verdicts.
        other: on the same.
        seed: of the bootstrap.
    """
    equal = sum(left == right for left, right in zip(one, other, strict=True))
    share = Estimate(equal / len(one), *accuracy_interval(equal, len(one)))
    names = sorted({*one, *other})
    pairs = zip(one, other, strict=True)
    places = np.array([names.index(left) * len(names) + names.index(right) for left, right in pairs])
    counts = np.bincount(places, minlength=len(names) ** 2).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(len(one), counts / len(one), size=DRAWS).astype(np.float64)
    kappas = cohens_kappa(np.concatenate([counts[None], drawn]).reshape(-1, len(names), len(names)))
    if np.isnan(kappas[0]):
        return Agreement(share, None, len(one))
    real = kappas[1:][~np.isnan(kappas[1:])]
    return Agreement(share, Estimate(float(kappas[0]), *percentile_interval(real)), len(one))


def cohens_kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960): how much more two judges agree than they would by chance, as a share of what is possible.

    Args:
        tables: [..., k, k] how often the one said the row and the other the column.

    Returns:
        [...] at most 1; NaN where agreement by chance is certain.
    """
    total = tables.sum((-2, -1))
    observed = np.trace(tables, axis1=-2, axis2=-1) / total
    expected = (tables.sum(-1) * tables.sum(-2)).sum(-1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1.0, (observed - expected) / (1.0 - expected), np.nan)
