"""Windows: fixed lengths of a long token array, as batches for training and for evaluation.

A window of T + 1 tokens is T inputs and, shifted by one, their T targets; its last token is the first of the next.

Notation used for tensor shapes: b windows in a batch, T sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_llm.config import UserError
from lit_llm.data.order import MixtureOrder, mix
from lit_llm.data.shards import ShardedTokens
from lit_llm.objectives import IGNORE_INDEX

if TYPE_CHECKING:
    from lit_llm.data.resumable import Decodes

Batch = dict[str, Tensor]


class WindowGrid:
    """Where the windows of one epoch start.

    A corpus with room for two windows or more gives one of them up, so that the grid can begin at any of the first T
    tokens: each epoch then cuts the text in other places. Every epoch has the same number of windows and none reads
    past the end.

    Args:
        num_tokens: length of the corpus.
        sequence_length: T.

    Raises:
        UserError: the corpus is shorter than one window of T + 1 tokens.
    """

    def __init__(self, num_tokens: int, sequence_length: int) -> None:
        whole = (num_tokens - 1) // sequence_length
        if whole < 1:
            raise UserError(
                f"the corpus has {num_tokens} tokens and one window needs {sequence_length + 1}; "
                "lower data.sequence_length or use more text"
            )
        self.sequence_length = sequence_length
        self.num_windows = whole - 1 if whole >= 2 else 1
        self.num_phases = sequence_length if whole >= 2 else num_tokens - sequence_length

    def start(self, window: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """First token of each window; int64, shaped like `window`."""
        return window * self.sequence_length + phase


class WindowDataset(Dataset):
    """Training windows by sample index: an endless, shuffled, mixed stream that any index can be asked of.

    A batch holds int64 tensors:
        tokens [b, T], targets [b, T] (-100 where nothing is predicted), sample_ids [b] (the indices asked for), and
        with mask_documents document_ids [b, T], which count the documents inside a window from 0.

    Args:
        sources: the token arrays to mix.
        weights: positive share of the samples from each source.
        sequence_length: T.
        seed: keys the order and the phases.
        eot_id: token that ends a document.
        mask_documents: also return document_ids, and predict nothing at an end-of-text token, whose successor belongs
            to another document.

    Raises:
        UserError: a source is shorter than one window, or its weight is too small.
    """

    def __init__(
        self,
        sources: Sequence[ShardedTokens],
        weights: Sequence[float],
        sequence_length: int,
        seed: int,
        eot_id: int,
        mask_documents: bool = False,
    ) -> None:
        self.sources = list(sources)
        self.grids = []
        for source in self.sources:
            try:
                self.grids.append(WindowGrid(len(source), sequence_length))
            except UserError as error:
                raise UserError(f"{source.folder}: {error}") from None
        self.order = MixtureOrder([grid.num_windows for grid in self.grids], weights, seed)
        self.sequence_length = sequence_length
        self.seed = seed
        self.eot_id = eot_id
        self.mask_documents = mask_documents

    def starts(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and first token of each sample; int64 [n] both."""
        sources, epochs, windows = self.order.lookup(sample_ids)
        starts = np.empty_like(windows)
        for source, epoch in set(zip(sources.tolist(), epochs.tolist(), strict=True)):
            chosen = (sources == source) & (epochs == epoch)
            grid = self.grids[source]
            starts[chosen] = grid.start(windows[chosen], mix(self.seed, source, epoch, 1) % grid.num_phases)
        return sources, starts

    def locate(self, sample_ids: Sequence[int]) -> list[tuple[Path, int]]:
        """The shard in which each sample begins, and the place of its first token there."""
        sources, starts = self.starts(np.asarray(sample_ids, dtype=np.int64))
        return [
            self.sources[source].locate(start) for source, start in zip(sources.tolist(), starts.tolist(), strict=True)
        ]

    def describe(self, sample_id: int, tokenizer: Decodes) -> tuple[str, str]:
        """Where a sample begins, in words, and its text."""
        (source,), (start,) = self.starts(np.array([sample_id]))
        ((file, offset),) = self.locate([sample_id])
        document = self.sources[source].count(self.eot_id, int(start) - offset, offset)
        place = f"{file}, token {offset}, in document {document} of that file (both from 0)"
        return place, tokenizer.decode(self[sample_id]["tokens"].tolist())

    def __getitem__(self, sample_id: int) -> Batch:
        """One sample, without the batch dimension."""
        return {name: tensor[0] for name, tensor in self.__getitems__([sample_id]).items()}

    def __getitems__(self, sample_ids: Sequence[int]) -> Batch:
        """A whole batch."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        sources, starts = self.starts(ids)
        windows = np.empty((len(ids), self.sequence_length + 1), dtype=np.int64)
        for source in np.unique(sources):
            chosen = sources == source
            windows[chosen] = self.sources[source].read_windows(starts[chosen], self.sequence_length + 1)
        windows = torch.from_numpy(windows)
        return make_batch(
            windows[:, :-1], windows[:, 1:].clone(), torch.from_numpy(ids), self.eot_id, self.mask_documents
        )


class EvaluationWindows(Dataset):
    """Every target of a split exactly once, in windows that do not overlap, shared by the ranks.

    The last window of a source is filled up with `pad_id`, ignored. Rank r has windows r, r + W, ...; ranks that would
    have fewer get windows that are ignored as a whole (sample_ids -1), so that all have the same number.

    Batches are as in `WindowDataset`; sample_ids are window numbers.

    Args:
        sources: the token arrays, one after another; no window crosses from one to the next.
        sequence_length: T.
        eot_id: token that ends a document.
        pad_id: token that fills up.
        mask_documents: as in `WindowDataset`; the first token of a document is then no target.
        num_windows: read only this many windows, evenly spread; None reads all.
        rank: this process.
        world_size: processes in all.

    Raises:
        UserError: there is not one target.
    """

    def __init__(
        self,
        sources: Sequence[ShardedTokens],
        sequence_length: int,
        eot_id: int,
        pad_id: int,
        mask_documents: bool = False,
        num_windows: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sources = list(sources)
        self.sequence_length = sequence_length
        self.eot_id = eot_id
        self.pad_id = pad_id
        self.mask_documents = mask_documents
        self.rank = rank
        self.world_size = world_size
        counts = [-(-max(0, len(source) - 1) // sequence_length) for source in self.sources]
        self._first = np.cumsum([0, *counts])
        self.total_windows = int(self._first[-1])
        if not self.total_windows:
            folders = ", ".join(str(source.folder) for source in self.sources)
            raise UserError(f"{folders} has fewer than 2 tokens, so there is nothing to evaluate on; use more text")
        self.num_windows = min(num_windows or self.total_windows, self.total_windows)

    def __len__(self) -> int:
        """Windows of this rank, the same for every rank."""
        return -(-self.num_windows // self.world_size)

    def __getitem__(self, index: int) -> Batch:
        """One window, without the batch dimension."""
        return {name: tensor[0] for name, tensor in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch of this rank's windows."""
        length = self.sequence_length
        tokens = np.full((len(indices), length), self.pad_id, dtype=np.int64)
        targets = np.full((len(indices), length), IGNORE_INDEX, dtype=np.int64)
        sample_ids = np.full(len(indices), -1, dtype=np.int64)
        for row, index in enumerate(indices):
            position = index * self.world_size + self.rank
            if position >= self.num_windows:
                continue
            window = position * self.total_windows // self.num_windows
            source = int(np.searchsorted(self._first, window, side="right")) - 1
            start = (window - int(self._first[source])) * length
            read = self.sources[source].read(start, min(length + 1, len(self.sources[source]) - start))
            tokens[row, : len(read) - 1] = read[:-1]
            targets[row, : len(read) - 1] = read[1:]
            sample_ids[row] = window
        return make_batch(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(sample_ids),
            self.eot_id,
            self.mask_documents,
        )


def make_batch(tokens: Tensor, targets: Tensor, sample_ids: Tensor, eot_id: int, mask_documents: bool) -> Batch:
    """The dict that a module is given; see `WindowDataset`. Writes to `targets`."""
    batch = {"tokens": tokens.contiguous(), "targets": targets, "sample_ids": sample_ids}
    if mask_documents:
        ends = tokens == eot_id
        targets[ends] = IGNORE_INDEX
        # An end-of-text token belongs to the document that it ends.
        batch["document_ids"] = ends.cumsum(dim=1) - ends.long()
    return batch


def use_whole_batch(batch: Batch) -> Batch:
    """Collate function of datasets whose `__getitems__` already returns a batch."""
    return batch
