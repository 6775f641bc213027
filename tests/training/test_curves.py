"""Curves that cannot be written are missed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_files import largest_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_llm.training.curves import Curves


def log(logger: Curves, steps: range) -> None:
    for step in steps:
        logger.log_metrics({"loss": 1.0 / (1 + step), "rate": 0.1}, step)


def test_an_event_file_that_grows_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Curves(tmp_path, name="", version="tensorboard")
    log(logger, range(3))
    logger.save()
    with largest_file(2_000) as limit:
        limit()
        log(logger, range(3, 100))
        logger.save()
        log(logger, range(100, 200))
        logger.finalize("success")
    errors = capsys.readouterr().err
    where = f"{tmp_path / 'tensorboard'}: File too large"
    assert errors == f"warning: cannot write the curves in {where}; the run goes on without them\n"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == list(range(len(steps))) and 3 <= len(steps) < 100


def test_no_event_file_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Curves(tmp_path, name="", version="tensorboard", purge_step=3)
    with largest_file(0) as limit:
        limit()
        log(logger, range(3))
        logger.experiment.add_text("samples/1", "text", 3)
        logger.save()
        logger.finalize("success")
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "the run goes on without them" in errors
