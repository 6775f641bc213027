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
    least, greatest = groups.amin(-1), groups.amax(-1)
    scale = ((greatest - least) / 15).to(x.dtype)
    middle = (least + 8 * scale.float()).to(x.dtype)
    scale = torch.where(scale > 0, scale, 1)
    numbers = ((groups - middle.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round() + 8
    return (
        numbers.clamp(0, 15).to(torch.uint8).flatten(1),
        torch.stack([scale, middle], dim=-1).transpose(0, 1).contiguous(),
    )


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
