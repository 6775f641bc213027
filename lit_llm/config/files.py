"""Writing files so that a reader finds each of them whole or not at all: write beside the name, flush, rename."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_llm.config.errors import UserError


def from_home(path: str) -> str:
    """A path whose ~ stands for the home folder, which a shell leaves as it is in a file and after a =.

    Raises:
        UserError: it is the home of a user that is not there.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise UserError(f"{path}: there is no such user, whose home folder that would be; write ./{path}") from None


def partial_of(target: Path) -> Path:
    """Where `target` is written before it is whole."""
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def whole_file(
    target: Path, *, shared: bool = False, rename: Callable[[Path, Path], Any] | None = None
) -> Iterator[Path]:
    """Give the path to write to; when the block has ended, the file is on the disk under the name `target`.

    The file has the permissions that the umask gives any new file, whatever the block has made it with.

    Args:
        target: the final name, in a folder that exists.
        shared: several processes may write it at once, and the last one to end wins.
        rename: gives the whole file its name; None: `Path.replace`.

    Raises:
        OSError: it cannot be written. Then, and after any other error, what was at `target` before is still there.
    """
    partial = partial_of(target.with_name(f"{target.name}.{os.getpid()}") if shared else target)
    try:
        partial.unlink(missing_ok=True)
        partial.touch()
        mode = partial.stat().st_mode & 0o777
        yield partial
        partial.chmod(mode)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        (rename or Path.replace)(partial, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)  # a full disk does not say where
        raise


def replace_file(path: Path, text: str) -> None:
    """Write a UTF-8 file so that a reader finds the old or the new one, never half of it.

    Raises:
        OSError: it cannot be written.
    """
    replace_files({path: text})


def replace_files(texts: dict[Path, str]) -> None:
    """Write UTF-8 files so that a reader finds the old or the new ones, none of them half.

    All are written under other names first: where there is no room for one of them, the old ones stay as they are.

    Raises:
        OSError: they cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            with stack.enter_context(whole_file(path)).open("w", encoding="utf-8", newline="") as file:
                file.write(text)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as `replace_file` does.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        replace_file(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
