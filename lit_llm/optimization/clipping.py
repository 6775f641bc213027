"""The norm of a gradient whose parts may be spread over ranks in different ways, and how it is kept within bounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_llm.distributed.tensors import local_part


def gradient_norm(gradients: Iterable[Tensor], plain_parts_of: dist.ProcessGroup | None = None) -> Tensor:
    """The 2-norm of all gradients together, the same on every rank; every rank must call it.

    Gradients of one layout are reduced in one collective for each mesh dimension that shards them: DTensors of
    different meshes, which tensor parallelism makes, cannot be reduced together.

    Args:
        gradients: plain tensors and DTensors.
        plain_parts_of: the group over whose ranks *plain* gradients are spread (FSDP1), or None where they are whole.

    Returns:
        scalar float32; 0 for no gradients.
    """
    layouts: dict[Any, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        layout = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
        layouts[layout].append(gradient)
    squares = []
    for layout, members in layouts.items():
        square = torch.nn.utils.get_total_norm([local_part(member) for member in members]).float().square()
        groups = [plain_parts_of] if layout is None and plain_parts_of is not None else []
        if layout is not None:
            mesh, placements = layout
            # gradients of offloaded weights lie in host memory, where the ranks cannot reach each other
            square = square.to(mesh.device_type)
            groups = [mesh.get_group(dim) for dim, place in enumerate(placements) if not place.is_replicate()]
        for group in groups:
            dist.all_reduce(square, group=group)
        squares.append(square)
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def clip_gradients(
    parameters: Iterable[Tensor], max_norm: float, plain_parts_of: dist.ProcessGroup | None = None
) -> Tensor:
    """Scale the gradients of all parameters together so that their norm is at most `max_norm`; for loops of one's own.

    Unlike `torch.nn.utils.clip_grad_norm_` it takes DTensors of several meshes, which tensor parallelism makes. A
    gradient that is not finite is left as it is: look at the norm that is returned. Every rank must call it.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: above 0.
        plain_parts_of: as of `gradient_norm`.

    Returns:
        The norm before clipping, scalar float32.

    Raises:
        ValueError: `max_norm` is not above 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; it must be above 0")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(gradients, plain_parts_of)
    scale_gradients(gradients, clip_coefficient(float(norm), max_norm))
    return norm


def clip_coefficient(norm: float, max_norm: float | None) -> float:
    """What a gradient of this norm is multiplied by so that its norm is at most `max_norm`; None does not clip."""
    if max_norm is None or not math.isfinite(norm):
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))


@torch.no_grad()
def scale_gradients(gradients: Iterable[Tensor], coefficient: float) -> None:
    """Multiply gradients, plain or sharded, in place; each rank scales its own parts."""
    parts = [local_part(gradient) for gradient in gradients]
    if parts and coefficient != 1.0:
        torch._foreach_mul_(parts, coefficient)
