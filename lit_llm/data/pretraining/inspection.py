"""What a window of shards holds: its documents, where they came from, and their text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lit_llm.data.corpus.provenance import DocumentPart, document_parts
from lit_llm.data.corpus.shards import ShardedTokens

if TYPE_CHECKING:
    from lit_llm.data.loading.stream import Decodes
    from lit_llm.data.pretraining.data_module import TokenDataModule


@dataclass(frozen=True)
class Window:
    """A stretch of tokens of a split."""

    name: str
    """What it is, in words."""
    source: ShardedTokens
    """The split."""
    start: int
    """Its first token there."""
    tokens: int
    """How many there are; past the end of the split it goes on from the beginning."""

    @property
    def place(self) -> str:
        """The shard that it begins in, and where in it."""
        file, offset = self.source.locate(self.start)
        return f"{file}, token {offset:,}"

    def documents(self) -> list[DocumentPart]:
        """Its documents, in order."""
        return document_parts(self.source, self.start, self.tokens)

    def text(self, part: DocumentPart, tokenizer: Decodes) -> str:
        """The text of one of its documents, as far as it is inside."""
        starts = np.array([(self.start + part.start) % len(self.source)])
        ids = self.source.read_windows(starts, part.tokens)[0].tolist()
        if part.ends and ids[-1] == self.source.manifest.eot_id:
            ids.pop()
        return tokenizer.decode(ids)


def window_of_split(source: ShardedTokens, number: int, length: int) -> Window:
    """Window `number` of those that a split is cut into one after another; the last may be shorter.

    Raises:
        IndexError: there is no such window.
    """
    total = -(-len(source) // length)
    if not 0 <= number < total:
        raise IndexError(f"window {number:,} of {total:,}")
    start = number * length
    return Window(f"window {number:,} of {total:,}", source, start, min(length, len(source) - start))


def windows_of_samples(data: TokenDataModule, samples: range) -> list[Window]:
    """The windows that training samples are: the tokens that the model reads, without the target after the last."""
    dataset = data.train_dataset
    ids = np.arange(samples.start, samples.stop)
    starts = dataset.starts(ids)[1].tolist()
    sources, epochs, windows = (each.tolist() for each in dataset.order.lookup(ids))
    names, length = data.config.names, data.config.length
    return [
        Window(
            f"sample {sample:,}: {names[source]}, window {window:,} of {dataset.order.num_windows[source]:,}, "
            f"epoch {epoch + 1}",
            data.splits["train"][source],
            start,
            length,
        )
        for sample, source, epoch, window, start in zip(samples, sources, epochs, windows, starts, strict=True)
    ]
