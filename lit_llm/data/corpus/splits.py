"""How the documents of a corpus are put into train, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, Protocol

from lit_llm.config import CorpusConfig
from lit_llm.data.sources.origin import Origin
from lit_llm.data.sources.source import Piece

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """A document, or a piece of one that is too large to hold.

    Attributes:
        text: Valid Unicode, never empty.
        split: Where it belongs.
        key: Where it comes from: the path from the corpus root, followed by `:row` for a row, and by `:1`, `:2`, ...
            for the further documents of a text file.
        final: Whether the document ends here, in this split. The pieces of a document follow each other, and
            end-of-text belongs after the final one only.
        origin: Where it comes from, as far as is known.
    """

    text: str
    split: Split
    key: str
    final: bool = True
    origin: Origin | None = None

    @property
    def provenance(self) -> Origin:
        """Where it comes from: `origin`, or no more than the key."""
        return self.origin or Origin(self.key)


def wanted_splits(config: CorpusConfig) -> list[Split]:
    """The splits that have a share of the corpus."""
    return [split for split in SPLITS if split == "train" or getattr(config, f"{split}_fraction") > 0]


class Splitter(Protocol):
    """A way to split, with all that it needs to know of the corpus.

    Attributes:
        name: What `corpus.split` calls it.
    """

    name: Literal["hash", "tail"]

    def documents(self, pieces: Iterable[Piece]) -> Iterator[Document]:
        """The pieces of a corpus in their splits, in order, some of them cut in two or three."""


class HashSplit:
    """Each document whole in the split that a hash of its key names, whatever else is in the corpus.

    Args:
        config: Says how large a share of the documents each split gets.
    """

    name: Literal["hash", "tail"] = "hash"

    def __init__(self, config: CorpusConfig) -> None:
        self._test, self._held_out = config.test_fraction, config.test_fraction + config.validation_fraction

    def of(self, hash_key: str) -> Split:
        """The split of the document with this key."""
        digest = hashlib.blake2b(hash_key.encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        if share < self._test:
            return "test"
        return "validation" if share < self._held_out else "train"

    def documents(self, pieces: Iterable[Piece]) -> Iterator[Document]:
        """See `Splitter`."""
        for piece in pieces:
            yield Document(piece.text, self.of(piece.hash_key), piece.key, piece.final, piece.origin)


class TailSplit:
    """Every file cut in three: its first characters are for training, the next for validation, the last for test.

    What cutting between characters leaves over is carried from file to file, so that the shares of the whole corpus are
    exact to a character, too, however short its files are. Text that a file has gained since it was measured belongs to
    the last split: nothing that was held out before is trained on.

    Args:
        config: Says how large a share of the characters each split gets.
        lengths: Characters of each file, in the order of the files.
    """

    name: Literal["hash", "tail"] = "tail"

    def __init__(self, config: CorpusConfig, lengths: Mapping[str, int]) -> None:
        # Exact decimals: 1 - 0.05 - 0.05 in binary is a hair below 0.9, and would move a cut by one.
        validation, test = (Fraction(str(share)) for share in (config.validation_fraction, config.test_fraction))
        shares = (1 - validation - test, 1 - test)
        self._last = SPLITS.index(wanted_splits(config)[-1])
        self._ends: dict[str, tuple[int, int]] = {}
        read, given = 0, [0, 0]
        for file, length in lengths.items():
            read += length
            ends = [0, 0]
            for index, share in enumerate(shares):
                ends[index] = min(length, max(ends[0], int(read * share) - given[index]))
                given[index] += ends[index]
            self._ends[file] = ends[0], ends[1]
        self.characters: dict[Split, int] = dict(
            zip(SPLITS, (given[0], given[1] - given[0], read - given[1]), strict=True)
        )
        """Characters of each split."""

    def documents(self, pieces: Iterable[Piece]) -> Iterator[Document]:
        """See `Splitter`."""
        file, position, current = None, 0, 0
        for piece in pieces:
            if piece.file != file:
                file, position, current = piece.file, 0, 0
            ends = self._ends.get(piece.file, (0, 0))
            whole = Document(piece.text, SPLITS[current], piece.key, piece.final, piece.origin)
            start, end = 0, len(piece.text)
            while start < end:
                while current < self._last and position >= ends[current]:
                    current += 1
                stop = end if current == self._last else min(end, start + ends[current] - position)
                position += stop - start
                # A share of a file ends as a document does.
                ended = piece.final or stop < end or (current < self._last and position == ends[current])
                yield replace(whole, text=piece.text[start:stop], split=SPLITS[current], final=ended)
                start = stop
