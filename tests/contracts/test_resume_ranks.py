"""Invariant 1 over several ranks: all of them are killed at a random moment, and once while they save."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import MakeRun
from ranks import start_training, train_on_ranks
from test_resume import assert_same_run

from lit_llm.config import PretrainConfig

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
