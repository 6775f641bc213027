"""Work on whole tensors that several ranks hold in parts, each rank doing its share: whole tensors go to their worker.

Two exchanges move each number once to the rank that needs it, where gathering would send all of them to every rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_llm.distributed.tensors import is_spread

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

Slices = tuple[slice, ...]


class Shares:
    """Who works on which of some tensors that are spread over the same mesh.

    Args:
        tensors: DTensors of one mesh. Where it is not all ranks of the run, those along its last dimension share.
        cost: of the work on one of them, by its shape; the work is dealt out evenly.
    """

    def __init__(self, tensors: Sequence[DTensor], cost: Callable[[torch.Size], float]) -> None:
        self.tensors = tensors
        mesh = tensors[0].device_mesh
        self.device_type, self.sizes = mesh.device_type, tuple(mesh.shape)
        everyone = mesh.size() == dist.get_world_size()
        self.group = dist.group.WORLD if everyone else mesh.get_group(mesh.ndim - 1)
        places = dict(zip(mesh.mesh.flatten().tolist(), product(*map(range, self.sizes)), strict=True))
        self.places = [places[rank] for rank in dist.get_process_group_ranks(self.group)]
        self.rank = dist.get_rank(self.group)
        workers = _dealt([cost(tensor.shape) for tensor in tensors], len(self.places))
        self.numbers: list[list[int]] = [[] for _ in self.places]  # of the tensors that each rank works on
        for number, worker in enumerate(workers):
            self.numbers[worker].append(number)

    @property
    def mine(self) -> list[int]:
        """Numbers of the tensors that this rank works on."""
        return self.numbers[self.rank]

    def collect(self, parts: Sequence[Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
        """Send this rank's part of each tensor to its worker; every rank must call.

        Returns:
            The whole tensors that this rank works on, by number, in `dtype`.
        """
        sent = [
            [parts[number].to(dtype) for number in numbers if self._sends(self.rank, rank, number)]
            for rank, numbers in enumerate(self.numbers)
        ]
        expected = [
            [(number, self._slices(number, rank)) for number in self.mine if self._sends(rank, self.rank, number)]
            for rank in range(len(self.places))
        ]
        wholes = {number: self._empty(self.tensors[number].shape, dtype) for number in self.mine}
        received = self._exchange(sent, [[slices for _, slices in each] for each in expected], dtype)
        for each, pieces in zip(expected, received, strict=True):
            for (number, slices), piece in zip(each, pieces, strict=True):
                wholes[number][slices] = piece
        return wholes

    def deal(self, wholes: Mapping[int, Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
        """Send each rank its part of the whole tensors that this rank has worked on; every rank must call.

        Returns:
            This rank's part of every tensor, by number, in `dtype`.
        """
        sent = [
            [wholes[number][self._slices(number, rank)].to(dtype) for number in self.mine]
            for rank in range(len(self.places))
        ]
        expected = [[self._slices(number, self.rank) for number in each] for each in self.numbers]
        received = self._exchange(sent, expected, dtype)
        return {
            number: piece
            for each, pieces in zip(self.numbers, received, strict=True)
            for number, piece in zip(each, pieces, strict=True)
        }

    def _slices(self, number: int, rank: int) -> Slices:
        tensor = self.tensors[number]
        return part_of(tensor.shape, tensor.placements, self.sizes, self.places[rank])

    def _sends(self, source: int, worker: int, number: int) -> bool:
        """Whether the worker has a part from this rank, and not from one that holds the same."""
        placements = self.tensors[number].placements
        pairs = zip(placements, self.places[source], self.places[worker], strict=True)
        return all(mine == theirs for placement, mine, theirs in pairs if placement.is_replicate())

    def _empty(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self._device)

    @property
    def _device(self) -> torch.device:
        if self.device_type == "cpu":
            return torch.device("cpu")
        return torch.device(self.device_type, torch.accelerator.current_device_index())

    def _exchange(
        self, sent: list[list[Tensor]], expected: list[list[Slices]], dtype: torch.dtype
    ) -> list[list[Tensor]]:
        """Send the pieces of `sent` to each rank, and return those from each, which have the shapes of `expected`."""
        pieces = [piece.to(self._device).flatten() for each in sent for piece in each]
        outgoing = torch.cat(pieces) if pieces else self._empty((0,), dtype)
        shapes = [[[bounds.stop - bounds.start for bounds in slices] for slices in each] for each in expected]
        counts = [[torch.Size(shape).numel() for shape in each] for each in shapes]
        incoming = self._empty((sum(map(sum, counts)),), dtype)
        sizes = [sum(each) for each in counts], [sum(piece.numel() for piece in each) for each in sent]
        if len(self.places) == 1:
            incoming = outgoing
        else:
            dist.all_to_all_single(incoming, outgoing, *sizes, group=self.group)
        flat = iter(incoming.split([count for each in counts for count in each]))
        return [[next(flat).view(shape) for shape in each] for each in shapes]


def by_mesh(tensors: Sequence[Tensor]) -> dict[DeviceMesh | None, list[int]]:
    """Numbers of the tensors that are spread over each mesh; None: those that every rank has whole."""
    found: dict[DeviceMesh | None, list[int]] = {}
    for number, tensor in enumerate(tensors):
        mesh = tensor.device_mesh if is_spread(tensor) and tensor.device_mesh.size() > 1 else None
        found.setdefault(mesh, []).append(number)
    return found


def part_of(shape: Sequence[int], placements: Sequence[Any], sizes: Sequence[int], place: Sequence[int]) -> Slices:
    """The part of a tensor of `shape` that the rank at `place` of a mesh of `sizes` has, as `shard_like` cuts it."""
    bounds = [(0, size) for size in shape]
    for dim in reversed(range(len(sizes))):
        if placements[dim].is_replicate():
            continue
        start, stop = bounds[placements[dim].dim]
        length = -(-(stop - start) // sizes[dim])
        first = min(stop, start + place[dim] * length)
        bounds[placements[dim].dim] = (first, min(stop, first + length))
    return tuple(slice(*each) for each in bounds)


def _dealt(costs: Sequence[float], workers: int) -> list[int]:
    """Give each piece of work, the longest first, to the worker that has least to do."""
    loads = [(0.0, worker) for worker in range(workers)]
    chosen = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        load, worker = heapq.heappop(loads)
        chosen[number] = worker
        heapq.heappush(loads, (load + costs[number], worker))
    return chosen
