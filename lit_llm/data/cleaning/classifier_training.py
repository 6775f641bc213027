"""Logistic regression on sparse binary features, and what a classifier is measured by; numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SparseRows:
    """Rows of different numbers of features, one after another.

    Attributes:
        features: Of all rows, [k], int32.
        starts: Where each row begins in `features`, and the end of the last, [n + 1].
    """

    features: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> SparseRows:
        """Rows from a list of the features of each."""
        starts = np.cumsum([0, *map(len, rows)])
        return cls(np.concatenate([np.zeros(0, np.int32), *rows]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The features of some rows, the place in `rows` of each of them, and the value of each."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(sizes)
        inside = np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes)
        row = np.repeat(np.arange(len(rows)), sizes)
        value = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
        return self.features[np.repeat(self.starts[rows], sizes) + inside], row, value


def fit_logistic(
    rows: SparseRows,
    labels: np.ndarray,
    weights: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[np.ndarray, float]:
    """Fits logistic regression by Adagrad; both classes count the same in all, whatever their numbers are.

    A feature's value is 1 over the square root of the number of features of its row.

    Args:
        rows: The features.
        labels: 1 or 0 for each row, of both at least one.
        weights: How many there are.
        epochs: How often all rows are gone through, in another order each time.
        batch_size: Rows of a step.
        learning_rate: Of Adagrad (Duchi et al. 2011).
        weight_decay: Added to the gradient, times the weight, of the weights that a step uses.
        seed: Of the order.
        advance: Is called with the rows of each step.

    Returns:
        The weights, [weights], float64, and the bias.
    """
    weight, squares = np.zeros(weights), np.full(weights, 1e-8)
    bias, bias_squares = 0.0, 1e-8
    share = len(labels) / (2 * np.bincount(labels, minlength=2))
    numbers = np.random.Generator(np.random.PCG64(seed))
    for _ in range(epochs):
        order = numbers.permutation(len(rows))
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            features, row, value = rows.take(batch)
            margin = np.bincount(row, weight[features] * value, minlength=len(batch)) + bias
            error = share[labels[batch]] * (sigmoid(margin) - labels[batch]) / len(batch)
            used, place = np.unique(features, return_inverse=True)
            gradient = np.bincount(place, error[row] * value, minlength=len(used)) + weight_decay * weight[used]
            squares[used] += gradient**2
            weight[used] -= learning_rate * gradient / np.sqrt(squares[used])
            bias_squares += float(error.sum()) ** 2
            bias -= learning_rate * float(error.sum()) / bias_squares**0.5
            advance(len(batch))
    return weight, bias


def sigmoid(margin: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-margin)), without overflow."""
    return 1 / (1 + np.exp(-np.clip(margin, -700, 700)))


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """The probability that a positive has a higher score than a negative, a tie being half (Mann-Whitney U)."""
    _, place, often = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(often) - (often - 1) / 2
    positives = int(labels.sum())
    surplus = float(rank[place][labels == 1].sum()) - positives * (positives + 1) / 2
    return surplus / (positives * (len(labels) - positives))


def precision_and_recall(scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    """The share of positives among the rows at or above the threshold (NaN if none is), and that of the positives."""
    chosen = scores >= threshold
    right = int(labels[chosen].sum())
    return right / int(chosen.sum()) if chosen.any() else float("nan"), right / int(labels.sum())
