"""Batches in the few bytes in which they pass from a loader process to the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


class PackedBatch(ABC):
    """A batch in arrays and numbers, from which its tensors are made where it arrives.

    A loader process passes every tensor as a shared file of its own, which takes longer than to read the batch.
    """

    @abstractmethod
    def unpack(self) -> dict[str, Tensor]:
        """The batch itself."""

    def pin_memory(self) -> dict[str, Tensor]:
        """The batch in pinned memory; the thread of the loader that pins calls it."""
        return {name: tensor.pin_memory() for name, tensor in self.unpack().items()}


class PackedDataset(Dataset):
    """The batches of a dataset that packs them, packed: what loader processes read.

    Args:
        dataset: has `pack`, which returns a `PackedBatch`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, sample_ids: Sequence[int]) -> PackedBatch:
        """A whole batch."""
        return self.dataset.pack(sample_ids)
