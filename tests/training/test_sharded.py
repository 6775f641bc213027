"""Checkpoints of sharded runs: any strategy reads what any other wrote, to the bit."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from ranks import run_ranks
from run_files import all_curves, assert_identical, checkpoints

from lit_llm.config import PretrainConfig, UserError
from lit_llm.distributed.ranks import rank
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint_files import damage
from lit_llm.training.checkpoint_io import read_checkpoint
from lit_llm.training.shard_files import ShardSave, optimizer_entry, read_whole, weight_entry
from lit_llm.training.sharded import full_optimizer_state, full_weights

STEPS = 3
SINGLE: dict[str, Any] = {}
DDP = {"devices": 2, "strategy": "ddp"}
ALONE = {"strategy": "fsdp"}
SHARDED = {"devices": 2, "strategy": "fsdp", "sharded_checkpoints": True}
FULL = {"devices": 2, "strategy": "fsdp", "sharded_checkpoints": False}
TENSOR = {"devices": 2, "strategy": "fsdp", "tensor_parallel_size": 2, "sharded_checkpoints": True}
SHARDED_4 = {**SHARDED, "devices": 4}
FULL_4 = {**FULL, "devices": 4}
MIXED = {**TENSOR, "devices": 4}
MIXED_FULL = {**MIXED, "sharded_checkpoints": False}
# two optimizers in three groups and an untied head; a tied head and biases
MUON = {"architecture": "modern-1m", "optimizer": {"name": "muon"}}
TIED = {"architecture": "gpt2"}


class Dump(L.Callback):
    """Writes what a resumed run starts with: the whole weights and optimizer state, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = {
            "state_dict": full_weights(pl_module),
            "optimizer_states": [full_optimizer_state(pl_module, trainer.optimizers[0])],
            "global_step": trainer.global_step,
            "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        }
        if rank() == 0:
            torch.save(found, self.path)


Job = tuple[PretrainConfig, Path | None]


def train_all(jobs: list[Job]) -> None:
    """Runs, one after another in the same processes."""
    for config, dump in jobs:
        pretrain(config, callbacks=[] if dump is None else [Dump(dump)])


def launch(jobs: list[Job], tmp_path: Path) -> None:
    """Each run on its number of ranks; one process is one of ours where nothing is sharded."""
    for size in sorted({int(config.trainer.devices) for config, _ in jobs}):
        mine = [job for job in jobs if job[0].trainer.devices == size]
        alone = [job for job in mine if size == 1 and job[0].trainer.strategy == "auto"]
        train_all(alone)
        rest = [job for job in mine if job not in alone]
        if rest:
            run_ranks(train_all, size, tmp_path, rest)


def tiny(make_run: MakeRun, name: str, trainer: dict[str, Any], model: dict[str, Any], **more: Any) -> PretrainConfig:
    few = {"max_steps": STEPS, "val_every_n_steps": None, "save_every_n_steps": None}
    rates = {"name": "constant", "warmup_steps": 2}  # which do not depend on where the run ends
    return make_run(name, trainer={**few, **trainer}, schedule=rates, **model, **more)


def written(config: PretrainConfig) -> Path:
    (path,) = checkpoints(config).values()
    return path


def check_reading(
    make_run: MakeRun, folder: Path, model: dict[str, Any], plan: dict[str, str], shapes: dict[str, dict[str, Any]]
) -> None:
    """Every reader starts with exactly what every writer has saved.

    Args:
        plan: readers of each writer.
        shapes: trainer options by name.
    """
    saved = {writer: tiny(make_run, writer, shapes[writer], model) for writer in plan}
    launch([(config, None) for config in saved.values()], folder)
    jobs: dict[tuple[str, str], Job] = {}
    for writer, readers in plan.items():
        for reader in readers.split():
            name = f"{reader}_after_{writer}"
            trainer = {**shapes[reader], "max_steps": STEPS + 1}
            again = tiny(make_run, name, trainer, model, ckpt_path=str(written(saved[writer])))
            jobs[writer, reader] = (again, folder / f"{name}.pt")
    launch(list(jobs.values()), folder)
    for (writer, reader), (_, dump) in jobs.items():
        found, wanted = torch.load(dump, weights_only=True), read_checkpoint(written(saved[writer]))
        wanted["state_dict"] = dict(wanted["state_dict"])
        assert found["global_step"] == STEPS
        assert wanted["optimizer_states"][0]["state"]
        for key in found:
            assert_identical(found[key], wanted[key], f"{reader} after {writer}: {key}")


SHAPES = {"single": SINGLE, "alone": ALONE, "ddp": DDP, "full": FULL, "sharded": SHARDED, "tensor": TENSOR}


def test_every_strategy_reads_what_another_wrote(make_run: MakeRun, tmp_path: Path) -> None:
    """Each reads once; any of any is the slow test's."""
    plan = {"single": "full", "full": "tensor", "sharded": "single alone", "tensor": "ddp sharded"}
    check_reading(make_run, tmp_path, MUON, plan, SHAPES)


@pytest.mark.slow
def test_every_strategy_reads_what_any_wrote(make_run: MakeRun, tmp_path: Path) -> None:
    check_reading(make_run, tmp_path, MUON, dict.fromkeys(SHAPES, " ".join(SHAPES)), SHAPES)


def test_a_tied_head_is_saved_once_and_read_by_every_strategy(make_run: MakeRun, tmp_path: Path) -> None:
    check_reading(make_run, tmp_path, TIED, {"full": "sharded", "sharded": "ddp"}, SHAPES)
    single = tiny(make_run, "single", SINGLE, TIED)
    pretrain(single)
    sizes = [path.stat().st_size for path in (written(single), tmp_path / "full/checkpoints/step_00000003.ckpt")]
    assert sizes[0] == pytest.approx(sizes[1], abs=20_000)  # the random state of the second rank
    weights = read_checkpoint(tmp_path / "sharded/checkpoints/step_00000003.ckpt")["state_dict"]
    assert weights["model.head.weight"] is weights["model.embedding.weight"]


@pytest.mark.slow
def test_four_ranks_and_two_dimensions(make_run: MakeRun, tmp_path: Path) -> None:
    shapes = {**SHAPES, "mixed": MIXED, "mixed_full": MIXED_FULL, "four": SHARDED_4, "four_full": FULL_4}
    plan = {
        "single": "four mixed",
        "sharded": "four_full mixed",
        "mixed": "single alone sharded mixed four",
        "mixed_full": "single mixed_full",
        "four": "single sharded mixed",
    }
    check_reading(make_run, tmp_path, MUON, plan, shapes)


@pytest.mark.parametrize("shape", [SHARDED, pytest.param(FULL, marks=pytest.mark.slow)])
def test_a_run_that_saves_in_the_background_goes_on_bit_identically(
    shape: dict[str, Any], make_run: MakeRun, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**TIED, "model": {"dropout": 0.1}, "data": {"micro_batch_size": 1}}
    options["schedule"] = {"name": "constant"}  # the first part ends early
    shape = {**shape, "save_every_n_steps": 1, "keep_last_checkpoints": 9}
    straight = make_run("straight", trainer={**shape, "max_steps": 6}, **options)
    behind = {**shape, "async_checkpoints": True}
    first = make_run("resumed", trainer={**behind, "max_steps": 4}, **options)
    run_ranks(train_all, 2, tmp_path, [(straight, None), (first, None)])
    for step in (1, 2, 3):  # the copy that was written is of its step, and not of a later one
        one, other = (read_checkpoint(checkpoints(config)[step]) for config in (straight, first))
        assert_identical(one["state_dict"], other["state_dict"], f"step {step}")
        assert_identical(one["optimizer_states"][0]["state"], other["optimizer_states"][0]["state"], f"step {step}")
    resumed = make_run("resumed", trainer={**behind, "max_steps": 6}, ckpt_path=str(checkpoints(first)[3]), **options)
    run_ranks(train_all, 2, tmp_path, [(resumed, None)])
    one, other = (read_checkpoint(checkpoints(config)[6]) for config in (straight, resumed))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "TokenDataModule"):
        assert_identical(one[key], other[key], key)
    assert_identical(one["callbacks"]["ExactResume"], other["callbacks"]["ExactResume"], "random states")
    curves = [all_curves(config)["train/loss"] for config in (straight, resumed)]
    assert_identical(curves[0], curves[1], "losses")


