"""Files behind a protocol of fsspec (s3://, gs://, hf://, http://, memory://), read as those of this machine are."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from lit_llm.config import UserError
from lit_llm.config.extras import optional_module

_PAUSES = (0.1, 1.0, 4.0)
"""Seconds before each further attempt after a connection was lost."""


class RemotePath:
    """A remote file, with as much of `pathlib.Path` as the readers of files need.

    Args:
        filesystem: An fsspec file system.
        path: Path within it.
        address: What a reader knows the file by.
    """

    def __init__(self, filesystem: Any, path: str, address: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._address = address
        name = PurePosixPath(path).name
        # of http://host/a.jsonl?download=1, the name is a.jsonl
        self.name = name.partition("?")[0] if "://" in path else name

    @property
    def suffix(self) -> str:
        """As of `Path`."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """As of `Path`."""
        return PurePosixPath(self.name).stem

    def __str__(self) -> str:
        return self._address

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """The file, open for reading bytes."""
        assert mode == "rb"
        return io.BufferedReader(_PatientReader(lambda: self._filesystem.open(self._path, "rb"), self._address))


StoredFile: TypeAlias = Path | RemotePath
"""A file of this machine or a remote one."""


class _PatientReader(io.RawIOBase):
    """Reads a remote file; where the connection is lost, opens the file again and goes on where it was."""

    def __init__(self, reopen: Callable[[], Any], address: str) -> None:
        super().__init__()
        self._reopen = reopen
        self._address = address
        self._position = 0
        self._file: Any = None
        self._patiently(self._opened)

    def _patiently(self, action: Callable[[], Any]) -> Any:
        pauses = iter(_PAUSES)
        while True:
            try:
                return action()
            except (FileNotFoundError, PermissionError) as error:
                number = errno.EACCES if isinstance(error, PermissionError) else errno.ENOENT
                raise OSError(number, os.strerror(number), self._address) from None
            except Exception as error:  # file systems raise what their libraries do
                self._file = None
                pause = next(pauses, None)
                if pause is None:
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    tries = len(_PAUSES) + 1
                    raise UserError(f"{self._address}: cannot be read, after {tries} attempts ({reason})") from None
            time.sleep(pause)

    def _opened(self) -> Any:
        if self._file is None:
            self._file = self._reopen()
            if self._position:
                self._file.seek(self._position)
        return self._file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._opened().seekable())

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = self._opened().seek(offset, whence)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._patiently(lambda: self._opened().read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()


def is_remote(path: str) -> bool:
    """Whether a path names a protocol."""
    return "://" in path


def find_remote_files(path: str, option: str) -> tuple[list[tuple[str, RemotePath, int | None]], str]:
    """The files of a remote path.

    Args:
        path: A file, a folder or a glob, with its protocol.
        option: What gave the path, for the error.

    Returns:
        The key (path from the root), the file and its size where that is known, of each in the order of their keys;
        and what they are in words.

    Raises:
        UserError: the path leads to no file, the protocol is unknown or needs a library, or nothing answers.
    """
    fsspec = optional_module("fsspec", f"{option} {path!r}", "data")
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        if has_magic(inner) and not ("://" in inner and "?" in inner):  # what follows ? in a web address is no pattern
            root = _fixed_part(inner)
            found = filesystem.glob(inner, detail=True)
        elif filesystem.isfile(inner) or not filesystem.isdir(inner):
            info = filesystem.info(inner)
            file = RemotePath(filesystem, inner, path)
            return [(file.name, file, info.get("size"))], path
        else:
            root = inner
            found = filesystem.find(inner, detail=True)
    except FileNotFoundError:
        raise UserError(f"{option} {path!r}: no such file or folder") from None
    except Exception as error:  # file systems raise what their libraries do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{option} {path!r}: cannot be reached ({reason})") from None
    files = []
    for name, info in found.items():
        key = name[len(root) :].lstrip("/")
        if info.get("type") == "file" and not any(part.startswith(".") for part in key.split("/")):
            files.append((key, RemotePath(filesystem, name, filesystem.unstrip_protocol(name)), info.get("size")))
    if not files:
        raise UserError(f"{option} {path!r}: no file found there")
    files.sort(key=lambda file: file[0])
    return files, f"{path}, {len(files):,} {'file' if len(files) == 1 else 'files'}"


def _fixed_part(pattern: str) -> str:
    """The folder of a glob that is above its first wild card."""
    head = pattern[: next(index for index, character in enumerate(pattern) if character in "*?[")]
    return head[: head.rfind("/") + 1]
