"""What came out of comparisons, as arrays, and numbers that are known up to an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 1000
"""Number of draws of a bootstrap over prompts."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """The number as `value` and `interval`, for a file of JSON."""
        return {"value": self.value, "interval": [self.low, self.high]}


@dataclass(frozen=True)
class Outcomes:
    """n comparisons of two models' answers to a prompt.

    Attributes:
        prompt: number of the prompt, int64 [n].
        one: number of the one model, int64 [n].
        other: number of the other, int64 [n].
        score: of the one model, float64 [n]: 1 for a win, 0.5 for a tie, 0 for a loss.
        longer: characters of its answer less those of the other's, float64 [n].
    """

    prompt: np.ndarray
    one: np.ndarray
    other: np.ndarray
    score: np.ndarray
    longer: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def where(self, kept: np.ndarray) -> Outcomes:
        """The comparisons for which `kept` [n] is true."""
        return Outcomes(*(getattr(self, name)[kept] for name in self.__dataclass_fields__))

    def of_pair(self, one: int, other: int) -> Outcomes:
        """The comparisons of two models, seen from `one`."""
        straight = self.where((self.one == one) & (self.other == other))
        turned = self.where((self.one == other) & (self.other == one)).turned()
        return Outcomes(*(np.concatenate([getattr(each, name) for each in (straight, turned)]) for name in _NAMES))

    def turned(self) -> Outcomes:
        """The same comparisons, seen from the other model."""
        return Outcomes(self.prompt, self.other, self.one, 1.0 - self.score, -self.longer)

    def of_model(self, model: int) -> Outcomes:
        """All comparisons of a model, seen from it."""
        straight, turned = self.where(self.one == model), self.where(self.other == model).turned()
        return Outcomes(*(np.concatenate([getattr(each, name) for each in (straight, turned)]) for name in _NAMES))


_NAMES = tuple(Outcomes.__dataclass_fields__)


def drawn_prompts(prompt: np.ndarray, seed: int, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """How often each prompt counts in the draws of a bootstrap, which draws prompts with replacement.

    Args:
        prompt: number of the prompt of each comparison [n]; those of a prompt are drawn together.
        seed: of the draws.
        draws: how many.

    Returns:
        Whole numbers as float64 [1 + draws, prompts], the first row of which has every prompt once; and for each
        comparison its prompt's column [n].
    """
    numbers, column = np.unique(prompt, return_inverse=True)
    count = len(numbers)
    often = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return np.concatenate([np.ones((1, count)), often]), column


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95% of what the draws of a bootstrap gave [draws]."""
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high
