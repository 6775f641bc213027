"""The training curves: TensorBoard's event files, which a run can do without."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import TensorBoardLogger


class Curves(TensorBoardLogger):
    """Writes curves as long as the disk takes them. A write that fails is said once, and the run goes on without.

    TensorBoard writes from a thread, which otherwise dies with a traceback, and the next value ends the run.
    """

    _warned = False

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer, on rank 0; made when it is first asked for."""
        made = self._experiment is not None
        hook, threading.excepthook = threading.excepthook, (threading.excepthook if made else _ignore)
        try:
            writer = super().experiment
            if not made and self._experiment is not None:
                _forgive(writer.file_writer.event_writer._async_writer, self._warn)
        except OSError as error:
            self._warn(error)
            writer = self._experiment = _DummyExperiment()
        finally:
            threading.excepthook = hook
        return writer

    def save(self) -> None:
        """Put what has been written on the disk."""
        try:
            super().save()
        except OSError as error:
            if not self._warned:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        self._warned = True
        print(
            f"warning: cannot write the curves in {self.log_dir}: {error.strerror}; the run goes on without them",
            file=sys.stderr,
        )


def _ignore(arguments: Any) -> None:
    """Instead of a traceback of a thread whose error is raised in the main one, too."""


def _forgive(queue: Any, warn: Callable[[OSError], None]) -> None:
    """Let the thread that empties TensorBoard's queue write through a `_Forgiving`."""
    queue._writer = queue._worker._record_writer = _Forgiving(queue._writer, warn)


class _Forgiving:
    """A record writer that takes everything after the first error for written.

    What follows half a record could not be read.
    """

    def __init__(self, writer: Any, warn: Callable[[OSError], None]) -> None:
        self._writer, self._warn, self._failed = writer, warn, False

    def _try(self, method: str, *arguments: Any) -> None:
        if self._failed:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except OSError as error:
            self._failed = True
            self._warn(error)

    def write(self, data: bytes) -> None:
        self._try("write", data)

    def flush(self) -> None:
        self._try("flush")

    def close(self) -> None:
        self._try("close")
