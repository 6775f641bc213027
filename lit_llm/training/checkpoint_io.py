"""The Lightning plugin that writes and reads checkpoints, at once or while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_llm.config import UserError
from lit_llm.distributed.ranks import from_first, gather, rank
from lit_llm.training.checkpoint_files import copy_to_cpu, readable_checkpoint, write_failure, write_file
from lit_llm.training.shard_files import read_whole

_WRITE_ERRORS = (OSError, RuntimeError)  # torch reports a failed write of its archive as a RuntimeError
_REQUIRED = {"state_dict", "pytorch-lightning_version"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it when it is whole and on the disk.

    A kill or a full disk leaves the earlier checkpoints as they were. Lightning's own single-file save goes through
    a temporary folder, which on another filesystem is a copy and can be cut short.

    A write that fails is reported by `settle`, on every rank: raised on the one rank that writes, it would leave the
    others waiting.

    Args:
        background: copy what is to be written and write it in a thread.
    """

    def __init__(self, background: bool = False) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._target = Path()
        self._outcome: Any = None
        self._error: Exception | None = None
        self._finish: Callable[[list[Any]], None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Start to write a checkpoint as one file; Lightning calls it on rank 0 alone."""
        self.write(copy_to_cpu(checkpoint) if self.background else checkpoint, Path(path))

    def write(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Start to write a checkpoint as one file, from tensors that nobody changes any more."""
        self.start(path, partial(write_file, path, partial(torch.save, checkpoint)))

    def start(self, target: Path, write: Callable[[], Any], finish: Callable[[list[Any]], None] | None = None) -> None:
        """Run `write`, now or in a thread. The write before must have been settled.

        Args:
            target: named in an error.
            write: this rank's part; talks to no other rank.
            finish: run on rank 0 by `settle` once every rank has written, on what their `write` returned.
        """
        self.join()
        self._target, self._finish, self._outcome, self._error = target, finish, None, None
        if self.background:
            self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
            self._thread.start()
        else:
            self._run(write)

    def _run(self, write: Callable[[], Any]) -> None:
        try:
            self._outcome = write()
        except Exception as error:
            self._error = error

    def join(self) -> None:
        """Wait until this rank's part is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def settle(self, wait: bool = True) -> bool:
        """Return whether the checkpoint that was started is on the disk under its name. Every rank must call.

        Args:
            wait: for every rank to have written its part.

        Raises:
            UserError: a rank could not write, for instance because the disk is full; on every rank.
        """
        if not wait and any(gather(self._thread is not None and self._thread.is_alive())):
            return False
        self.join()
        outcomes = gather((self._report(), self._outcome))
        problem = next((report for report, _ in outcomes if report is not None), None)
        if problem is None and from_first(self._finish is not None):
            if rank() == 0 and self._finish is not None:
                self._run(partial(self._finish, [outcome for _, outcome in outcomes]))
            problem = from_first(self._report())
        error, self._error, self._finish, self._outcome = self._error, None, None, None
        if error is not None and not isinstance(error, _WRITE_ERRORS):
            raise error
        if problem is not None:
            raise UserError(problem) from error
        return True

    def _report(self) -> str | None:
        """Put this rank's error into words for the user."""
        if self._error is None:
            return None
        if isinstance(self._error, _WRITE_ERRORS):
            return str(write_failure(self._target, self._error))
        return f"cannot write {self._target}: {type(self._error).__name__}: {self._error}"

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Load plain tensors and containers from `path`, a file or the folder of a sharded checkpoint; nothing in it is
        executed. Every rank takes rank 0's path.

        Raises:
            UserError: there is nothing at `path`, or it is cut short, or not a checkpoint.
        """
        return read_checkpoint(Path(from_first(str(path))))


def read_checkpoint(path: Path, keys: tuple[str, ...] = ("state_dict", "optimizer_states"), mmap: bool = False) -> Any:
    """Read a checkpoint as one dict of whole tensors, on the CPU.

    Args:
        path: a file, or the folder of a sharded checkpoint.
        keys: which of the large parts are wanted from a folder; a file has both.
        mmap: map a file into memory instead of reading it.

    Raises:
        UserError: there is nothing at `path`, or it is cut short, or not a checkpoint.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}")
    with readable_checkpoint(path):
        if path.is_dir():
            checkpoint = read_whole(path, keys)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    required = _REQUIRED if "state_dict" in keys else _REQUIRED - {"state_dict"}
    if not isinstance(checkpoint, dict) or not required <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of a run; give one that a run of this package wrote")
    return checkpoint
