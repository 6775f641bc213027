"""A corpus: documents in a fixed order, each in the train, validation or test split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.documents import PIECE_BYTES, FileSource, HubSource, Piece

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """A document, or a piece of one that is too large to hold.

    Attributes:
        text: Valid Unicode, never empty.
        split: Where it belongs.
        key: Where it comes from: the path from the corpus root, followed by `:row` for a row.
        final: Whether the document ends here, in this split. The pieces of a document follow each other, and
            end-of-text belongs after the final one only.
    """

    text: str
    split: Split
    key: str
    final: bool = True


@dataclass
class CorpusCounts:
    """What reading has come across so far, skipped documents included.

    Attributes:
        documents: Documents of each split; one that the tail split cuts counts in each split it reaches.
        bytes: Of their texts, as UTF-8.
        replaced_bytes: Bytes of the source that were no valid UTF-8 and became U+FFFD.
        empty_documents: Dropped, as they held white space alone.
        binary_files: Left out, as they held a NUL byte.
    """

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: int = 0
    replaced_bytes: int = 0
    empty_documents: int = 0
    binary_files: int = 0


class Corpus:
    """The documents of a source.

    Args:
        config: The source and how it is split.
        piece_bytes: A text file above this size is read in pieces, cut at the end of a line (else of a word).

    Attributes:
        counts: See `CorpusCounts`; of the latest pass, up to where it is.
        description: The source in words.

    Raises:
        UserError: the source does not exist, or it is one text file to be split by hash.
    """

    def __init__(self, config: CorpusConfig, piece_bytes: int = PIECE_BYTES) -> None:
        self.config = config
        self._source = HubSource(config) if config.path.startswith("hf:") else FileSource(config, piece_bytes)
        self.description: str = self._source.description
        self.counts = CorpusCounts()
        self._cuts: list[int] | None = None
        held_out = config.validation_fraction + config.test_fraction
        if config.split == "hash" and held_out and self._source.is_one_text:
            raise UserError(
                f"corpus.path {config.path!r} is one document, which a hash puts into one split whole; "
                "set corpus.split tail to cut it, or corpus.validation_fraction and test_fraction 0"
            )

    def size_bytes(self) -> int | None:
        """Size of the source's files; None where that says little of the text (compressed, streamed)."""
        return self._source.size_bytes()

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """Every document of every split, from the start: the same ones in the same order each time.

        The tail split needs to know how much text there is, so its first pass is preceded by one that counts.

        Args:
            skip: Leave out the first so many of what is yielded (they are read, as emptiness and cuts depend on it).

        Raises:
            UserError: something in the source cannot be read, or no document has text.
        """
        if self.config.split == "tail" and self._cuts is None:
            self._cuts = self._find_cuts()
        self.counts = CorpusCounts()
        split = self._split_by_hash() if self.config.split == "hash" else self._split_tail()
        for index, document in enumerate(split):
            self.counts.bytes += len(document.text.encode())
            self.counts.documents[document.split] += document.final
            if index >= skip:
                yield document
        self.counts.binary_files = self._source.binary_files
        if not any(self.counts.documents.values()):
            raise UserError(
                f"{self.description}: no document has text ({self.counts.empty_documents} empty, "
                f"{self.counts.binary_files} binary); correct corpus.path"
            )

    def _pieces(self) -> Iterator[Piece]:
        inside = False
        for piece in self._source.pieces():
            self.counts.replaced_bytes += piece.replaced_bytes
            self.counts.binary_files = self._source.binary_files
            if piece.final and not inside and not piece.text.strip():
                self.counts.empty_documents += 1
                continue
            inside = not piece.final
            yield piece

    def _split_by_hash(self) -> Iterator[Document]:
        for piece in self._pieces():
            yield Document(piece.text, self._hash_split(piece.hash_key), piece.key, piece.final)

    def _hash_split(self, key: str) -> Split:
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        if share < self.config.test_fraction:
            return "test"
        if share < self.config.test_fraction + self.config.validation_fraction:
            return "validation"
        return "train"

    def _find_cuts(self) -> list[int]:
        characters = sum(len(piece.text) for piece in self._pieces())
        # Exact decimals: 1 - 0.05 - 0.05 in binary is a hair below 0.9, and would move a cut by one.
        validation, test = (
            Fraction(str(share)) for share in (self.config.validation_fraction, self.config.test_fraction)
        )
        return [int(characters * (1 - validation - test)), int(characters * (1 - test)), characters]

    def _split_tail(self) -> Iterator[Document]:
        position, current = 0, 0
        for piece in self._pieces():
            whole = Document(piece.text, SPLITS[current], piece.key, piece.final)
            start, end = 0, len(piece.text)
            while start < end:
                # At the very end of the text there is no split to go on to.
                while current < 2 and position >= self._cuts[current]:
                    current += 1
                stop = end if current == 2 else min(end, start + self._cuts[current] - position)
                position += stop - start
                ended = piece.final if stop == end else True
                if current < 2 and position == self._cuts[current]:
                    ended = True
                yield replace(whole, text=piece.text[start:stop], split=SPLITS[current], final=ended)
                start = stop
