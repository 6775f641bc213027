"""The reward model's loss, and measures of how well rewards rank pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_NORMAL_QUANTILE = 1.959963984540054  # 97.5%


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centring: float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + centring * (chosen + rejected)^2 of each pair.

    The margin is that of Llama 2 (https://arxiv.org/abs/2307.09288, section 3.2.2), the centring that of
    https://arxiv.org/abs/2312.09244 (section 2): the likelihood alone leaves the mean reward free.

    Args:
        chosen: [b] rewards of the preferred answers.
        rejected: [b] rewards of the others.
        margin: [b] or None.
        centring: weight of the squared sum, usually 0.01.

    Returns:
        [b].

    Raises:
        ValueError: shapes that differ, or a negative weight.
    """
    for name, tensor in (("rejected", rejected), ("margin", margin)):
        if tensor is not None and tensor.shape != chosen.shape:
            raise ValueError(f"{name} {list(tensor.shape)} must have the shape of chosen, {list(chosen.shape)}")
    if not centring >= 0:
        raise ValueError(f"centring is {centring}; it must be at least 0")
    difference = chosen - rejected
    if margin is not None:
        difference = difference - margin
    loss = -F.logsigmoid(difference)
    if centring:
        loss = loss + centring * (chosen + rejected).square()
    return loss


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """95% interval of a share that was observed as `correct` of `total` (Wilson 1927); (0, 1) of none.

    Raises:
        ValueError: counts that are not 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}; counts must be 0 <= correct <= total")
    if total == 0:
        return 0.0, 1.0
    share, square = correct / total, _NORMAL_QUANTILE**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    deviation = math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    half_width = _NORMAL_QUANTILE * deviation / (1 + square / total)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def ranking_accuracy(margins: Tensor) -> tuple[float, tuple[float, float]]:
    """The share of pairs whose chosen answer has the higher reward, where a tie is half right, and its 95% interval.

    Args:
        margins: [n] reward of the chosen answer less that of the rejected one, at least one.
    """
    right = float((margins > 0).sum() + 0.5 * (margins == 0).sum())
    return right / margins.numel(), accuracy_interval(round(right), margins.numel())


class Calibration(NamedTuple):
    """How often a reward model ranks pairs rightly, compared with how sure it is; see `calibration`."""

    predicted: list[float]
    """Mean claimed probability of the pairs in each bin; 0 in an empty bin."""
    observed: list[float]
    """Share of the pairs in each bin that were ranked rightly; 0 in an empty bin."""
    counts: list[int]
    """Number of pairs in each bin."""
    error: float
    """Mean distance of the two over all pairs (expected calibration error); 0 without pairs."""


def calibration(margins: Tensor, bins: int = 10) -> Calibration:
    """Group pairs by the probability sigmoid(|margin|) that the model gives its own ranking of them.

    Which answer of a pair is called chosen is known from the label, so the claim is about the answer with the higher
    reward: its probability is at least 1/2, and it is right where the margin is above 0 (a tie counts half).

    Args:
        margins: [n] reward of the chosen answer less that of the rejected one.
        bins: number of bins of equal width from 1/2 to 1.

    Raises:
        ValueError: `margins` not one-dimensional or not finite, or no bins.
    """
    if margins.dim() != 1 or not torch.isfinite(margins).all():
        raise ValueError(f"margins must be finite numbers [n]; their shape is {list(margins.shape)}")
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    margins = margins.detach().double().cpu()
    probability = torch.sigmoid(margins.abs())
    right = (torch.sign(margins) + 1) / 2
    index = ((probability - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(index, minlength=bins)
    filled = counts.clamp(min=1)
    predicted = torch.bincount(index, weights=probability, minlength=bins) / filled
    observed = torch.bincount(index, weights=right, minlength=bins) / filled
    error = ((predicted - observed).abs() * counts).sum() / max(margins.numel(), 1)
    return Calibration(predicted.tolist(), observed.tolist(), counts.tolist(), error.item())


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of two samples [n]; 0 where it is undefined (fewer than two values, all
    equal, or not finite).

    Raises:
        ValueError: shapes that differ or are not [n].
    """
    if x.dim() != 1 or x.shape != y.shape:
        raise ValueError(f"correlation takes two samples [n]; their shapes are {list(x.shape)} and {list(y.shape)}")
    if x.numel() < 2 or (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x, y = (sample.detach().double() for sample in (x, y))
    x, y = x - x.mean(), y - y.mean()
    value = (x @ y / (x.norm() * y.norm())).clamp(-1.0, 1.0).item()
    return value if math.isfinite(value) else 0.0
