"""Files of this machine as a stream of texts."""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lit_llm.config import CorpusConfig, UserError
from lit_llm.config.digests import digest_of
from lit_llm.data.sources.encoding import counted, find_encoding, open_file, require_encoding
from lit_llm.data.sources.files import COMPRESSED_SUFFIXES, content_suffix, file_key, find_files
from lit_llm.data.sources.parquet import parquet_texts
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.rows import ROW_SUFFIXES, json_line_rows, json_list_rows
from lit_llm.data.sources.source import PIECE_BYTES, Files, Piece, row_piece
from lit_llm.tokenizer.bulk import LINE_CUT, SAFE_CUT

PROSE_SUFFIXES = frozenset({"", ".txt", ".text", ".md", ".markdown"})
"""The suffixes of text files in which an end-of-text marker ends a document; in program code it is a mere string."""

_CUT_CHARACTER_BYTES = 3
_LARGEST_INVALID_SHARE = 0.001
_JUDGED_CHARACTERS = 2**20
_CUT_WINDOW = 2**20


class Separators:
    """The strings that end a document within a text file; a line end right after one belongs to it.

    Args:
        strings: At least one; none is empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        ends = [string + ("" if string.endswith("\n") else "\r\n") for string in strings]
        self._beginnings = sorted({end[:length] for end in ends for length in range(1, len(end))}, key=len)[::-1]
        longest_first = sorted(strings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(self._expression, longest_first)))

    @staticmethod
    def _expression(string: str) -> str:
        return re.escape(string) + ("" if string.endswith("\n") else "(?:\r?\n)?")

    def places(self, text: str, ended: bool) -> list[tuple[int, int]]:
        """Finds where each separator begins and ends, but for one whose line end may still be to come.

        Args:
            text: A part of a document and what follows.
            ended: Whether nothing more follows `text`.
        """
        if not any(string in text for string in self.strings):
            return []
        spans = [(match.start(), match.end()) for match in self._pattern.finditer(text)]
        return [span for span in spans if ended or text[span[1] - 1] == "\n" or text[span[1] :] not in ("", "\r")]

    def begun(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a separator."""
        return next((len(start) for start in self._beginnings if text.endswith(start)), 0)


class FileSource:
    """Texts from one or many files of this machine.

    Args:
        config: Its `path` is anything but `hf:`.
        piece_bytes: A text file above this size comes in pieces.

    Attributes:
        binary_files: Files that the latest pass has left out so far, as they are not text.

    Raises:
        UserError: there is no such file, a folder or glob holds none, or none of them is a text file that the separator
            of `config` could stand in.
    """

    def __init__(self, config: CorpusConfig, piece_bytes: int = PIECE_BYTES) -> None:
        self._field = config.text_field
        self._piece_bytes = piece_bytes
        self._root, self.files, self.description = find_files(config.path, "corpus.path")
        # A file that is named has to be text; one that is come across may be an image.
        self._named = Path(config.path).is_file()
        self.binary_files = Files()
        self._separator = config.document_separator
        only_rows = all(content_suffix(path) in ROW_SUFFIXES for path in self.files)
        if self._separator not in ("auto", None) and only_rows:
            raise UserError(
                f"corpus.document_separator is given, but {config.path} has rows alone, each of which is a document; "
                "leave it out"
            )

    def size_bytes(self) -> int | None:
        """The size of all files in bytes; None where some are compressed."""
        if any(path.suffix in {".parquet", *COMPRESSED_SUFFIXES} for path in self.files):
            return None
        return sum(path.stat().st_size for path in self.files)

    def files_digest(self) -> str:
        """Of the path, size and time of every file."""
        stats = ((file_key(path, self._root), path.stat()) for path in self.files)
        return digest_of([[key, stat.st_size, stat.st_mtime_ns] for key, stat in stats])

    def pieces(self, end_of_text: Sequence[str]) -> Iterator[Piece]:
        """Yields every document, in the order of the files' paths.

        Args:
            end_of_text: Strings that end a document in a text file, where `document_separator` is "auto".

        Raises:
            UserError: a file cannot be read, or a row is not as it should be.
        """
        self.binary_files = Files()
        for path in self.files:
            try:
                pieces = self._pieces_of(path, self._separators_in(path, end_of_text))
                yield from _mostly_valid(pieces, path) if self._named else pieces
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path}: cannot be read ({error}); repair or remove it") from None

    def _separators_in(self, path: Path, end_of_text: Sequence[str]) -> Separators | None:
        if self._separator == "auto":
            return Separators(end_of_text) if content_suffix(path) in PROSE_SUFFIXES else None
        return None if self._separator is None else Separators([self._separator])

    def _pieces_of(self, path: Path, separators: Separators | None) -> Iterator[Piece]:
        key = file_key(path, self._root)
        suffix = content_suffix(path)
        if suffix == ".parquet":
            yield from parquet_texts(path, key, self._field)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _json_lines(path, key, self._field)
        elif suffix == ".json":
            yield from _json_list(path, key, self._field)
        elif encoding := require_encoding(path) if self._named else find_encoding(path):
            yield from text_pieces(path, key, encoding, self._piece_bytes, separators)
        else:
            self.binary_files.add(key)


