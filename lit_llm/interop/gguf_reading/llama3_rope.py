"""A GGUF file has what Llama 3 divides its rotary frequencies by, and not the four numbers that this comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lit_llm.config import RopeScaling, UserError
from lit_llm.interop.gguf_reading.container import GgufFile
from lit_llm.interop.gguf_reading.names import ROPE_FACTORS
from lit_llm.model.position import rotary_frequencies

_LOW, _HIGH = 1.0, 4.0
"""The bounds that every published model has."""
_CLOSE = 1e-5
"""The relative error that factors computed in float32 may have."""


def scaling_of_factors(file: GgufFile, width: int, theta: float, max_position_embeddings: int) -> dict[str, Any] | None:
    """Find a scaling of kind llama3 that gives the factors in the file.

    Args:
        file: has the tensor `ROPE_FACTORS`.
        width: of a head.
        theta: the base of the frequencies.
        max_position_embeddings: the longest text that the model reads.

    Returns:
        The group `rope_scaling` of a config.json; None where nothing is scaled.

    Raises:
        UserError: the factors are no such list, or no scaling of this kind gives them.
    """
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.type.name != "F32" or tensor.shape != (width // 2,):
        raise UserError(f"{file.path}: {ROPE_FACTORS} is not a list of {width // 2} numbers of type F32")
    factors = file.bytes_of(tensor).view("<f4").astype(np.float64)
    if not np.isfinite(factors).all() or factors.min() < 1 - _CLOSE or theta <= 0:
        raise UserError(f"{file.path}: {ROPE_FACTORS} holds numbers that are not at least 1")
    if factors.max() < 1 + _CLOSE:
        return None
    plain, _ = rotary_frequencies(width, theta, None)
    for scaling in _candidates(factors, plain.double().numpy(), max_position_embeddings):
        scaled, _ = rotary_frequencies(width, theta, scaling)
        if np.allclose((plain / scaled).double().numpy(), factors, rtol=_CLOSE, atol=0.0):
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            }
    raise UserError(f"{file.path}: {ROPE_FACTORS} holds factors that are not those of Llama 3, which are not computed")


def _candidates(factors: np.ndarray, plain: np.ndarray, longest: int) -> Iterator[RopeScaling]:
    """List scalings that may give the factors, the usual ones first.

    Between the bounds, 1 / factor is a straight line in the frequency. That gives the bounds and the original length
    up to a multiple that they share, which changes nothing.
    """
    factor = float(factors.max())
    factor = round(factor) if abs(factor - round(factor)) < _CLOSE * factor else factor
    lengths = dict.fromkeys((8192, round(longest / factor), *(2**power for power in range(4, 21))))
    for length in lengths:
        if length >= 1:
            yield _llama3(factor, _LOW, _HIGH, length)
    between = (factors > 1 + _CLOSE) & (factors < factor * (1 - _CLOSE))
    if between.sum() < 2:
        return
    turns = plain[between] / (2 * math.pi)  # of each frequency, a position
    share = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(turns, share, 1)
    if slope <= 0 or start >= 0:
        return
    # share = (length * turns - low) / (high - low)
    for length in lengths:
        if length >= 1:
            low, high = -start * length / slope, (1 - start) * length / slope
            yield _llama3(factor, low, high, length)


def _llama3(factor: float, low: float, high: float, length: int) -> RopeScaling:
    return RopeScaling("llama3", factor, length, low_freq_factor=low, high_freq_factor=high)
