"""Files and data sets as a stream of texts, before they are split into train, validation and test."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.row_files import (
    ROW_SUFFIXES,
    content_suffix,
    counted,
    find_files,
    hub_rows,
    json_line_rows,
    json_list_rows,
    open_file,
)
from lit_llm.tokenizer.bulk import LINE_CUT, SAFE_CUT

PIECE_BYTES = 16 * 2**20
"""A text file above this size is read in pieces."""

_BINARY_PROBE = 8192
_PARQUET_ROWS = 1024
_CUT_WINDOW = 2**20


@dataclass(frozen=True)
class Piece:
    """A text as its source has it.

    Attributes:
        text: All of it, or a part where the source is a large file.
        key: Path from the corpus root, followed by `:row` for a row.
        hash_key: What decides its split: the path of a file, the text of a row (equal rows stay on one side).
        final: Whether the text ends here.
        replaced_bytes: Bytes that were no valid UTF-8 and became U+FFFD.
    """

    text: str
    key: str
    hash_key: str
    final: bool
    replaced_bytes: int


class FileSource:
    """Texts from one or many files of this machine.

    Args:
        config: Its `path` is anything but `hf:`.
        piece_bytes: A text file above this size comes in pieces.

    Raises:
        UserError: there is no such file, or a folder or glob holds none.
    """

    def __init__(self, config: CorpusConfig, piece_bytes: int = PIECE_BYTES) -> None:
        self._field = config.text_field
        self._piece_bytes = piece_bytes
        self._root, self.files, self.description = find_files(config.path, "corpus.path")
        # A file that is named is read whatever it holds; one that is come across may be an image.
        self._skip_binary = not Path(config.path).is_file()
        self.binary_files = 0

    @property
    def is_one_text(self) -> bool:
        """Whether all there is to read is one plain text file."""
        return len(self.files) == 1 and content_suffix(self.files[0]) not in ROW_SUFFIXES

    def size_bytes(self) -> int | None:
        """Bytes of all files; None where some are compressed."""
        if any(path.suffix in (".gz", ".parquet") for path in self.files):
            return None
        return sum(path.stat().st_size for path in self.files)

    def pieces(self) -> Iterator[Piece]:
        """Every text, in the order of the files' paths.

        Raises:
            UserError: a file cannot be read, or a row is not as it should be.
        """
        self.binary_files = 0
        for path in self.files:
            try:
                yield from self._pieces_of(path)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path}: cannot be read ({error}); repair or remove it") from None

    def _pieces_of(self, path: Path) -> Iterator[Piece]:
        key = path.relative_to(self._root).as_posix()
        suffix = content_suffix(path)
        if suffix == ".parquet":
            yield from _parquet(path, key, self._field)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _json_lines(path, key, self._field)
        elif suffix == ".json":
            yield from _json_list(path, key, self._field)
        elif self._skip_binary and _is_binary(path):
            self.binary_files += 1
        else:
            yield from _text(path, key, self._piece_bytes)


class HubSource:
    """Texts from a Hugging Face data set, streamed.

    Args:
        config: Its `path` is `hf:NAME` or `hf:NAME:CONFIG`.
    """

    is_one_text = False
    binary_files = 0

    def __init__(self, config: CorpusConfig) -> None:
        name, _, subset = config.path.removeprefix("hf:").partition(":")
        if not name:
            raise UserError(f"corpus.path is {config.path!r}; write hf:NAME or hf:NAME:CONFIG")
        self._name, self._subset = name, subset or None
        self._split, self._field = config.hf_split, config.text_field
        self.description = f"{config.path} ({config.hf_split})"

    def size_bytes(self) -> None:
        """A stream does not say how long it is."""

    def pieces(self) -> Iterator[Piece]:
        """Every row's text, in the order of the data set.

        Raises:
            UserError: the data set cannot be loaded, or a row has no such field.
        """
        for index, row in enumerate(hub_rows(self._name, self._subset, self._split)):
            yield _row_piece(row, self._field, f"hf:{self._name}:{index}", f"hf:{self._name} row {index}")


def _is_binary(path: Path) -> bool:
    with open_file(path) as file:
        return b"\0" in file.read(_BINARY_PROBE)


def _text(path: Path, key: str, piece_bytes: int) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="lit_llm.replace")
    buffer, replaced, ended = "", 0, False
    with open_file(path) as file:
        while not ended:
            chunk = file.read(piece_bytes)
            ended = not chunk
            text, invalid = counted(lambda chunk=chunk: decoder.decode(chunk, final=not chunk))
            # Only more text tells that the buffer is not the end of the document.
            cut = _last_cut(buffer) if chunk and text else 0
            if cut:
                yield Piece(buffer[:cut], key, key, False, replaced)
                replaced = 0
            buffer, replaced = buffer[cut:] + text, replaced + invalid
    yield Piece(buffer, key, key, True, replaced)


def _last_cut(text: str) -> int:
    """Where to cut a piece off: near its end and, if there is one, where a cut leaves the ids as they are."""
    start = max(0, len(text) - _CUT_WINDOW)
    for pattern in (LINE_CUT, SAFE_CUT):
        cuts = [match.end() for match in pattern.finditer(text, start)]
        if cuts:
            return cuts[-1]
    return len(text)


def _json_lines(path: Path, key: str, field: str) -> Iterator[Piece]:
    for number, row, invalid in json_line_rows(path):
        yield _row_piece(row, field, f"{key}:{number}", f"{path}:{number}", invalid)


def _json_list(path: Path, key: str, field: str) -> Iterator[Piece]:
    for number, row, invalid in json_list_rows(path):
        yield _row_piece(row, field, f"{key}:{number}", f"{path} row {number}", invalid)


def _parquet(path: Path, key: str, field: str) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    with file:
        if field not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path}: no column {field!r}; set corpus.text_field to one of: {names}")
        kind = file.schema_arrow.field(field).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if kind not in (pa.string(), pa.large_string(), pa.string_view()):
            raise UserError(f"{path}: column {field!r} is {kind}, not string; set corpus.text_field to a text column")
        index = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
            # As bytes: pyarrow does not check that its strings are valid UTF-8, and fails on those that are not.
            for value in batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
                where = f"{path} row {index}"
                if value is None:
                    raise UserError(f"{where}: field {field!r} is NoneType, not a string; leave the row out")
                text, invalid = counted(lambda value=value: value.decode("utf-8", "lit_llm.replace"))
                yield Piece(text, f"{key}:{index}", text, True, invalid)
                index += 1


def _row_piece(row: Any, field: str, key: str, where: str, replaced: int = 0) -> Piece:
    if not isinstance(row, dict):
        raise UserError(f"{where}: the row is {type(row).__name__}, not an object with the field {field!r}")
    if field not in row:
        raise UserError(f"{where}: no field {field!r}; set corpus.text_field to one of: {', '.join(map(str, row))}")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} is {type(text).__name__}, not a string; leave the row out")
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair; as UTF-8 that would be three invalid bytes.
        halves = sum("\ud800" <= character <= "\udfff" for character in text)
        text = text.encode("utf-32-le", "surrogatepass").decode("utf-32-le", "replace")
        replaced += 3 * halves
    return Piece(text, key, text, True, replaced)
