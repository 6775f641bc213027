"""L(N, D) = E + A / N^alpha + B / D^beta: the loss of a model of N parameters after D tokens, fitted to finished runs.

Source: Hoffmann et al. 2022 (Chinchilla), approach 3: the Huber loss of the difference of logarithms is minimised from
a grid of starts. The published values of A, B and E there are rounded too far; Besiroglu et al. 2024 give others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

HUBER = 1e-3
"""Differences of logarithms beyond this count by their size and no longer by its square (Hoffmann et al. 2022)."""
DRAWS = 200
"""Fits that an interval is taken from."""
NUMBER_OF_TERMS = 5
_E_SHARES = (0.1, 0.4, 0.7, 0.9, 0.98)  # of the lowest loss, that a start takes for E
_SPLITS = (0.2, 0.5, 0.8)  # of the rest of the mean loss, that a start takes for the term of the model
_EXPONENTS = (0.1, 0.3, 0.6, 1.2)
EXPONENTS = (1e-3, 2.0)
"""Exponents beyond these fit no published runs, and say that the grid does not show them."""
_LEAST_AND_MOST = tuple(map(math.log, EXPONENTS))
_FIRST_STEPS, _LAST_STEPS, _KEPT = 60, 400, 8


@dataclass(frozen=True)
class ScalingLaw:
    """The five numbers of the law."""

    irreducible: float
    """E, nats per token that no model and no amount of data take away."""
    model_factor: float
    """A."""
    data_factor: float
    """B."""
    model_exponent: float
    """alpha."""
    data_exponent: float
    """beta."""

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss in nats per token of a model of so many parameters after so many tokens."""
        of_model = self.model_factor * parameters**-self.model_exponent
        return self.irreducible + of_model + self.data_factor * tokens**-self.data_exponent

    def optimum(self, flops: float, flops_per_parameter: float = 6.0) -> tuple[float, float]:
        """The parameters and tokens of the lowest loss for a budget, in closed form.

        Args:
            flops: the budget C.
            flops_per_parameter: k of C = k N D; 6 where attention and the embedding are left out.
        """
        both = self.model_exponent + self.data_exponent
        ratio = self.model_exponent * self.model_factor / (self.data_exponent * self.data_factor)
        products = flops / flops_per_parameter
        parameters = ratio ** (1 / both) * products ** (self.data_exponent / both)
        return parameters, products / parameters

    @property
    def size_exponent(self) -> float:
        """The power of the budget that the best number of parameters grows with."""
        return self.data_exponent / (self.model_exponent + self.data_exponent)


@dataclass(frozen=True)
class LawFit:
    """The law that fits some runs, and how far it may be off."""

    law: ScalingLaw
    """The best fit."""
    residuals: list[float]
    """ln(loss) - ln(prediction) of each run, in their order."""
    draws: list[ScalingLaw] = field(default_factory=list)
    """Fits to losses as other runs of the same grid might have given them; none where nothing is left to judge by."""

    @property
    def deviation(self) -> float:
        """Standard deviation of ln(loss) of a single run around the law; NaN where nothing is left to judge by."""
        freedom = len(self.residuals) - NUMBER_OF_TERMS
        if freedom < 1:
            return math.nan
        return math.sqrt(math.fsum(each * each for each in self.residuals) / freedom)

    def interval(self, value: Callable[[ScalingLaw], float]) -> tuple[float, float] | None:
        """95% interval of a number above 0 that follows from the law; None where there are no draws."""
        if not self.draws:
            return None
        middle = math.log(value(self.law))
        low, high = np.quantile([math.log(value(law)) for law in self.draws], [0.025, 0.975])
        low, high = (middle + self._wider * distance for distance in (min(low - middle, 0.0), max(high - middle, 0.0)))
        return math.exp(max(low, -700.0)), math.exp(min(high, 700.0))

    @property
    def _wider(self) -> float:
        """Student's quantile / the normal one: what few residuals leave open of their own scatter."""
        return student_quantile(len(self.residuals) - NUMBER_OF_TERMS) / _NORMAL

    def predict(self, parameters: float, tokens: float) -> tuple[float, tuple[float, float] | None]:
        """The loss of one more run, with the interval that it falls into in 95 of 100 cases if the law holds there.

        The interval has both the uncertainty of the law and the scatter of a single run.
        """
        expected = self.law.loss(parameters, tokens)
        if not self.draws:
            return expected, None
        logs = np.log([law.loss(parameters, tokens) for law in self.draws])
        # the scatter of single runs, spread evenly over the draws so that the same fit gives the same interval
        scatter = self.deviation * np.asarray(_normal_quantiles(len(logs)))
        low, high = np.quantile(np.add.outer(logs - math.log(expected), scatter), [0.025, 0.975])
        wider = self._wider
        return expected, (expected * math.exp(wider * low), expected * math.exp(wider * high))


