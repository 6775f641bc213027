"""Windows: fixed lengths of a long token array, as batches for training and for evaluation.

A window of T + 1 tokens is T inputs and, shifted by one, their T targets.

Notation used for tensor shapes: b windows in a batch, T sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_llm.config import UserError
from lit_llm.data.loading.look_ahead import LookAhead
from lit_llm.data.loading.order import MixtureOrder, Stretch, mix
from lit_llm.data.pretraining.batches import Batch, PackedWindows, make_batch
from lit_llm.objectives import IGNORE_INDEX

if TYPE_CHECKING:
    from lit_llm.data.loading.stream import Decodes


class TokenSource(Protocol):
    """One long array of tokens that windows are cut from: `ShardedTokens`, or `ArrayTokens`."""

    @property
    def folder(self) -> Path:
        """Names the source in messages."""

    def __len__(self) -> int:
        """Tokens in all."""

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length)."""

    def read_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Several ranges of one length, integers [n, length]; past the end each goes on from the beginning."""

    def locate(self, position: int) -> tuple[Path, int]:
        """The file that holds a token, and the token's place in it."""

    def count(self, token: int, start: int, length: int) -> int:
        """How often `token` stands among tokens [start, start + length)."""


class ArrayTokens:
    """A plain array of token ids as a source of windows, in memory or mapped, without shards or a manifest.

        tokens = np.memmap("train.bin", dtype=np.uint16, mode="r")
        windows = WindowDataset([ArrayTokens(tokens)], [1.0], sequence_length=1024, seed=0)
        batch = windows.__getitems__(range(8))  # tokens and targets [8, 1024]

    Args:
        tokens: integers of any width [tokens]. It is not copied, and read where a window needs it.
        name: of the source, in messages.

    Raises:
        UserError: `tokens` has more dimensions than one, or holds other things than integers.
    """

    def __init__(self, tokens: np.ndarray, name: str = "the array") -> None:
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(
                f"{name} is {list(tokens.shape)} of {tokens.dtype}; give token ids as one dimension of integers"
            )
        self.tokens, self.folder = tokens, Path(name)

    def __len__(self) -> int:
        """Tokens in all."""
        return len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length), in the type of the array.

        Raises:
            IndexError: the range is not inside the array.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)} in {self.folder}")
        return self.tokens[start : start + length]

    def read_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Several ranges of one length; one that reaches past the end goes on from the beginning.

        Args:
            starts: first token of each, [n].
            length: tokens in each.

        Returns:
            [n, length], in the type of the array.
        """
        places = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(length)
        return self.tokens[places % len(self)]

    def locate(self, position: int) -> tuple[Path, int]:
        """The name of the array, and `position` itself."""
        return self.folder, position

    def count(self, token: int, start: int, length: int) -> int:
        """How often `token` stands among tokens [start, start + length)."""
        return int(np.count_nonzero(self.read(start, length) == token))


class WindowGrid:
    """How the windows of one epoch cut a corpus, so that every token but its first is a target exactly once.

    The corpus is read as a ring, in which its first token comes after its last, and is cut into as many equal parts as
    windows are needed. A window reads T + 1 tokens from where its part begins, and only the targets in its part are
    its own; the few that follow belong to the next window. Each epoch begins at another place of the ring, and so cuts
    the text at other places. (Whole windows and no token more are cut at the same places each time: there is no room
    for the end of the ring inside a window.)

    Args:
        num_tokens: length of the corpus.
        sequence_length: T.

    Attributes:
        num_windows: windows of an epoch: the smallest number that holds every target.
        num_phases: places at which an epoch may begin.

    Raises:
        UserError: the corpus is shorter than one window of T + 1 tokens.
    """

    def __init__(self, num_tokens: int, sequence_length: int) -> None:
        if num_tokens <= sequence_length:
            raise UserError(
                f"the corpus has {num_tokens} tokens and one window needs {sequence_length + 1}; "
                "lower data.sequence_length or use more text"
            )
        self.num_tokens = num_tokens
        self.num_windows = -(-(num_tokens - 1) // sequence_length)
        # What the windows share out: the whole ring, or all but its last token, which no target follows.
        self._span = min(num_tokens, self.num_windows * sequence_length)
        self.num_phases = num_tokens if self._span == num_tokens else 1

    def start(self, window: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """First token of each window; int64, shaped like `window`."""
        return (self._offset(window) + phase) % self.num_tokens

    def targets(self, window: np.ndarray) -> np.ndarray:
        """How many targets from its first on are a window's own, at most T; int64, shaped like `window`."""
        return self._offset(window + 1) - self._offset(window)

    def _offset(self, window: np.ndarray) -> np.ndarray:
        whole, rest = divmod(self._span, self.num_windows)  # window * span would not fit 64 bits in a large corpus
        return window * whole + np.minimum(window, rest)


