"""A folder of blocks of files, bounded, which all processes of a machine may use at once."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from lit_llm.config import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STRIPES = 256  # files that blocks are locked by, so that two blocks at once seldom meet
_KEPT_SHARE = 7 / 8  # what is left of the bound once blocks were deleted, so that it does not happen for each block


class BlockCache:
    """Blocks under a key and a number, as files `folder/key/number`; the least recently used go first.

    The bound holds over all processes: their sum stands in one file, which each of them locks to add to it. A block
    appears under its name only when it is whole. It is not flushed to the disk, so that after a power cut it may be
    damaged: whoever reads a block has to know its checksum.

    Args:
        folder: made where it is missing.
        limit: most bytes in all blocks.

    Raises:
        UserError: the folder cannot be written; any method may raise it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        with self._writing():
            (folder / ".locks").mkdir(parents=True, exist_ok=True)
            with self._sum(0):  # the bound may have been a larger one
                pass

    def read(self, key: str, number: int, offset: int = 0, length: int | None = None) -> bytes | None:
        """Bytes [offset, offset + length) of a block, or all of it; None where it is not kept. It counts as used."""
        try:
            descriptor = os.open(self._path(key, number), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            with contextlib.suppress(PermissionError):  # of another user
                os.utime(descriptor)
            size = os.fstat(descriptor).st_size - offset if length is None else length
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def has(self, key: str, number: int) -> bool:
        """Whether a block is kept."""
        return self._path(key, number).exists()

    def write(self, key: str, number: int, data: bytes) -> None:
        """Keeps a block that is not kept yet; where there is no room for it, others are deleted first."""
        path = self._path(key, number)
        partial = path.with_name(f".{path.name}")
        with self._writing(), self._sum(len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(data)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def remove(self, key: str, number: int) -> None:
        """Deletes a block that is kept."""
        path = self._path(key, number)
        with self._writing(), contextlib.suppress(FileNotFoundError), self._sum(-path.stat().st_size):
            path.unlink()

    @contextlib.contextmanager
    def locked(self, key: str, number: int) -> Iterator[None]:
        """Keeps other threads and processes from fetching the same block."""
        stripe = zlib.crc32(f"{key}/{number}".encode()) % _STRIPES
        with self._locked(f"{stripe:03d}"):
            yield

    def _path(self, key: str, number: int) -> Path:
        return self.folder / key / f"{number:06d}"

    @contextlib.contextmanager
    def _sum(self, size: int) -> Iterator[None]:
        """Keeps others from changing blocks while the block of code adds `size` bytes to them.

        The sum is raised first: a process that is killed in between leaves one that is too large, until blocks are
        deleted the next time, which counts them. Where the sum would pass the bound, that is now.
        """
        with self._locked("sum") as descriptor:
            said = os.pread(descriptor, 32, 0).strip()
            total = int(said) if said.isdigit() else self._delete_to(self.limit)
            if total + size > self.limit:
                total = self._delete_to(min(self.limit * _KEPT_SHARE, self.limit - size))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(max(0, total + size)).encode(), 0)
            yield

    def _delete_to(self, target: float) -> int:
        """Deletes the blocks that were not used for longest until `target` bytes are left; returns what is left."""
        blocks, total = [], 0
        for folder in self.folder.iterdir():
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.startswith("."):  # of a process that was killed, as nobody else writes now
                        Path(entry.path).unlink()
                        continue
                    state = entry.stat()
                    blocks.append((state.st_mtime_ns, entry.path, state.st_size))
                    total += state.st_size
        for _, path, size in sorted(blocks):
            if total <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            total -= size
            with contextlib.suppress(OSError):  # it is seldom empty
                Path(path).parent.rmdir()
        return total

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[int]:
        descriptor = os.open(self.folder / ".locks" / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks: blocks may be fetched twice
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            if fcntl is not None:
                with contextlib.suppress(
                    OSError
                ):  # closing is not enough where a forked process has the descriptor too
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to the cache {self.folder}: {error.strerror}; lower data.remote.cache_gib, or give "
                "another folder as data.remote.cache"
            ) from error