def unidentified(budgets: Sequence[float], parameters: Sequence[float], tokens: Sequence[float]) -> str | None:
    """Say why some runs cannot tell the five numbers of the law apart; None where they can."""
    different = {(round(math.log(n), 6), round(math.log(d), 6)) for n, d in zip(parameters, tokens, strict=True)}
    if len(different) < NUMBER_OF_TERMS:
        return (
            f"the law has {NUMBER_OF_TERMS} numbers and the grid {len(different)} different "
            f"point{'s' * (len(different) != 1)}: add --sizes or --budgets"
        )
    if len(set(budgets)) < 2:
        return "all points have one budget, along which parameters and tokens change together: add another to --budgets"
    if len({round(math.log(n), 6) for n in parameters}) < 3:
        return "the grid has fewer than three sizes of model, so that E and A / N^alpha look alike: add --sizes"
    return None


def fit_law(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], draws: int = DRAWS, seed: int = 0
) -> LawFit:
    """Fit the law to finished runs.

    The draws of the intervals keep the grid and replace the losses by the predictions with a normal scatter, as wide as
    the residuals' (the parametric bootstrap, Efron and Tibshirani 1993, section 6.5). Drawing the runs themselves would
    tear holes into a grid so small, and drawing the residuals repeats that some of them are nearly 0: the Huber loss
    goes through as many runs as the law has numbers.

    Args:
        parameters: N of each run.
        tokens: D of each run.
        losses: in nats per token, above 0.
        draws: how many fits the intervals are taken from; none are made of five or six runs.
        seed: of the draws.
    """
    logs = np.log(np.asarray([parameters, tokens, losses], dtype=np.float64))
    centre = logs[:2].mean(axis=1)
    x, y = logs[:2] - centre[:, None]
    z = logs[2]
    theta, objective = _minimise(_starts(z), x, y, z[None], _FIRST_STEPS)
    best = theta[np.argsort(objective)[:_KEPT]]
    theta, objective = _minimise(best, x, y, z[None], _LAST_STEPS)
    found = theta[int(np.argmin(objective))]
    predicted = _predict(found[None], x, y)[0][0]
    residuals = z - predicted
    laws: list[ScalingLaw] = []
    freedom = len(z) - NUMBER_OF_TERMS
    if draws and freedom > 1:
        deviation = math.sqrt(float(residuals @ residuals) / freedom)
        drawn = predicted + np.random.default_rng(seed).normal(0.0, deviation, (draws, len(z)))
        fitted, _ = _minimise(np.repeat(found[None], draws, axis=0), x, y, drawn, _LAST_STEPS)
        laws = [_as_law(each, centre) for each in fitted]
    return LawFit(_as_law(found, centre), residuals.tolist(), laws)


# theta = (ln A', ln B', ln E, ln alpha, ln beta), where A' and B' are the factors at the centre of the grid: so the
# five are of like size, nearly independent, and none can become negative


