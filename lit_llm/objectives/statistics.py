"""Means and variances over the tokens of a mask. What lies outside the mask may be anything, NaN included."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values where the mask is true; 0 where it is true nowhere.

    Args:
        values: any shape.
        mask: the same shape, true (or not 0) where a value counts.
        dim: the dimension to average over; None: all.

    Returns:
        scalar, or `values` without the dimension `dim`.

    Raises:
        ValueError: shapes that differ.
    """
    kept, mask = _kept(values, mask)
    total, count = (kept.sum(), mask.sum()) if dim is None else (kept.sum(dim), mask.sum(dim))
    return total / count.clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of the values where the mask is true: a scalar, 0 for fewer than two values.

    Raises:
        ValueError: shapes that differ.
    """
    kept, mask = _kept(values, mask)
    deviations = torch.where(mask, kept - masked_mean(kept, mask), 0.0)
    return deviations.square().sum() / (mask.sum() - 1).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(values - mean) / sqrt(variance + eps) with the statistics of the mask, and 0 outside it.

    Args:
        values: any shape.
        mask: the same shape.
        shift_mean: False gives the values their mean back.
        eps: added to the variance.

    Raises:
        ValueError: shapes that differ.
    """
    kept, mask = _kept(values, mask)
    mean = masked_mean(kept, mask)
    whitened = (kept - mean) * torch.rsqrt(masked_variance(kept, mask) + eps)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0)


def _kept(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if values.shape != mask.shape:
        raise ValueError(f"values {list(values.shape)} and mask {list(mask.shape)} must have one shape")
    mask = mask.bool()
    return torch.where(mask, values, 0.0), mask
