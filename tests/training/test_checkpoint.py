"""Checkpoints: when, which are kept, and that a failed write loses nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from run_files import all_curves, checkpoints

from lit_llm.cli.stages import pretrain
from lit_llm.config import UserError
from lit_llm.training.checkpoint import AtomicCheckpointIO, saved_checkpoints, step_of


def test_names() -> None:
    assert step_of(Path("a/step_00000120.ckpt")) == 120
    assert step_of(Path(".step_00000120.ckpt.partial")) is None
    assert step_of(Path("epoch=1.ckpt")) is None


def test_only_whole_checkpoints_count_and_in_the_order_of_steps(tmp_path: Path) -> None:
    for name in ("step_100000000.ckpt", "step_00000020.ckpt", ".step_00000030.ckpt.partial", "step_x.ckpt"):
        (tmp_path / name).touch()
    assert list(saved_checkpoints(tmp_path)) == [20, 100000000]
    assert saved_checkpoints(tmp_path / "missing") == {}


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
    """The rate is far too high: the first validation stays the best, also of the run that goes on."""
    options: dict[str, Any] = {
        "optimizer": {"learning_rate": 3.0},
        "schedule": {"name": "constant", "warmup_steps": 0},
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


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step_00000001.ckpt"
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint({"weight": torch.ones(3)}, path)

    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="No space left on device; free some space and resume") as error:
        plugin.save_checkpoint({"weight": torch.zeros(3)}, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert torch.equal(torch.load(path)["weight"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": Evil()}, tmp_path / "step_00000001.ckpt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step_00000001.ckpt")
    assert not (tmp_path / "executed").exists()