def _starts(z: np.ndarray) -> np.ndarray:
    """The starts of the search [starts, 5], from the losses' logarithms [n]."""
    losses = np.exp(z)
    starts = []
    for share in _E_SHARES:
        rest = losses.mean() - share * losses.min()
        for split in _SPLITS:
            sizes = [rest * split, rest * (1 - split), share * losses.min()]
            starts += [np.log([*sizes, alpha, beta]) for alpha in _EXPONENTS for beta in _EXPONENTS]
    return np.asarray(starts)


def _predict(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logarithm of the loss [s, n] of each theta [s, 5] at each run, and its derivatives [s, n, 5]."""
    alpha, beta = np.exp(theta[:, 3:4]), np.exp(theta[:, 4:5])
    terms = np.stack(
        [theta[:, 0:1] - alpha * x, theta[:, 1:2] - beta * y, np.broadcast_to(theta[:, 2:3], (len(theta), len(x)))]
    )
    top = terms.max(axis=0)
    logs = top + np.log(np.exp(terms - top).sum(axis=0))
    of_model, of_data, of_rest = np.exp(terms - logs)
    slopes = np.stack([of_model, of_data, of_rest, -alpha * x * of_model, -beta * y * of_data], axis=-1)
    return logs, slopes


def _huber(residuals: np.ndarray) -> np.ndarray:
    """The Huber loss summed over the runs [s], of residuals [s, n]."""
    size = np.abs(residuals)
    return np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum(axis=1)


def _minimise(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the Huber loss from every start at once; returns the places [s, 5] and the objective there [s].

    Levenberg-Marquardt on the weighted squares that touch the Huber loss from above at each place: each step that is
    taken lowers the loss itself, and hundreds of small problems are solved together in arrays.

    Args:
        theta: the starts [s, 5].
        x: ln N, centred [n].
        y: ln D, centred [n].
        z: logarithms of the losses, [s, n] or [1, n] where all starts have the same.
        steps: at most.
    """
    logs, slopes = _predict(theta, x, y)
    objective = _huber(logs - z)
    damping = np.full(len(theta), 1e-3)
    for _ in range(steps):
        residuals = logs - z
        weights = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-300))
        weighted = slopes * weights[..., None]
        curvature = np.einsum("sni,snj->sij", weighted, slopes)
        gradient = np.einsum("sni,sn->si", weighted, residuals)
        diagonal = np.einsum("sii->si", curvature)
        added = damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
        curvature = curvature + added[:, :, None] * np.eye(NUMBER_OF_TERMS)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        tried = theta - np.clip(step, -2.0, 2.0)
        tried[:, 3:] = np.clip(tried[:, 3:], *_LEAST_AND_MOST)
        tried_logs, tried_slopes = _predict(tried, x, y)
        tried_objective = _huber(tried_logs - z)
        better = tried_objective < objective
        if not better.any() and damping.min() > 1e8:
            break
        theta = np.where(better[:, None], tried, theta)
        logs, slopes = (
            np.where(better[:, None], tried_logs, logs),
            np.where(better[:, None, None], tried_slopes, slopes),
        )
        objective = np.where(better, tried_objective, objective)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e10)
    return theta, objective


def _as_law(theta: np.ndarray, centre: np.ndarray) -> ScalingLaw:
    alpha, beta = math.exp(theta[3]), math.exp(theta[4])
    of_model, of_data = math.exp(theta[0] + alpha * centre[0]), math.exp(theta[1] + beta * centre[1])
    return ScalingLaw(math.exp(theta[2]), of_model, of_data, alpha, beta)


def _normal_quantiles(count: int) -> list[float]:
    return [NormalDist().inv_cdf((number + 0.5) / count) for number in range(count)]


_NORMAL = NormalDist().inv_cdf(0.975)


def student_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's distribution, from 2 degrees of freedom on to 4%, from 5 on to 0.2%.

    Source: Abramowitz and Stegun 1964, 26.7.5.
    """
    z, n = _NORMAL, max(freedom, 1)
    first = (z**3 + z) / (4 * n)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
