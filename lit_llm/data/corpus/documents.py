"""A corpus: documents in a fixed order, each in the train, validation or test split."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.corpus.splits import SPLITS, Document, HashSplit, Split, Splitter, TailSplit, wanted_splits
from lit_llm.data.sources.hub import HubSource
from lit_llm.data.sources.source import END_OF_TEXT, PIECE_BYTES, Files, Piece, Source
from lit_llm.data.sources.text_files import FileSource

__all__ = ["END_OF_TEXT", "SPLITS", "Corpus", "CorpusCounts", "Document", "Split"]

ENOUGH_DOCUMENTS = 10
"""`corpus.split auto` takes a hash where that gives each split at least so many documents."""
_MANY_DOCUMENTS = 10_000
"""A corpus of more than these is taken to have enough for every split, so that no more are read to find out."""


@dataclass
class CorpusCounts:
    """What reading has come across so far, skipped documents included.

    Attributes:
        documents: Documents of each split; one that is cut counts in each split it reaches.
        bytes: UTF-8 bytes of their texts.
        separated_documents: Documents that stand in a text file beside others.
        separated_files: The text files that hold several documents.
        marked_documents: Documents that spell the marker of an end of text where it is read as letters.
        replaced_bytes: Bytes of the source that were no valid UTF-8 (or UTF-16, UTF-32) and became U+FFFD.
        replaced_files: The files that had such bytes.
        empty_documents: Documents that were dropped, as they held white space alone.
        binary_files: Files that were left out, as they held NUL bytes and no byte order mark.
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
        """Prints a line on stderr for each of these counts that a reader should know of, and that is not 0."""
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

    How they are split is settled when the corpus is made. That takes a look at the source where a part of it is held
    out: by hash, up to where every split has documents; by tail, a pass over all of it, which counts the characters.

    Args:
        config: The source and how it is split.
        piece_bytes: A text file above this size is read in pieces, cut at the end of a line (else of a word).
        end_of_text: What the tokenizer calls its end-of-text token, if there is one.

    Attributes:
        end_of_text: As given; may be set before a pass over a corpus of which nothing is held out.
        counts: See `CorpusCounts`; of the latest pass, up to where it is.
        description: The source in words.

    Raises:
        UserError: the source does not exist, something in it cannot be read, no document has text, or there are too few
            documents for every split to have some.
    """

    def __init__(
        self, config: CorpusConfig, piece_bytes: int = PIECE_BYTES, end_of_text: str | None = END_OF_TEXT
    ) -> None:
        self.config = config
        self.end_of_text = end_of_text
        self._source: Source = HubSource(config) if config.path.startswith("hf:") else FileSource(config, piece_bytes)
        self.description: str = self._source.description
        self.counts = CorpusCounts()
        self._splitter = self._settle_split()
        self.counts = CorpusCounts()

    @property
    def split(self) -> Literal["hash", "tail"]:
        """How it is split; of no consequence where nothing is held out."""
        return self._splitter.name

    @property
    def settled_config(self) -> CorpusConfig:
        """The options, with what `split` "auto" has come to."""
        return replace(self.config, split=self.split)

    def say_split(self) -> None:
        """Prints on stderr what `corpus.split auto` has come to, where a part of the corpus is held out."""
        names = wanted_splits(self.config)[1:]
        if self.config.split != "auto" or not names:
            return
        if self.split == "hash":
            how = f"whole documents are chosen by a hash for {' and '.join(names)}"
        else:
            shares = (f"{100 * getattr(self.config, f'{name}_fraction'):g}% of every file are {name}" for name in names)
            how = f"the last {', then '.join(shares)}, as there are too few documents to choose whole ones"
        print(f"corpus.split auto is {self.split}: {how}", file=sys.stderr)

    def size_bytes(self) -> int | None:
        """Size of the source's files; None where that says little of the text (compressed, streamed)."""
        return self._source.size_bytes()

    def files_digest(self) -> str | None:
        """What changes when a file of the source does; None for a stream, which does not say."""
        return self._source.files_digest()

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """Every document of every split, from the start: the same ones in the same order each time.

        Args:
            skip: Leave out the first so many of what is yielded (they are read, as emptiness and cuts depend on it).

        Raises:
            UserError: something in the source cannot be read, or no document has text.
        """
        self.counts = CorpusCounts()
        for index, document in enumerate(self._splitter.documents(self._pieces())):
            self.counts.bytes += len(document.text.encode())
            self.counts.documents[document.split] += document.final
            if index >= skip:
                yield document
        self._require_text(any(self.counts.documents.values()))

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
            # Only the second document of a file tells that it has several.
            self.counts.separated_documents += 1 if piece.further > 1 else 2
            self.counts.separated_files.add(piece.file)

    def _require_text(self, found: bool) -> None:
        if not found:
            raise UserError(
                f"{self.description}: no document has text ({self.counts.empty_documents} empty, "
                f"{self.counts.binary_files.number} binary); correct corpus.path"
            )

    def _settle_split(self) -> Splitter:
        """The way to split that was asked for, once it is known to give every split something."""
        config, wanted, by_hash = self.config, wanted_splits(self.config), HashSplit(self.config)
        if len(wanted) == 1:
            return by_hash
        enough = ENOUGH_DOCUMENTS if config.split == "auto" else 1
        found: Counter[Split] = Counter()
        lengths: Counter[str] = Counter()
        for piece in self._pieces():
            lengths[piece.file] += len(piece.text)
            found[by_hash.of(piece.hash_key)] += piece.final
            has_enough = found.total() > _MANY_DOCUMENTS or min(found[split] for split in wanted) >= enough
            if has_enough and config.split != "tail":
                return by_hash
        self._require_text(found.total() > 0)
        if config.split != "hash":
            by_tail = TailSplit(config, lengths)
            if all(by_tail.characters[split] for split in wanted):
                return by_tail
            raise self._empty_split(wanted, by_tail.characters, "characters", "more text")
        if found.total() > 1:
            raise self._empty_split(wanted, found, "documents", "corpus.split tail, more text")
        raise UserError(
            f"corpus.path {config.path!r} is one document, which a hash puts into one split whole; "
            "set corpus.split tail to cut it, corpus.document_separator to what stands between its documents, or "
            "corpus.validation_fraction and test_fraction 0"
        )

    def _empty_split(self, wanted: list[Split], found: Mapping[Split, int], what: str, remedy: str) -> UserError:
        empty = next(split for split in wanted if not found[split])
        return UserError(
            f"the {empty} split of {self.config.path} is empty ({sum(found.values()):,} {what} in all); use {remedy}, "
            "or other fractions in corpus"
        )
