"""Files open for reading bytes, unpacked, whose bytes before a break are not lost."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from pathlib import Path
from typing import Any

from lit_llm.data.sources.remote import StoredFile

_BUFFER_BYTES = 2**17
_MOST_AT_ONCE = 2**14
"""What a single read of a packed file may lose, where it is broken."""


def open_file(path: StoredFile) -> io.BufferedReader:
    """The file, open for reading bytes, unzipped where it is .gz, .zst or .bz2.

    Where the file is broken, ends too early or cannot be read on, all bytes before are given, and only then an error
    is raised: OSError (without an errno where the trouble is in the bytes), EOFError or zlib.error. Reading up to the
    end (`read` without a size) raises at once, and so does reading a line that is not whole.
    """
    unzip = _UNZIPPERS.get(path.suffix.lower())
    if unzip is None:
        return _UpToTheBreak(path.open("rb"), _BUFFER_BYTES)
    return _UpToTheBreak(unzip(path if isinstance(path, Path) else path.open("rb")), _MOST_AT_ONCE)


def _open_zstandard(file: Any) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(file, "zstd")


_UNZIPPERS = {".gz": gzip.open, ".zst": _open_zstandard, ".bz2": bz2.open}


class _Ending(io.RawIOBase):
    """Bytes that seem to end where an error is, which is kept.

    Attributes:
        error: The error, once it has come.
    """

    def __init__(self, file: Any, most: int) -> None:
        super().__init__()
        self._file, self._most = file, most
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.error is not None:
            return 0
        try:
            data = self._file.read1(min(len(buffer), self._most))
        except (OSError, EOFError, zlib.error) as error:
            self.error = error
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _UpToTheBreak(io.BufferedReader):
    """See `open_file`."""

    def __init__(self, file: Any, most: int) -> None:
        self._ending = _Ending(file, most)
        super().__init__(self._ending, _BUFFER_BYTES)

    def _raise_if(self, is_missing: bool) -> None:
        if is_missing and self._ending.error is not None:
            raise self._ending.error

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._raise_if(not data or size is None or size < 0)
        return data

    def read1(self, size: int = -1) -> bytes:
        data = super().read1(size)
        self._raise_if(not data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self._raise_if(line[-1:] != b"\n" and len(line) != size)
        return line