def grid_of(source: TokenSource, sequence_length: int) -> WindowGrid:
    """How windows cut a source.

    Raises:
        UserError: it is shorter than one window; the message names it.
    """
    try:
        return WindowGrid(len(source), sequence_length)
    except UserError as error:
        raise UserError(f"{source.folder}: {error}") from None


class WindowDataset(Dataset):
    """Training windows by sample index: an endless, shuffled, mixed stream that any index can be asked of.

    A batch holds int64 tensors:
        tokens [b, T], targets [b, T] (-100 where nothing is predicted), sample_ids [b] (the indices asked for), and
        with mask_documents document_ids [b, T], which count the documents inside a window from 0.

    In each epoch every token of a source but its first is a target once; see `WindowGrid`.

    Args:
        sources: the token arrays to mix: shards, or plain arrays as `ArrayTokens`.
        weights: positive share of the samples from each source; or the stretches of `MixtureOrder`, where shares are
            exact in batches of a given size, or change.
        sequence_length: T.
        seed: keys the order and the phases.
        eot_id: token that ends a document; None where nothing tells documents apart.
        mask_documents: also return document_ids, and predict nothing at an end-of-text token, whose successor belongs
            to another document.

    Raises:
        UserError: a source is shorter than one window, or its weight is too small; or documents are to be masked, and
            there is no `eot_id`.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        weights: Sequence[float] | Sequence[Stretch],
        sequence_length: int,
        seed: int,
        eot_id: int | None = None,
        mask_documents: bool = False,
    ) -> None:
        if mask_documents and eot_id is None:
            raise UserError("mask_documents needs the token that ends a document; give eot_id")
        self.sources = list(sources)
        self.grids = [grid_of(source, sequence_length) for source in self.sources]
        self.order = MixtureOrder([grid.num_windows for grid in self.grids], weights, seed)
        self.sequence_length = sequence_length
        self.seed = seed
        self.eot_id = eot_id
        self.mask_documents = mask_documents
        self._last = np.array([len(source) - 1 for source in self.sources], dtype=np.int64)
        self._starts = LookAhead(self.starts)

    def starts(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, first token and number of targets of each sample; int64 [n] each."""
        sources, epochs, windows = self.order.lookup(sample_ids)
        starts, lengths = np.empty_like(windows), np.empty_like(windows)
        for source, epoch in set(zip(sources.tolist(), epochs.tolist(), strict=True)):
            chosen = (sources == source) & (epochs == epoch)
            grid = self.grids[source]
            starts[chosen] = grid.start(windows[chosen], mix(self.seed, source, epoch, 1) % grid.num_phases)
            lengths[chosen] = grid.targets(windows[chosen])
        return sources, starts, lengths

    def locate(self, sample_ids: Sequence[int]) -> list[tuple[Path, int]]:
        """The shard in which each sample begins, and the place of its first token there."""
        sources, starts, _ = self.starts(np.asarray(sample_ids, dtype=np.int64))
        return [
            self.sources[source].locate(start) for source, start in zip(sources.tolist(), starts.tolist(), strict=True)
        ]

    def describe(self, sample_id: int, tokenizer: Decodes) -> tuple[str, str]:
        """Where a sample begins, in words, and its text."""
        (source,), (start,), _ = self.starts(np.array([sample_id]))
        ((file, offset),) = self.locate([sample_id])
        place = f"{file}, token {offset}"
        if self.eot_id is None:
            place += " (from 0)"
        else:
            document = self.sources[source].count(self.eot_id, int(start) - offset, offset)
            place += f", in document {document} of that file (both from 0)"
        return place, tokenizer.decode(self[sample_id]["tokens"].tolist())

    def __getitem__(self, sample_id: int) -> Batch:
        """One sample, without the batch dimension."""
        return {name: tensor[0] for name, tensor in self.__getitems__([sample_id]).items()}

    def __getitems__(self, sample_ids: Sequence[int]) -> Batch:
        """A whole batch."""
        return self.pack(sample_ids).unpack()

    def pack(self, sample_ids: Sequence[int]) -> PackedWindows:
        """A whole batch, as it was read."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        sources, starts, lengths = self._starts(ids)
        chosen = {source: np.flatnonzero(sources == source) for source in np.unique(sources).tolist()}
        read = {
            source: self.sources[source].read_windows(starts[rows], self.sequence_length + 1)
            for source, rows in chosen.items()
        }
        if len(read) == 1:
            (windows,) = read.values()
        else:
            types = {part.dtype for part in read.values()}
            windows = np.empty((len(ids), self.sequence_length + 1), types.pop() if len(types) == 1 else np.int64)
            for source, rows in chosen.items():
                windows[rows] = read[source]
        return PackedWindows(windows, lengths, self._last[sources] - starts, ids, self.eot_id, self.mask_documents)


class EvaluationWindows(Dataset):
    """Every target of a split exactly once, in windows that do not overlap, shared by the ranks.

    The last window of a source is filled up with `pad_id`, ignored. Rank r has windows r, r + W, ...; ranks that would
    have fewer get windows that are ignored as a whole (sample_ids -1), so that all have the same number.

    Batches are as in `WindowDataset`; sample_ids are window numbers. Where sources have numbers, a batch has source_ids
    [b], too: that of each window's source (-1 where the window is ignored as a whole).

    Args:
        sources: the token arrays, one after another, as of `WindowDataset`; no window crosses from one to the next.
        sequence_length: T.
        eot_id: token that ends a document; None where nothing tells documents apart.
        pad_id: token that fills up.
        mask_documents: as in `WindowDataset`; the first token of a document is then no target.
        num_windows: read only this many windows, evenly spread; None reads all.
        rank: this process.
        world_size: processes in all.
        numbers: of the sources; None: they have none.

    Raises:
        UserError: there is not one target; or documents are to be masked, and there is no `eot_id`.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        sequence_length: int,
        eot_id: int | None,
        pad_id: int,
        mask_documents: bool = False,
        num_windows: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        numbers: Sequence[int] | None = None,
    ) -> None:
        if mask_documents and eot_id is None:
            raise UserError("mask_documents needs the token that ends a document; give eot_id")
        self.sources = list(sources)
        self.sequence_length = sequence_length
        self.eot_id = eot_id
        self.pad_id = pad_id
        self.mask_documents = mask_documents
        self.rank = rank
        self.world_size = world_size
        self.numbers = numbers
        counts = [-(-max(0, len(source) - 1) // sequence_length) for source in self.sources]
        self._first = np.cumsum([0, *counts])
        self.total_windows = int(self._first[-1])
        if not self.total_windows:
            folders = ", ".join(str(source.folder) for source in self.sources)
            raise UserError(f"{folders} has fewer than 2 tokens, so there is nothing to evaluate on; use more text")
        self.num_windows = min(num_windows or self.total_windows, self.total_windows)

    def read_numbers(self) -> set[int]:
        """The numbers of the sources that have a window among those that are read, on any rank."""
        windows = np.arange(self.num_windows) * self.total_windows // self.num_windows
        numbers = range(len(self.sources)) if self.numbers is None else self.numbers
        return {numbers[source] for source in np.unique(self._source(windows)).tolist()}

    def _source(self, windows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first, windows, side="right") - 1

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
        sample_ids, source_ids = np.full((2, len(indices)), -1, dtype=np.int64)
        for row, index in enumerate(indices):
            position = index * self.world_size + self.rank
            if position >= self.num_windows:
                continue
            window = position * self.total_windows // self.num_windows
            source = int(self._source(np.array(window)))
            start = (window - int(self._first[source])) * length
            read = self.sources[source].read(start, min(length + 1, len(self.sources[source]) - start))
            tokens[row, : len(read) - 1] = read[:-1]
            targets[row, : len(read) - 1] = read[1:]
            sample_ids[row], source_ids[row] = window, source if self.numbers is None else self.numbers[source]
        batch = make_batch(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(sample_ids),
            self.eot_id,
            self.mask_documents,
        )
        return batch if self.numbers is None else {**batch, "source_ids": torch.from_numpy(source_ids)}
