"""A corpus: documents in a fixed order, each in the train, validation or test split."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.sources.hub import HubSource
from lit_llm.data.sources.source import PIECE_BYTES, Files, Piece, Source
from lit_llm.data.sources.text_files import FileSource

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
END_OF_TEXT = "<|endoftext|>"
"""What ends a document in the text files that others write, and what our own tokenizers call the token for it."""


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
        separated_documents: Of the documents, those in text files that hold several.
        separated_files: Those text files.
        marked_documents: Those in whose text the marker of an end of text stands, where it is read as letters.
        replaced_bytes: Bytes of the source that were no valid UTF-8 (or UTF-16, UTF-32) and became U+FFFD.
        replaced_files: Where they were.
        empty_documents: Dropped, as they held white space alone.
        binary_files: Left out, as they held NUL bytes and no byte order mark.
    """

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: int = 0
    separated_documents: int = 0
    separated_files: Files = field(default_factory=Files)
    marked_documents: int = 0
    replaced_bytes: int = 0
    replaced_files: Files = field(default_factory=Files)
    empty_documents: int = 0
    binary_files: Files = field(default_factory=Files)

    def say(self) -> None:
        """One line on stderr for each kind of input that is not one document a file, or did not come through whole."""
        for number, what in (
            (self.separated_documents, f"documents were found in text files that hold several: {self.separated_files}"),
            (
                self.marked_documents,
                "documents hold the name of the end-of-text token, which is learned as letters there "
                "(in text files, corpus.document_separator can end a document at it)",
            ),
            (self.replaced_bytes, f"bytes were not valid UTF-8 and became U+FFFD: {self.replaced_files}"),
            (self.empty_documents, "documents held white space alone and were left out"),
            (self.binary_files.number, f"binary files were left out: {self.binary_files}"),
        ):
            if number:
                print(f"{number:,} {what}", file=sys.stderr)


class Corpus:
    """The documents of a source.

    Args:
        config: The source and how it is split.
        piece_bytes: A text file above this size is read in pieces, cut at the end of a line (else of a word).
        end_of_text: What the tokenizer calls its end-of-text token, if there is one.

    Attributes:
        end_of_text: As given; may be set before a pass.
        counts: See `CorpusCounts`; of the latest pass, up to where it is.
        description: The source in words.

    Raises:
        UserError: the source does not exist, or it is one document to be split by hash.
    """

    def __init__(
        self, config: CorpusConfig, piece_bytes: int = PIECE_BYTES, end_of_text: str | None = END_OF_TEXT
    ) -> None:
        self.config = config
        self.end_of_text = end_of_text
        self._source: Source = HubSource(config) if config.path.startswith("hf:") else FileSource(config, piece_bytes)
        self.description: str = self._source.description
        self.counts = CorpusCounts()
        self._cuts: list[int] | None = None
        held_out = config.validation_fraction + config.test_fraction
        if config.split == "hash" and held_out and self._source.is_one_text(self._markers):
            raise UserError(
                f"corpus.path {config.path!r} is one document, which a hash puts into one split whole; "
                "set corpus.split tail to cut it, corpus.document_separator to what stands between its documents, or "
                "corpus.validation_fraction and test_fraction 0"
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
        if not any(self.counts.documents.values()):
            raise UserError(
                f"{self.description}: no document has text ({self.counts.empty_documents} empty, "
                f"{self.counts.binary_files.number} binary); correct corpus.path"
            )

    @property
    def _markers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((END_OF_TEXT, self.end_of_text or END_OF_TEXT)))

    def _pieces(self) -> Iterator[Piece]:
        counts, markers, inside, marked = self.counts, self._markers, False, False
        for piece in self._source.pieces(markers):
            if piece.replaced_bytes:
                counts.replaced_bytes += piece.replaced_bytes
                counts.replaced_files.add(piece.file)
            if piece.final and not inside and not piece.text.strip():
                counts.empty_documents += 1
                continue
            inside = not piece.final
            marked = marked or any(marker in piece.text for marker in markers)
            if piece.final:
                self._count_separated(piece)
                counts.marked_documents, marked = counts.marked_documents + marked, False
            yield piece
        counts.binary_files = self._source.binary_files

    def _count_separated(self, piece: Piece) -> None:
        if piece.further:
            # That a file has several is known when the second comes.
            self.counts.separated_documents += 1 if piece.further > 1 else 2
            self.counts.separated_files.add(piece.file)

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
