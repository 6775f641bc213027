"""What a corpus is read from: a stream of texts, before they are split into train, validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_llm.config import UserError
from lit_llm.data.sources.origin import Origin

END_OF_TEXT = "<|endoftext|>"
"""What ends a document in the text files that others write, and what our own tokenizers call the token for it."""

PIECE_BYTES = 16 * 2**20
"""A text file above this size is read in pieces."""


_NAMES = 3


@dataclass(frozen=True)
class Piece:
    """A document as its source has it, or a part of a large one.

    Attributes:
        text: The text of the document, or of the part.
        key: Path from the corpus root, followed by `:row` for a row, and by `:1`, `:2`, ... for the further documents
            of a text file.
        hash_key: What a hash chooses its split by: the key, or for a row its text, so that equal rows stay together.
        final: Whether the document ends here.
        replaced_bytes: How many bytes were no valid UTF-8 and became U+FFFD.
        file: Path of its file from the corpus root.
        further: How many documents of the same text file came before it.
        origin: What its row says of where it came from; None where there is no more than the key.
    """

    text: str
    key: str
    hash_key: str
    final: bool
    replaced_bytes: int
    file: str
    further: int = 0
    origin: Origin | None = None


@dataclass
class Files:
    """How many files there were of a kind, and which were the first."""

    number: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Counts a file, unless it is the one that was added last."""
        if name not in self.names[-1:]:
            self.number += 1
            # The last name is kept to be compared with the next one; only the first few are shown.
            self.names = [*self.names[:_NAMES], name]

    def __str__(self) -> str:
        more = self.number - _NAMES
        return ", ".join(self.names[:_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def row_piece(row: Any, field: str, place: tuple[str, int], where: str, replaced: int = 0) -> Piece:
    """The text in `field` of a row, as a document of its own.

    Args:
        row: from JSON or a data set.
        field: name of the field.
        place: file and number of the row.
        where: the row, for errors.
        replaced: bytes of it that were no UTF-8.

    Raises:
        UserError: the row is no object, or the field is missing or no text.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: the row is {type(row).__name__}, not an object with the field {field!r}")
    if field not in row:
        raise UserError(f"{where}: no field {field!r}; set corpus.text_field to one of: {', '.join(map(str, row))}")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} is {type(text).__name__}, not a string; leave the row out")
    text, halves = without_surrogates(text)
    key = "{}:{}".format(*place)
    return Piece(text, key, text, True, replaced + halves, place[0], origin=Origin.of_row(row, key))


def without_surrogates(text: str) -> tuple[str, int]:
    """The text with U+FFFD for each half of a surrogate pair, which JSON can spell; and as how many bytes they count.

    As UTF-8, each would be three invalid bytes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        halves = sum("\ud800" <= character <= "\udfff" for character in text)
        return text.encode("utf-32-le", "surrogatepass").decode("utf-32-le", "replace"), 3 * halves
    return text, 0


class Source(Protocol):
    """Texts in a fixed order, which can be read again and again.

    Attributes:
        description: the source in words.
        binary_files: files that were left out in the latest pass, as they hold no text.
    """

    description: str
    binary_files: Files

    def size_bytes(self) -> int | None:
        """The size of the source; None where that says little of its text, as it is compressed or streamed."""

    def files_digest(self) -> str | None:
        """What changes when a file is added, removed or written again; None for a stream."""

    def pieces(self, end_of_text: Sequence[str]) -> Iterator[Piece]:
        """Yields every document, in order; large ones come in several pieces.

        Args:
            end_of_text: strings that end a document within a text file where `corpus.document_separator` is "auto".

        Raises:
            UserError: something cannot be read, or a row is not as it should be.
        """
