"""Steps that CUDA has recorded: one call starts all their kernels, which by themselves start slower than they run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

# Slots are read in powers of two from here on, as each number of them is recorded by itself. Those that are read in
# vain are few bytes beside the weights.
_LEAST_SLOTS = 128

Run = Callable[[], Tensor]


class RecordedSteps:
    """The compiled steps of a model over one cache, each of which is recorded when it is first made.

    A recording reads and writes where its first run did. The cache and the slots stay where they are; what is new in a
    step is copied to where the recording looks for it.

    Args:
        step: gives the function for so many rows, as `CompiledModel.step` does.
        record: runs a function and returns one that does the same again, with a result of its own.
    """

    def __init__(self, step: Callable[[int], Callable[..., Tensor]], record: Callable[[Run], Run]) -> None:
        self._step = step
        self._record = record
        self._recordings: dict[tuple[int, int], tuple[list[Tensor | None], Run]] = {}

    @property
    def count(self) -> int:
        """How many recordings there are."""
        return len(self._recordings)

    def slots(self, length: int, most: int) -> int:
        """How many slots a step reads that needs `length` of them, of `most` at the most."""
        return min(most, max(_LEAST_SLOTS, 1 << (length - 1).bit_length()))

    def __call__(
        self,
        tokens: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        lengths: Tensor,
        slots: Tensor,
        *rest: Tensor | None,
    ) -> Tensor:
        """Make a step; arguments and result are those of the step itself, with small tensors in `rest`."""
        new = [tokens, lengths, *rest]
        key = tokens.size(0), slots.size(0)
        if key not in self._recordings:
            places = [None if each is None else each.clone() for each in new]
            run = partial(self._step(key[0]), places[0], keys, values, places[1], slots, *places[2:])
            self._recordings[key] = places, self._record(run)
        places, replay = self._recordings[key]
        for place, value in zip(places, new, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        return replay()


def cuda_recorder() -> Callable[[Run], Run]:
    """Give what records on CUDA (a CUDA graph); all that it records shares memory, as no two steps run at once."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Run) -> Run:
        # what is built or chosen in a first run cannot be recorded; the cache gets the same as from the step itself
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out.clone()

        return replay

    return record
