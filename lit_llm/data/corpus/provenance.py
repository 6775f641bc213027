"""Where the documents of a shard came from: a parquet file beside it, with a row for each document, in their order.

A row says at which token of the shard its document ends, and what `Origin` holds. The rows share out the tokens: a
document that does not end in a shard has a row there for the part that it has, and one more in the next.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from lit_llm.config import UserError
from lit_llm.data.corpus.manifest import ShardInfo
from lit_llm.data.corpus.shards import discarding, file_sha256
from lit_llm.data.sources.origin import ORIGIN_FIELDS, Origin

if TYPE_CHECKING:
    from lit_llm.data.corpus.remote_folder import RemoteFolder
    from lit_llm.data.corpus.shards import ShardedTokens

_AGAIN = "copy it again or prepare the data again with --overwrite true"
_values_of = attrgetter(*ORIGIN_FIELDS)
_ROWS = 1 << 15  # in a row group, which is all that is held of a file that is written


class ProvenanceWriter:
    """Writes the file of one shard, in bounded memory. It gets its name only when it is complete.

    Args:
        path: the .parquet file to make; its folder exists.

    Raises:
        UserError: the file cannot be written, as on a full disk; any method may raise it.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._schema = pa.schema(
            [("end", pa.int64()), ("complete", pa.bool_()), *((name, pa.string()) for name in ORIGIN_FIELDS)]
        )
        self._rows: list[tuple[Any, ...]] = []
        self._end = 0
        self._last: tuple[bool, Origin] | None = None  # of the document that goes on, or has ended last
        with self._cleaning_up():
            self._file: IO[bytes] = self._temporary.open("wb")
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def append(self, tokens: int, complete: bool, origin: Origin) -> None:
        """Adds a document, or the next part of one.

        Args:
            tokens: how many it has in the shard.
            complete: whether it ends with them.
            origin: where it came from.
        """
        self._end += tokens
        if self._last is not None and self._last == (False, origin):
            self._rows.pop()
        elif len(self._rows) >= _ROWS:
            self._write()
        self._rows.append((self._end, complete, *_values_of(origin)))
        self._last = complete, origin

    def close(self) -> tuple[str, str]:
        """Completes the file and gives it its name; returns that, and its sha256."""
        self._write()
        with self._cleaning_up():
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            sha256 = file_sha256(self._temporary)
            self._temporary.replace(self.path)
        return self.path.name, sha256

    def discard(self) -> None:
        """Deletes the unfinished file."""
        if hasattr(self, "_writer"):
            self._writer.is_open = False  # or it would write an end when it is collected, into a closed file
        if hasattr(self, "_file"):
            with suppress(OSError):
                self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self) -> None:
        import pyarrow as pa

        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, self._schema, strict=True)]
        with self._cleaning_up():
            self._writer.write_table(pa.table(arrays, schema=self._schema))
        self._rows = []

    def _cleaning_up(self) -> AbstractContextManager[None]:
        return discarding(self.path, self.discard)


@dataclass(frozen=True)
class DocumentPart:
    """What a stretch of tokens has of one document."""

    start: int
    """Its first token, from the beginning of the stretch."""
    tokens: int
    """How many there are."""
    begins: bool
    """Whether the document begins with it."""
    ends: bool
    """Whether the document ends with it, in this split."""
    origin: Origin | None
    """Where it came from; None where the shards do not say."""


def document_parts(source: ShardedTokens, start: int, length: int) -> list[DocumentPart]:
    """The documents of tokens [start, start + length), in order; past the end it goes on from the beginning.

    Args:
        source: a split.
        start: the first token.
        length: how many.

    Raises:
        UserError: a file that the manifest names is missing or damaged.
    """
    parts: list[DocumentPart] = []
    done, position = 0, start
    while done < length:
        shard, offset = source.shard_at(position % len(source))
        take = min(length - done, source.manifest.shards[shard].tokens - offset)
        parts += _parts_in_shard(source, shard, offset, take, done)
        done, position = done + take, position + take
    return _joined(parts)


def _parts_in_shard(source: ShardedTokens, shard: int, offset: int, take: int, before: int) -> list[DocumentPart]:
    info, first_token = source.manifest.shards[shard], source.first_token(shard)
    if info.documents_file is None:
        ends = np.flatnonzero(source.read(first_token + offset, take) == source.manifest.eot_id) + offset + 1
        ends, complete, rows = np.append(ends[ends < offset + take], offset + take), None, None
        first, last = 0, len(ends) - 1
    else:
        ends, complete, rows = _read(source.folder, info)
        first, last = np.searchsorted(ends, [offset, offset + take - 1], side="right").tolist()
    parts, low = [], offset
    for number in range(first, last + 1):
        high = min(int(ends[number]), offset + take)
        begins = first_token + low == 0 or _is_end(source, first_token + low - 1)
        ended = _is_end(source, first_token + high - 1) if complete is None else bool(complete[number])
        origin = None if rows is None else Origin(**{name: rows[name][number].as_py() for name in ORIGIN_FIELDS})
        parts.append(
            DocumentPart(before + low - offset, high - low, begins, ended and high == int(ends[number]), origin)
        )
        low = high
    return parts


def _is_end(source: ShardedTokens, position: int) -> bool:
    """Whether a document ends with a token: no text is encoded as the token for it."""
    return int(source.read(position, 1)[0]) == source.manifest.eot_id


def _joined(parts: list[DocumentPart]) -> list[DocumentPart]:
    """Parts of which those of one document, at the end of a shard and the beginning of the next, are one."""
    joined: list[DocumentPart] = []
    for part in parts:
        before = joined[-1] if joined else None
        if before is not None and not before.ends and not part.begins:
            joined[-1] = replace(before, tokens=before.tokens + part.tokens, ends=part.ends)
        else:
            joined.append(part)
    return joined


def _read(folder: Path | RemoteFolder, info: ShardInfo) -> tuple[np.ndarray, np.ndarray, Any]:
    """Ends, completeness and all columns of the file of a shard, checked against the manifest."""
    name, changed = str(info.documents_file), 0
    path = folder / name
    try:
        if isinstance(path, Path):
            changed = path.stat().st_mtime_ns
        ends, complete, table = _read_file(folder, name, str(info.documents_sha256), changed)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_AGAIN}") from None
    if not len(ends) or ends[-1] != info.tokens or (np.diff(ends) <= 0).any():
        raise UserError(f"{path} does not share out the {info.tokens} tokens of {info.file}; {_AGAIN}")
    return ends, complete, table


@lru_cache(maxsize=8)  # the windows of a batch are of few shards
def _read_file(
    folder: Path | RemoteFolder, name: str, sha256: str, _changed: int
) -> tuple[np.ndarray, np.ndarray, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / name
    content = path.read_bytes() if isinstance(path, Path) else cast("RemoteFolder", folder).read(name)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} does not match the sha256 in its manifest; {_AGAIN}")
    try:
        table = pq.read_table(pa.BufferReader(content))
        ends, complete = table["end"].to_numpy(), table["complete"].to_numpy()
        _ = [table[name] for name in ORIGIN_FIELDS]
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{path} is no list of documents ({str(error).splitlines()[0]}); {_AGAIN}") from None
    return ends, complete, table
