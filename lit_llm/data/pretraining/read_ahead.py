"""Fetching what a training will read from remote shards, before it is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from lit_llm.data.corpus.remote_shards import RemoteTokens
from lit_llm.data.loading.loader import ConsumedBatchSampler
from lit_llm.data.pretraining.windows import WindowDataset


def read_ahead(sampler: ConsumedBatchSampler, dataset: WindowDataset) -> Sampler[list[int]]:
    """A sampler that has the blocks of its next batches fetched; `sampler` itself where nothing is remote.

    Which samples come next is known to the last one, as their order is a pure function. How many batches it looks
    ahead is data.remote.ahead, or less: it asks for a quarter of the cache at most.
    """
    remote = {index: source for index, source in enumerate(dataset.sources) if isinstance(source, RemoteTokens)}
    ahead = [
        min(source.folder.config.ahead, source.cache_blocks // (4 * sampler.micro_batch_size))
        for source in remote.values()
    ]
    return ReadAhead(sampler, dataset, remote, min(ahead)) if min(ahead, default=0) else sampler


class ReadAhead(Sampler[list[int]]):
    """The batches of another sampler; each has its windows fetched in the background some batches earlier.

    Args:
        batches: gives the sample indices of each batch.
        dataset: says which windows they are.
        remote: those of its sources that are fetched, by their number.
        ahead: how many batches earlier.
    """

    def __init__(
        self, batches: ConsumedBatchSampler, dataset: WindowDataset, remote: dict[int, RemoteTokens], ahead: int
    ) -> None:
        self.batches, self.dataset, self.remote, self.ahead = batches, dataset, remote, ahead

    def __len__(self) -> int:
        """How many batches an iterator gives."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches."""
        waiting: deque[list[int]] = deque()
        for batch in self.batches:
            self._prefetch(batch)
            waiting.append(batch)
            if len(waiting) > self.ahead:
                yield waiting.popleft()
        yield from waiting

    def _prefetch(self, batch: list[int]) -> None:
        sources, starts, _ = self.dataset.starts(np.asarray(batch, dtype=np.int64))
        for index, source in self.remote.items():
            source.prefetch(starts[sources == index], self.dataset.sequence_length + 1)
