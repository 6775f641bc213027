"""Rounding the rows of a matrix to numbers of 8 or 4 bits, and back.

Notation used for tensor shapes:
    n: rows, k: columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_SIZE = 32
"""Neighbours in a row that share a step and a middle, in 4 bits."""


def round_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of x [n, k] to 8 bits, symmetrically.

    The scale is rounded to x's type first, so that no weight is further from its number than half a step.

    Returns:
        Numbers [n, k] from -127 to 127, int8; the scale [n] that gives x back, in x's type.
    """
    scale = (x.float().abs().amax(1) / 127).to(x.dtype)
    scale = torch.where(scale > 0, scale, 1)
    return (x.float() / scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scale


def from_int8(numbers: Tensor, scale: Tensor) -> Tensor:
    """The reverse of `round_to_int8`: [n, k] in float32."""
    return numbers.float() * scale.float().unsqueeze(1)


def round_to_int4(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each group of 32 neighbours in a row of x [n, k] to 4 bits between its least and its greatest value.

    Returns:
        Numbers [n, k] from 0 to 15, uint8; [k / 32, n, 2] with the step and the value of the number 8, in x's type.
    """
    groups = x.float().unflatten(1, (-1, GROUP_SIZE))
    scale, middle = _step_and_middle(groups, x.dtype)
    numbers = ((groups - middle.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round() + 8
    return (
        numbers.clamp(0, 15).to(torch.uint8).flatten(1),
        torch.stack([scale, middle], dim=-1).transpose(0, 1).contiguous(),
    )


def round_to_int4_by_inputs(x: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Round as `round_to_int4` does, column after column, each one's error made good by the columns after it.

    What is kept small is the error of the products with the inputs that `gram` is of, instead of that of the weights.
    A hundredth of the mean of gram's diagonal is added to it, so that what was rarely seen does not decide.

    Args:
        x: [n, k].
        gram: sum of the outer products of the inputs with themselves [k, k].

    Returns:
        As `round_to_int4`.

    Source: Frantar et al. 2022 (GPTQ), equation 3 and algorithm 1, whose blocks are the groups here.
    """
    left = x.float().clone()
    factor = _inverse_factor(gram).to(left)
    numbers = torch.empty_like(left, dtype=torch.uint8)
    scales = []
    for start in range(0, left.size(1), GROUP_SIZE):
        end = start + GROUP_SIZE
        group = left[:, start:end].T.contiguous()  # [32, n]: a column of the matrix is one piece of memory
        scale, middle = _step_and_middle(group.T, x.dtype)
        step, centre = scale.float(), middle.float()
        errors = torch.empty_like(group)
        rounded = torch.empty_like(group)
        for column in range(GROUP_SIZE):
            nearest = ((group[column] - centre) / step).round_().add_(8).clamp_(0, 15)
            rounded[column] = nearest
            row = factor[start + column, start + column : end]
            errors[column] = (group[column] - ((nearest - 8) * step + centre)) / row[0]
            group[column:].addr_(row, errors[column], alpha=-1)
        numbers[:, start:end] = rounded.T
        left[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
        scales.append(torch.stack([scale, middle], dim=-1))
    return numbers, torch.stack(scales)


def _step_and_middle(groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The step and the value of the number 8 of each group [..., 32] of float32, in the type they are kept in."""
    least, greatest = groups.amin(-1), groups.amax(-1)
    scale = ((greatest - least) / 15).to(dtype)
    middle = (least + 8 * scale.float()).to(dtype)
    return torch.where(scale > 0, scale, 1), middle


def _inverse_factor(gram: Tensor) -> Tensor:
    """The upper triangular U with U^T U = gram^-1, after damping, [k, k] in float64."""
    gram = gram.double()
    diagonal = gram.diagonal()
    damping = 0.01 * diagonal.mean()
    # inputs that were never seen
    damped = gram + torch.diag(damping + torch.where(diagonal > 0, 0.0, 1.0))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def from_int4(numbers: Tensor, scale: Tensor) -> Tensor:
    """The reverse of `round_to_int4`: [n, k] in float32."""
    step, middle = scale.float().transpose(0, 1).unbind(-1)  # [n, groups]
    groups = numbers.float().unflatten(1, (-1, GROUP_SIZE))
    return groups.sub_(8).mul_(step.unsqueeze(-1)).add_(middle.unsqueeze(-1)).flatten(1)


def join_halves(numbers: Tensor) -> Tensor:
    """Two numbers from 0 to 15 in a byte, the even column in the low half: uint8 [n, k / 2] from [n, k]."""
    return numbers[:, ::2] | (numbers[:, 1::2] << 4)


def split_halves(joined: Tensor) -> Tensor:
    """The reverse of `join_halves`."""
    return torch.stack([joined & 15, joined >> 4], dim=-1).flatten(1)
