"""The files that a run's curves are written to: metrics.jsonl in every case, TensorBoard's, and a CSV table.

A run does not end because one of them cannot be written: that is one line on stderr, and the run goes on without.
"""

from __future__ import annotations

import csv
import io
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_llm.config.files import replace_file
from lit_llm.training.step_lines import StepLines

METRICS_FILE = "metrics.jsonl"


class MetricsFile(Logger):
    """Writes every curve to metrics.jsonl: for each step a line with the step, tokens, seconds and curves.

    Args:
        folder: the run folder.
        first_step: step that the run goes on from; lines of later steps are taken back at the first one written.
        tokens_at: the tokens that have been read after a step, or None while they are not known.
    """

    def __init__(self, folder: Path, first_step: int | None, tokens_at: Callable[[int], int | None]) -> None:
        super().__init__()
        self._lines = StepLines(folder / METRICS_FILE, first_step, "the metrics")
        self._tokens_at = tokens_at
        self._started = time.monotonic()
        self._seconds_before: float | None = None

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return METRICS_FILE

    @property
    def version(self) -> str:
        """There is one file for each run, whatever the number of its starts."""
        return ""

    @property
    def experiment(self) -> StepLines:
        """What writes the file."""
        return self._lines

    @property
    def seconds(self) -> float:
        """How long the run has taken so far; on rank 0 the earlier starts of a resumed run are included."""
        if self._seconds_before is None:
            if rank_zero_only.rank == 0:
                self._lines.begin()
            before = self._lines.last.get("seconds")
            self._seconds_before = before if isinstance(before, int | float) else 0.0
        return self._seconds_before + time.monotonic() - self._started

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the line of a step."""
        assert step is not None, "every curve of this package says its step"
        known = {"seconds": round(self.seconds, 3)}
        tokens = self._tokens_at(step)
        if tokens is not None:
            known["tokens"] = tokens
        self._lines.write(step, {**known, **{name: float(value) for name, value in metrics.items()}})

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """The configuration stands in config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        """Put what has been written on the disk."""
        self._lines.sync()


class Curves(TensorBoardLogger):
    """Writes TensorBoard's event files until a write fails, which is told once.

    TensorBoard writes from a thread of its own. Without this class, a full disk would end that thread with a
    traceback, and the next value that is logged would end the run.
    """

    _warned = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._shown: set[str] = set()  # curves that the layout knows
        self._has_configuration = False

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

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values, and lay out the tab "Custom scalars" anew where there are curves that it has not shown yet.

        Tags are sorted by name everywhere else, which puts validation last.
        """
        super().log_metrics(metrics, step)
        fresh = metrics.keys() - self._shown
        self._shown |= fresh
        if any(name.startswith("val/") for name in fresh):
            self.experiment.add_custom_scalars(_layout(self._shown))

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Fill the tab "HPARAMS" with the configuration.

        What it shows of the curves are their last values. Columns are not declared, so that runs of several stages,
        whose options differ, stand in one table.
        """
        from torch.utils.tensorboard.summary import hparams

        self.hparams.update(params)
        _, start, _ = hparams({name: _as_hparam(value) for name, value in params.items()}, {})
        self._add_summary(start)
        self._has_configuration = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files; a run that ends well is marked so in "HPARAMS"."""
        if self._has_configuration and status == "success":
            from torch.utils.tensorboard.summary import hparams

            self._add_summary(hparams({}, {})[2])
            self._has_configuration = False
        super().finalize(status)

    @rank_zero_only
    def save(self) -> None:
        """Put what has been written on the disk."""
        try:
            super().save()
        except OSError as error:
            if not self._warned:
                self._warn(error)

    def _add_summary(self, summary: Any) -> None:
        writer = self.experiment
        if not isinstance(writer, _DummyExperiment):
            writer._get_file_writer().add_summary(summary)

    def _warn(self, error: OSError) -> None:
        self._warned = True
        print(
            f"warning: cannot write the curves in {self.log_dir}: {error.strerror}; the run goes on without them",
            file=sys.stderr,
        )


def _as_hparam(value: Any) -> float | str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value if isinstance(value, int | float | str) else str(value)


def _layout(names: set[str]) -> dict[str, dict[str, list[Any]]]:
    """A chart for each validation curve, drawn together with the training curve of its name, the loss first."""
    validation = sorted(
        (name for name in names if name.startswith("val/")), key=lambda name: (name != "val/loss", name)
    )
    charts = {}
    for name in validation:
        short = name.removeprefix("val/")
        same = [other for other in (f"train/{short}", short) if other in names]
        charts[short] = ["Multiline", [f"^{tag}$" for tag in (name, *same)]]
    return {"validation": charts}


def _ignore(arguments: Any) -> None:
    """Print nothing about an error in TensorBoard's thread, since the main thread raises the same error."""


def _forgive(queue: Any, warn: Callable[[OSError], None]) -> None:
    """Let the thread that empties TensorBoard's queue write through a `_Forgiving`."""
    queue._writer = queue._worker._record_writer = _Forgiving(queue._writer, warn)


class _Forgiving:
    """A record writer that drops every record after the first error.

    A reader stops at the half of a record that a full disk leaves, so what followed it could not be read.
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


class CurvesTable(CSVLogger):
    """Writes csv/metrics.csv in the run folder, and goes on with it in a resumed run.

    Lightning's logger would delete the rows of the earlier start.

    Args:
        folder: the run folder.
        first_step: step that the run goes on from; rows of later steps are taken back at the first one written.
    """

    def __init__(self, folder: Path, first_step: int | None) -> None:
        super().__init__(folder, name="", version="csv", flush_logs_every_n_steps=1)
        self.path = Path(self.log_dir) / "metrics.csv"
        self._first_step = first_step
        self._is_begun = self._has_failed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer of rows, made when it is first asked for."""
        if self._experiment is None:
            columns, rows = _read_table(self.path) if self.path.exists() else ([], [])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the rows that are put back here
                writer = super().experiment
            if columns:
                _write_table(self.path, columns, rows)
                writer.metrics_keys = columns
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Add a row."""
        self._try(lambda: self._log(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Write the configuration beside the table, as hparams.yaml."""
        self._try(lambda: super(CurvesTable, self).log_hyperparams(params))

    @rank_zero_only
    def save(self) -> None:
        """Put rows that are waiting into the file."""
        self._try(super().save)

    def _log(self, metrics: Any, step: int | None) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._take_back()
        super().log_metrics(metrics, step)

    def _take_back(self) -> None:
        if self._first_step is None or not self.path.exists():
            return
        _, rows = _read_table(self.path)
        kept = [row for row in rows if 0 < int(row["step"]) <= self._first_step]
        if columns := self.experiment.metrics_keys:
            _write_table(self.path, columns, kept)

    def _try(self, write: Callable[[], Any]) -> None:
        if self._has_failed:
            return
        try:
            write()
        except OSError as error:
            self._has_failed = True
            print(
                f"warning: cannot write the curves in {self.path}: {error.strerror}; the run goes on without them",
                file=sys.stderr,
            )


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and rows of a table; rows that are not whole, as a full disk leaves one, are passed over."""
    text = path.read_text(encoding="utf-8", errors="replace")
    table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    rows = [row for row in table if None not in row and None not in row.values() and row.get("step", "").isdecimal()]
    return list(table.fieldnames or []), rows


def _write_table(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, columns)
    table.writeheader()
    table.writerows(rows)
    replace_file(path, text.getvalue())
