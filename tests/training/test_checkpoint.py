"""Checkpoints: when, which are kept, and that a failed write loses nothing."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from run_files import all_curves, checkpoints

from lit_llm.config import UserError
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint_files import saved_checkpoints
from lit_llm.training.checkpoint_io import AtomicCheckpointIO


class Order(L.Callback):
    """Notes which checkpoints exist when a validation ends; callbacks of checkpoints run last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at_validation: list[tuple[int, list[int]]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.at_validation.append((trainer.global_step, list(saved_checkpoints(self.folder))))


def test_a_checkpoint_is_written_after_the_validation_of_its_step(make_run: MakeRun) -> None:
    trainer = {"max_steps": 5, "val_every_n_steps": 2, "save_every_n_steps": 1, "keep_last_checkpoints": 9}
    config = make_run(trainer=trainer, data={"micro_batch_size": 2})
    order = Order(config.folder / "checkpoints")
    pretrain(config, callbacks=[order])
    assert order.at_validation == [(2, [1]), (4, [1, 2, 3]), (5, [1, 2, 3, 4])]
    losses = dict(all_curves(config)["val/loss"])
    for step, path in checkpoints(config).items():
        state = torch.load(path, weights_only=True)
        assert state["global_step"] == step
        seen = {number: loss for number, loss in losses.items() if number <= step}
        best = state["callbacks"]["CheckpointPolicy"]
        if seen:
            assert best["best_step"] == min(seen, key=seen.__getitem__)
            assert best["best_loss"] == pytest.approx(min(seen.values()), abs=1e-6)
        else:
            assert best == {"best_loss": None, "best_step": None}


def test_the_best_is_remembered_over_a_resume(make_run: MakeRun) -> None:
    """The rate rises far too high: an early validation stays the best, also of the run that goes on."""
    options: dict[str, Any] = {
        "optimizer": {"learning_rate": 10.0},
        "schedule": {"name": "constant", "warmup_steps": 3},
        "trainer": {"max_steps": 3, "val_every_n_steps": 1, "save_every_n_steps": 1, "keep_last_checkpoints": 1},
    }
    first = make_run(**options)
    pretrain(first)
    options["trainer"]["max_steps"] = 6
    resumed = make_run(**options, ckpt_path="last")
    pretrain(resumed)
    losses = dict(all_curves(resumed)["val/loss"])
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    best = min(losses, key=losses.__getitem__)
    assert best < 3
    assert list(checkpoints(resumed)) == [best, 6]


@pytest.mark.parametrize("background", [False, True])
def test_a_write_that_fails_midway_leaves_the_old_file(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step_00000001.ckpt"
    plugin = AtomicCheckpointIO(background)
    plugin.save_checkpoint({"weight": torch.ones(3)}, path)
    assert plugin.settle()

    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    plugin.save_checkpoint({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="No space left on device; free some space and resume") as error:
        plugin.settle()
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert torch.equal(torch.load(path)["weight"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]
    assert plugin.settle()  # it is said once


class Gate:
    """Holds the writing of a checkpoint up until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.opened.wait(60)
        return (OrderedDict, ())

    def __deepcopy__(self, memo: Any) -> Gate:
        return self


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    path, gate, weight = tmp_path / "step_00000001.ckpt", Gate(), torch.ones(3)
    plugin = AtomicCheckpointIO(background=True)
    plugin.save_checkpoint({"gate": gate, "weight": weight, "tied": weight}, path)
    weight.zero_()
    assert not plugin.settle(wait=False)
    assert not path.exists()
    gate.opened.set()
    assert plugin.settle()
    saved = torch.load(path)
    assert saved["weight"].tolist() == [1, 1, 1]
    assert saved["weight"].data_ptr() == saved["tied"].data_ptr()


class Hold(L.Callback):
    """Keeps the checkpoint of step 4 from being finished until step 5 has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = Gate()
        self.gate.opened.set()
        self.seen: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"gate": self.gate}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 3:
            trainer.strategy.checkpoint_io.join()  # that of step 2 is on the disk
            self.gate.opened.clear()
        if trainer.global_step == 4:
            self.seen = list(saved_checkpoints(self.folder))
            self.gate.opened.set()


def test_an_older_checkpoint_stays_until_the_newer_is_on_the_disk(make_run: MakeRun) -> None:
    trainer = {"max_steps": 5, "save_every_n_steps": 2, "val_every_n_steps": None, "keep_last_checkpoints": 1}
    config = make_run(trainer={**trainer, "async_checkpoints": True, "keep_best_checkpoint": False})
    hold = Hold(config.folder / "checkpoints")
    pretrain(config, callbacks=[hold])
    assert hold.seen == [2]
    assert list(checkpoints(config)) == [5]


def test_saving_by_the_clock(make_run: MakeRun) -> None:
    trainer = {"max_steps": 3, "save_every_n_steps": None, "val_every_n_steps": None, "keep_last_checkpoints": 9}
    often = make_run("often", trainer={**trainer, "save_every_n_minutes": 1e-9})
    seldom = make_run("seldom", trainer={**trainer, "save_every_n_minutes": 1e9})
    pretrain(often)
    pretrain(seldom)
    assert list(checkpoints(often)) == [1, 2, 3]
    assert list(checkpoints(seldom)) == [3]
