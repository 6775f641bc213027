"""Checkpoints on the disk: names, writing each whole or not at all, and telling a whole one from a damaged one.

A checkpoint is a file, step_00000100.ckpt, or a folder of that name with one file from each rank. Both are written as
.step_00000100.ckpt.partial and renamed. The last thing that a folder gets is its manifest: sizes and checksums.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException

from lit_llm.config import UserError
from lit_llm.config.files import sync_folder, whole_file
from lit_llm.config.json_text import parse_json
from lit_llm.training.unpickling import why_unreadable

MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d+)\.ckpt")
_READ_AT_ONCE = 16 * 2**20


def step_of(path: Path) -> int | None:
    """Read the optimizer step from a checkpoint's name; None for a name that is not this package's."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else None


def checkpoint_name(step: int) -> str:
    """Name the checkpoint of a step, so that `step_of` reads the step back."""
    return f"step_{step:08d}.ckpt"


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """List the checkpoints in `folder` that were written to the end, by optimizer step, oldest first."""
    found = {step_of(path): path for path in folder.glob("step_*.ckpt")}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


def newest_whole(folder: Path) -> Path | None:
    """Find the newest checkpoint in `folder` that is not damaged; None where there is no checkpoint at all.

    Each damaged one that is newer is named on stderr.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    paths = list(saved_checkpoints(folder).values())[::-1]
    for path in paths:
        problem = damage(path)
        if problem is None:
            return path
        print(f"warning: {path} is damaged ({problem}); going back to the one before", file=sys.stderr)
    if paths:
        raise UserError(f"every checkpoint in {folder} is damaged; start again with --overwrite true")
    return None


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint, after reading it from first byte to last; None for a whole one."""
    try:
        return _folder_damage(path) if path.is_dir() else _file_damage(path)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return str(error).partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def readable_checkpoint(path: Path) -> Iterator[None]:
    """Say in one line that a checkpoint cannot be read, whatever torch or pickle raise in the block.

    Raises:
        UserError: instead of any other error.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # the second is no Exception, and hides what went wrong
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        raise UserError(f"{path} is not a whole checkpoint ({why_unreadable(causes[0])})") from error


def _file_damage(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:  # torch.save writes a zip archive with a checksum for each tensor
        wrong = archive.testzip()
    return None if wrong is None else f"the checksum of {wrong} is wrong"


def _folder_damage(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}"
    files = parse_json((folder / MANIFEST).read_bytes())["files"]
    for name, entry in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != entry["bytes"]:
            return f"{name} has another size than when it was written"
    with ThreadPoolExecutor(8) as pool:  # zlib lets go of the interpreter: a large checkpoint is read at disk speed
        for name, found in zip(files, pool.map(lambda name: checksum(folder / name), files), strict=True):
            if found["crc32"] != files[name]["crc32"]:
                return f"the checksum of {name} is wrong"
    return None


def checksum(path: Path) -> dict[str, int]:
    """Compute the size in bytes and the CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return {"bytes": size, "crc32": crc}


def write_file(target: Path, write: Callable[[Any], None]) -> None:
    """Write a file beside its final name and rename it when it is whole and on the disk.

    Args:
        target: the final name.
        write: is given the open file.

    Raises:
        OSError, RuntimeError: the write failed; what was at `target` before is still there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target, rename=put_in_place) as partial, partial.open("wb") as file:
        write(file)


def write_manifest(folder: Path, files: dict[str, dict[str, int]]) -> None:
    """Mark a folder as whole; `files` are the checksums of what is in it."""
    write_file(folder / MANIFEST, lambda file: file.write(json.dumps({"files": files}, indent=1).encode()))


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a whole file or folder to its final name, replacing what has that name."""
    if target.is_dir():  # which a rename cannot replace
        old = target.with_name(f".{target.name}.replaced")
        remove(old)
        target.rename(old)
        partial.rename(target)
        remove(old)
    elif partial.is_dir() and target.exists():
        target.unlink()
        partial.rename(target)
    else:
        partial.replace(target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Delete a checkpoint; a kill halfway leaves nothing that looks like one."""
    if path.is_dir():
        hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.removed")
        if hidden != path:
            path.rename(hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what runs that were killed while they wrote or deleted a checkpoint have left."""
    for path in folder.glob(".step_*.ckpt.*"):
        remove(path)


def write_failure(target: Path, error: Exception) -> UserError:
    """Make the error that tells the user about a write that failed."""
    cause: BaseException | None = error
    while cause is not None and not getattr(cause, "strerror", None):
        cause = cause.__cause__ or cause.__context__  # torch hides the reason behind an error of its own
    reason = getattr(cause, "strerror", None) or str(error).partition("\n")[0]
    return UserError(f"cannot write {target}: {reason}; free some space and resume, earlier checkpoints are intact")


def copy_to_cpu(value: Any, _seen: dict[Any, torch.Tensor] | None = None) -> Any:
    """Copy nested containers and plain tensors so that later steps do not change them; tied tensors stay tied."""
    seen = {} if _seen is None else _seen
    if isinstance(value, torch.Tensor):
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in seen or not value.numel():
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, dict):
        return {name: copy_to_cpu(inside, seen) for name, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copy_to_cpu(inside, seen) for inside in value)
    return value