def _mostly_valid(pieces: Iterator[Piece], path: Path) -> Iterator[Piece]:
    """Passes on the pieces of a file that the user named, unless so many of its bytes are invalid that it is not UTF-8.

    Raises:
        UserError: more than one byte in a thousand is invalid, and more than a cut character at the end leaves.
    """
    characters, replaced = 0, 0

    def judge() -> None:
        if replaced > max(_CUT_CHARACTER_BYTES, _LARGEST_INVALID_SHARE * characters):
            raise UserError(
                f"{path}: {replaced:,} bytes in {characters:,} characters are not UTF-8, as of a text in Latin-1 or "
                f"Windows-1252; write it again as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8 {path.name})"
            )

    for piece in pieces:
        characters += len(piece.text)
        replaced += piece.replaced_bytes
        if characters >= _JUDGED_CHARACTERS:
            judge()
        yield piece
    judge()


def text_pieces(
    path: StoredFile,
    key: str,
    encoding: str,
    piece_bytes: int,
    separators: Separators | None,
    find_cut: Callable[[str], int] | None = None,
) -> Iterator[Piece]:
    """Yields the documents of a text file in pieces; white space alone between two separators is no document.

    Args:
        path: The file.
        key: Its path from the corpus root.
        encoding: Its codec.
        piece_bytes: About the size of a piece.
        separators: What ends a document.
        find_cut: Says where a text is to be cut in two; None: near its end, where a cut does not change its tokens.
    """
    find_cut = find_cut or _last_cut
    decoder = codecs.getincrementaldecoder(encoding)(errors="lit_llm.replace")
    buffer, replaced, ended = "", 0, False
    number, inside = 0, False

    def piece(text: str, final: bool) -> Piece:
        name = f"{key}:{number}" if number else key
        return Piece(text, name, name, final, replaced, key, number)

    with open_file(path) as file:
        while not ended:
            chunk = file.read(piece_bytes)
            ended = not chunk
            text, invalid = counted(lambda chunk=chunk: decoder.decode(chunk, final=not chunk))
            # Whether the buffer is the end of the document is not known before more text is read.
            fresh, before, buffer = bool(chunk and text), len(buffer), buffer + text
            start, places = 0, separators.places(buffer, ended) if separators else []
            if places:
                replaced, invalid = replaced + invalid, 0
            for begin, end in places:
                if inside or buffer[start:begin].strip():
                    yield piece(buffer[start:begin], True)
                    replaced, number, inside = 0, number + 1, False
                start = end
            if start == 0 and fresh:
                # A cut must leave something of the document before a separator, and not begin one that may be blank.
                room = max(0, min(before, len(buffer) - separators.begun(buffer) - 1)) if separators else before
                start = find_cut(buffer[:room])
                if separators and not inside and buffer[:start].isspace():
                    start = 0
                if start:
                    yield piece(buffer[:start], False)
                    replaced, inside = 0, True
            buffer, replaced = buffer[start:], replaced + invalid
    if inside or not number or buffer.strip():
        yield piece(buffer, True)


def _last_cut(text: str) -> int:
    """Where to cut a text in two: near its end, and if possible at a place where the cut does not change its tokens."""
    start = max(0, len(text) - _CUT_WINDOW)
    for pattern in (LINE_CUT, SAFE_CUT):
        cuts = [match.end() for match in pattern.finditer(text, start)]
        if cuts:
            return cuts[-1]
    return len(text)


def _json_lines(path: Path, key: str, field: str) -> Iterator[Piece]:
    for number, row, invalid in json_line_rows(path):
        yield row_piece(row, field, (key, number), f"{path}:{number}", invalid)


def _json_list(path: Path, key: str, field: str) -> Iterator[Piece]:
    for number, row, invalid in json_list_rows(path):
        yield row_piece(row, field, (key, number), f"{path} row {number}", invalid)
