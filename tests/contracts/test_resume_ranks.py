"""Invariant 1 over several ranks: all of them are killed at a random moment, and once while they save."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
from conftest import MakeRun
from ranks import start_training, train_on_ranks
from run_files import all_curves, checkpoints
from test_resume import assert_same_run

from lit_llm.config import PretrainConfig
from lit_llm.training.ends import EndOfRun

CASES: dict[str, dict[str, Any]] = {
    "ddp": {"data": {"micro_batch_size": 2}, "trainer": {"strategy": "ddp"}},
    "fsdp": {"data": {"num_workers": 1}, "trainer": {"strategy": "fsdp"}},
    "fsdp, sharded in the background": {
        "architecture": "modern-1m",
        "optimizer": {"name": "muon"},
        "trainer": {"strategy": "fsdp", "sharded_checkpoints": True, "async_checkpoints": True},
    },
    "tensor parallel": {"trainer": {"strategy": "fsdp", "tensor_parallel_size": 2, "sharded_checkpoints": True}},
}
SLOW = ("fsdp, sharded in the background", "fsdp", "tensor parallel")


def port() -> int:
    """One that nothing listens on; every start takes another, as the killed one's may linger."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def kill_when(config: PretrainConfig, happened: Callable[[], Any], delay: float = 0.0) -> None:
    """Start two ranks and SIGKILL them, as soon as something has happened."""
    ranks = start_training(config, 2, port())
    deadline = time.monotonic() + 200.0
    while not happened():
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in ranks.processes), "the run ended before it could be killed"
        time.sleep(0.001)
    time.sleep(delay)
    alive = [process for process in ranks.processes if process.is_alive()]
    assert len(alive) == 2, "the run ended before it could be killed"
    for process in alive:
        process.kill()
    for process in alive:
        process.join()


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES])
def test_killed_ranks_go_on_bit_identically(case: str, make_run: MakeRun) -> None:
    options = {**CASES[case]}
    options["model"] = {"dropout": 0.1}
    options["data"] = {"batch_size": 8, **options.get("data", {})}
    steps = {"max_steps": 24, "save_every_n_steps": 2, "val_every_n_steps": 8, "devices": 2}
    options["trainer"] = {**steps, **options["trainer"]}
    straight = make_run("straight", **options)
    train_on_ranks(straight, 2, port())

    killed = make_run("killed", **options)
    checkpoints = killed.folder / "checkpoints"
    kill_when(killed, lambda: list(checkpoints.glob("step_*.ckpt")), delay=random.Random(case).uniform(0.0, 0.2))

    killed.ckpt_path = "last"
    before = max(checkpoints.glob("step_*.ckpt"))
    kill_when(
        killed, lambda: max(checkpoints.glob("step_*.ckpt")) > before and list(checkpoints.glob(".step_*.partial"))
    )
    assert int(max(checkpoints.glob("step_*.ckpt")).stem.removeprefix("step_")) < 24
    train_on_ranks(killed, 2, port())
    assert_same_run(straight, killed)
    assert not list(checkpoints.glob(".step_*.partial"))


class OtherClocks(L.Callback):
    """Lets the time of rank 0 be over at once, and that of the others never."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        end = next(each for each in trainer.callbacks if isinstance(each, EndOfRun))
        end._started += -1e6 if trainer.is_global_zero else 1e6


def test_ranks_end_together_by_the_clock_of_the_first(make_run: MakeRun) -> None:
    trainer = {"max_steps": 3, "devices": 2, "strategy": "ddp", "max_time": 500, "save_every_n_steps": None}
    config = make_run(trainer={**trainer, "timeout_minutes": 1.0})
    train_on_ranks(config, 2, port(), OtherClocks())
    assert list(checkpoints(config)) == [1] and [step for step, _ in all_curves(config)["val/loss"]] == [1]
    assert "trainer.max_time 500 is over" in (config.folder / "report.md").read_text()


@pytest.mark.slow
def test_ranks_end_together_by_their_common_loss(make_run: MakeRun) -> None:
    """A rate far too high, so that validation gets worse."""
    trainer = {"max_steps": 12, "val_every_n_steps": 1, "early_stopping_patience": 1, "timeout_minutes": 1.0}
    config = make_run(
        trainer={**trainer, "devices": 2, "strategy": "fsdp"},
        optimizer={"learning_rate": 10.0},
        schedule={"name": "constant", "warmup_steps": 0},
    )
    train_on_ranks(config, 2, port())
    losses = [loss for _, loss in all_curves(config)["val/loss"]]
    assert len(losses) < 12 and losses[-1] >= losses[-2] == min(losses)
