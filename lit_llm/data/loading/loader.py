"""Loaders: which samples each rank reads in each micro-batch, and how long the training waits for them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_llm.config import UserError
from lit_llm.data.loading.packed import PackedBatch, PackedDataset


def micro_batch_shape(batch_size: int, micro_batch_size: int | None, world_size: int) -> tuple[int, int]:
    """How a global batch is divided.

    Args:
        batch_size: windows in one optimizer step, over all ranks.
        micro_batch_size: windows that one rank holds at once; None: all of its share.
        world_size: ranks.

    Returns:
        Windows in each micro-batch of a rank, and micro-batches in a step.

    Raises:
        UserError: the batch size does not divide by the ranks and micro-batches.
    """
    if micro_batch_size is None:
        if batch_size % world_size:
            raise UserError(
                f"data.batch_size {batch_size} does not divide by {world_size} devices; use a multiple of {world_size}"
            )
        return batch_size // world_size, 1
    if batch_size % (micro_batch_size * world_size):
        raise UserError(
            f"data.batch_size {batch_size} does not divide by data.micro_batch_size {micro_batch_size} x {world_size} "
            f"devices; use a multiple of {micro_batch_size * world_size}"
        )
    return micro_batch_size, batch_size // (micro_batch_size * world_size)


class ConsumedBatchSampler(Sampler[list[int]]):
    """The sample indices of each micro-batch of one rank, from a sample on.

    Optimizer step k from here reads samples [consumed + k B, consumed + (k + 1) B), in micro-batches one after another,
    each dealt to the ranks in turn. The set of samples in a step is therefore the same for any number of ranks,
    micro-batch size or workers. A batch size that changed at resume goes on from the same sample.

    Args:
        samples_consumed: samples that earlier steps have read, over all ranks.
        batch_size: B, samples in one optimizer step over all ranks.
        micro_batch_size: samples in one micro-batch of this rank; None: no accumulation.
        rank: this process.
        world_size: processes in all.
        num_steps: optimizer steps still to do.

    Raises:
        UserError: the batch size does not divide by the ranks and micro-batches.
    """

    def __init__(
        self,
        samples_consumed: int,
        batch_size: int,
        micro_batch_size: int | None,
        rank: int,
        world_size: int,
        num_steps: int,
    ) -> None:
        self.samples_consumed = samples_consumed
        self.micro_batch_size, self.accumulate_grad_batches = micro_batch_shape(
            batch_size, micro_batch_size, world_size
        )
        self.rank = rank
        self.world_size = world_size
        self.num_steps = num_steps

    def __len__(self) -> int:
        """How many micro-batches an iterator gives."""
        return self.num_steps * self.accumulate_grad_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the sample indices of each micro-batch of this rank."""
        # Steps follow each other without a gap, so that micro-batches are evenly spaced over the whole run.
        stride = self.micro_batch_size * self.world_size
        for index in range(len(self)):
            first = self.samples_consumed + index * stride
            yield list(range(first + self.rank, first + stride, self.world_size))


def end_without_parent(worker: int) -> None:
    """End a loader process whose parent was killed before it had begun to look whether that lives.

    torch's workers compare their parent's id with the one that they saw first; of one that was dead by then they would
    wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


class TimedDataLoader(DataLoader):
    """A DataLoader of whole batches that counts how long `next` kept the training waiting.

    It draws from a generator of its own, so that making an iterator leaves the global random state alone. What it
    reports as its length may be set, as Lightning counts the micro-batches before a resume as fetched from it.

    Args:
        dataset: has `__getitems__`, which returns a batch; where it has `pack`, loader processes pass on what that
            returns, a `PackedBatch`.
        reported_length: what `len` gives; None: the batches that an iterator yields.
        **options: of `torch.utils.data.DataLoader`.

    Attributes:
        wait_seconds: time spent waiting so far; whoever reads it may set it back to 0.
    """

    def __init__(self, dataset: Dataset, reported_length: int | None = None, **options: Any) -> None:
        options.setdefault("collate_fn", use_whole_batch)
        if options.get("num_workers"):
            options.setdefault("worker_init_fn", end_without_parent)
            if hasattr(dataset, "pack"):
                dataset = PackedDataset(dataset)
        super().__init__(dataset, generator=torch.Generator(), **options)
        self.reported_length = reported_length
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return super().__len__() if self.reported_length is None else self.reported_length

    def __iter__(self) -> Iterator[Any]:
        return self._timed(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty dict, as the data module holds the state.

        Lightning takes a loader that has this method for one that goes on where it was.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load; see `state_dict`."""

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
                if isinstance(batch, PackedBatch):
                    batch = batch.unpack()
            except StopIteration:
                return
            except UserError as error:
                raise UserError(said_by_worker(str(error))) from error
            finally:
                self.wait_seconds += time.perf_counter() - started
            yield batch


def said_by_worker(message: str) -> str:
    """The line of an error that may have come from a loader process, which has a traceback put before it."""
    return message.rpartition("UserError: ")[2].strip()


def use_whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate function of datasets whose `__getitems__` already returns a batch."""
    return batch
