"""The norm of a gradient whose parts may be spread over ranks in different ways."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


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
        sharded = isinstance(gradient, DTensor)
        layouts[(gradient.device_mesh, gradient.placements) if sharded else None].append(gradient)
    squares = []
    for layout, members in layouts.items():
        parts = [member.to_local() if isinstance(member, DTensor) else member for member in members]
        square = torch.nn.utils.get_total_norm(parts).float().square()
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