def test_what_is_written_is_what_was_there_when_the_save_began(tmp_path: Path) -> None:
    path, weight, step = tmp_path / "step_00000001.ckpt", torch.arange(6.0), torch.tensor(3.0)
    tensors = {
        weight_entry("w"): weight,
        optimizer_entry(0, "exp_avg", "w"): weight,
        optimizer_entry(0, "step", "w"): step,
    }
    rest = {
        "tied": {"v": "w"},
        "optimizer_states": [{"state": {"w": {"kind": "plain"}}, "param_groups": [{"lr": 0.5}]}],
    }
    save = ShardSave(path, tensors, rest, copy=True)
    weight.zero_()
    step.zero_()
    outcome = save.write()
    assert not path.exists()
    save.finish([outcome])
    whole = read_whole(path)
    assert whole["state_dict"]["w"].tolist() == whole["state_dict"]["v"].tolist() == [0, 1, 2, 3, 4, 5]
    (state,) = whole["optimizer_states"]
    assert state["param_groups"] == [{"lr": 0.5}]
    assert state["state"]["w"]["exp_avg"].tolist() == [0, 1, 2, 3, 4, 5]
    assert state["state"]["w"]["step"].item() == 3
    assert state["state"]["w"]["kind"] == "plain"


class FullDisk(L.Callback):
    """From the second step on rank 1 can write no large file."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 1:
            trainer.strategy.checkpoint_io.join()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def train_on_full_disk(config: PretrainConfig, folder: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*step_00000002.ckpt: File too large; free some space"):
        pretrain(config, callbacks=[FullDisk()])
    (folder / f"{config.run_name}_{os.environ['RANK']}").touch()


@pytest.mark.parametrize("background", [False, True])
def test_a_rank_that_cannot_write_stops_all_and_spoils_nothing(
    background: bool, make_run: MakeRun, tmp_path: Path
) -> None:
    trainer = {**SHARDED, "save_every_n_steps": 1, "async_checkpoints": background, "keep_last_checkpoints": 1}
    config = tiny(make_run, "run", trainer, MUON)
    run_ranks(train_on_full_disk, 2, tmp_path, config, tmp_path)
    assert (tmp_path / "run_0").exists() and (tmp_path / "run_1").exists()
    assert list(checkpoints(config)) == [1]
    assert damage(checkpoints(config)[1]) is None
    leftover = config.folder / "checkpoints" / ".step_00000002.ckpt.partial"
    assert leftover.is_dir()
    shutil.copytree(leftover, leftover.with_name(".step_00000009.ckpt.partial"))
    run_ranks(train_all, 2, tmp_path, [(tiny(make_run, "run", trainer, MUON, ckpt_path="last"), None)])
    assert list(checkpoints(config)) == [STEPS]
    assert list(leftover.parent.iterdir()) == [checkpoints(config)[STEPS]]
