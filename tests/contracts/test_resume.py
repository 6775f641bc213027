"""Invariant 1: a run that was killed and resumed is bit-identical to one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from conftest import ROOT, MakeRun
from run_files import TIMED, all_curves, assert_identical

from lit_llm.config import PretrainConfig, to_plain
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint_io import read_checkpoint


class Crash(L.Callback):
    """Dies in the middle of a run, as a bug or a lost node would make it."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.seen = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen += 1
        if self.seen == self.batch:
            raise RuntimeError("the power is gone")


def final_state(config: PretrainConfig) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return read_checkpoint(sorted((config.folder / "checkpoints").glob("step_*.ckpt"))[-1])


def curves(config: PretrainConfig) -> dict[str, list[tuple[int, float]]]:
    """Every logged value but the timed ones."""
    return {name: points for name, points in all_curves(config).items() if name not in TIMED}


def assert_same_run(straight: PretrainConfig, resumed: PretrainConfig) -> None:
    one, other = final_state(straight), final_state(resumed)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "TokenDataModule"):
        assert_identical(one[key], other[key], key)
    assert_identical(one["callbacks"]["ExactResume"], other["callbacks"]["ExactResume"], "random state")
    assert_identical(curves(straight), curves(resumed), "curves")
    assert {"train/loss", "val/loss", "val/bits_per_byte"} <= curves(straight).keys()


CASES = {
    # dropout and the end of an epoch (the tiny corpus has some 30 windows of the train split per source and epoch)
    "dropout": {"model": {"dropout": 0.2}, "trainer": {"max_steps": 12}},
    "workers": {"data": {"num_workers": 2, "micro_batch_size": 2}, "model": {"dropout": 0.1}},
    "modern, accumulation": {
        "architecture": "modern-1m",
        "optimizer": {"name": "muon"},
        "schedule": {"name": "wsd"},
        "data": {"micro_batch_size": 2},
        "model": {"dropout": 0.1},
    },
    "documents": {"data": {"mask_documents": True}, "trainer": {"precision": "bf16-mixed"}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_crashed_run_goes_on_bit_identically(case: str, make_run: MakeRun) -> None:
    options = CASES[case]
    straight = make_run("straight", **options)
    pretrain(straight)
    micro_batches = straight.data.batch_size // (straight.data.micro_batch_size or straight.data.batch_size)
    # once before the first checkpoint, once between two, once right after a validation
    for name, batch in (("early", 2), ("between", 4 * micro_batches), ("after", 3 * micro_batches + 1)):
        with pytest.raises(RuntimeError, match="power"):
            pretrain(make_run(name, **options), callbacks=[Crash(batch)])
        resumed = make_run(name, **options, ckpt_path="last_or_begin" if name == "early" else "last")
        pretrain(resumed)
        assert_same_run(straight, resumed)


def test_the_data_cross_an_epoch(make_run: MakeRun) -> None:
    """The dropout case above reads the corpus more than once, so a resume falls into a later epoch too."""
    from lit_llm.data.pretraining.data_module import TokenDataModule

    config = make_run("epochs", data={"sequence_length": 256, "batch_size": 64}, model={"max_position_embeddings": 256})
    data = TokenDataModule(config.data, None, 0)
    assert data.epochs(12 * 64)[0] > 1
    options = {
        "data": {"sequence_length": 256, "batch_size": 64, "validation_windows": 2},
        "model": {"max_position_embeddings": 256, "num_layers": 1},
        "trainer": {"max_steps": 6, "val_every_n_steps": None},
    }
    assert data.epochs(6 * 64)[0] > 1 > data.epochs(1 * 64)[0]
    straight = make_run("straight", **options)
    pretrain(straight)
    with pytest.raises(RuntimeError, match="power"):
        pretrain(make_run("crashed", **options), callbacks=[Crash(6)])
    resumed = make_run("crashed", **options, ckpt_path="last")
    pretrain(resumed)
    assert_same_run(straight, resumed)


def test_an_unrestored_random_state_is_noticed(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: without the random states, dropout makes another run of it."""
    options = CASES["dropout"]
    straight = make_run("straight", **options)
    pretrain(straight)
    with pytest.raises(RuntimeError, match="power"):
        pretrain(make_run("crashed", **options), callbacks=[Crash(4)])
    monkeypatch.setattr("lit_llm.training.resume.restore_random_state", lambda state: None)
    resumed = make_run("crashed", **options, ckpt_path="last")
    pretrain(resumed)
    with pytest.raises(AssertionError):
        assert_same_run(straight, resumed)


def launch(folder: Path, config: PretrainConfig, *arguments: str) -> subprocess.Popen[bytes]:
    """The real script, in a process of its own."""
    recipe = folder / f"{config.run_name}.yaml"
    recipe.write_text(yaml.safe_dump(to_plain(config)))
    command = [sys.executable, str(ROOT / "experiments" / "pretrain.py"), "--config", str(recipe), *arguments]
    # sums over another number of threads end in other bits
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


@pytest.mark.slow
def test_sigkill_at_any_moment(make_run: MakeRun, tmp_path: Path) -> None:
    """Kill the process twice wherever it happens to be, the second time while a checkpoint is being written."""
    options = {
        "model": {"dropout": 0.1, "hidden_size": 128, "intermediate_size": 512},
        "data": {"micro_batch_size": 2},
        "optimizer": {"name": "muon"},
        "trainer": {"max_steps": 40, "save_every_n_steps": 2, "val_every_n_steps": 10},
    }
    straight = make_run("straight", **options)
    pretrain(straight)
    killed = make_run("killed", **options)
    checkpoints = killed.folder / "checkpoints"
    chance = random.Random(7)

    process = launch(tmp_path, killed)
    wait_for(lambda: list(checkpoints.glob("step_*.ckpt")), process)
    time.sleep(chance.uniform(0.0, 0.3))
    kill(process)

    before = max(checkpoints.glob("step_*.ckpt"))
    process = launch(tmp_path, killed, "--ckpt_path", "last")
    wait_for(
        lambda: list(checkpoints.glob(".step_*.partial")) or max(checkpoints.glob("step_*.ckpt")) > before, process
    )
    kill(process)

    process = launch(tmp_path, killed, "--ckpt_path", "last")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert_same_run(straight, killed)


def wait_for(happened: Any, process: subprocess.Popen[bytes]) -> None:
    """Wait for a condition, as long as the process lives."""
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
