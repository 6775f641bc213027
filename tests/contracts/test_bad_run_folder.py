"""What is wrong with a run folder or a checkpoint is said in one line, and nothing that was already written is lost."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import MakeRun
from run_files import all_curves, assert_identical, checkpoints, largest_file
from stage_runs import make_stage
from test_bad_input import contents, refused
from test_resume import final_state

from lit_llm.cli.commands import COMMANDS
from lit_llm.config import ExportConfig
from lit_llm.stages.export import export
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint import saved_checkpoints
from lit_llm.training.run_folder import run_folder

# run folders


def test_a_used_run_folder(make_run: MakeRun) -> None:
    finished = make_run("finished", trainer={"max_steps": 2})
    pretrain(finished)
    before = contents(finished.folder)
    ways = ("--overwrite true", "--run_name", "--ckpt_path last")
    refused(lambda: pretrain(make_run("finished")), "already holds a finished run at step 2", *ways)
    half = make_run("half")
    with pytest.raises(ZeroDivisionError):
        pretrain(half, callbacks=[At(5, divide)])
    refused(lambda: pretrain(make_run("half")), "already holds a half-finished run at step 4", *ways)
    other = make_run("finished", ckpt_path=str(checkpoints(half)[4]))
    refused(lambda: pretrain(other), "already holds a finished run at step 2")  # which would be mixed with it
    assert contents(finished.folder) == before


@pytest.mark.parametrize("left", ["nothing", "a half-written checkpoint", "one set aside", "a model"])
def test_a_run_that_failed_before_its_first_checkpoint(
    left: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command begins it again; what took time to make is kept."""
    config = make_run(trainer={"max_steps": 2})
    with pytest.raises(ZeroDivisionError):
        pretrain(config, callbacks=[At(2, divide)])  # after the first step's curves
    checkpoints, notes = config.folder / "checkpoints", config.folder / "notes.txt"
    checkpoints.mkdir(exist_ok=True)
    notes.write_text("mine")
    costly = {
        "nothing": None,
        "a half-written checkpoint": None,
        "one set aside": checkpoints / "step_00000002.ckpt.abandoned",
        "a model": config.folder / "model",
    }[left]
    if left == "a half-written checkpoint":
        (checkpoints / ".step_00000002.ckpt.partial").write_bytes(b"half")
    capsys.readouterr()
    if costly is not None:
        costly.mkdir()
        refused(lambda: pretrain(make_run(trainer={"max_steps": 2})), "already holds a", "--overwrite true")
        assert costly.exists() and (config.folder / "config.yaml").exists()
        return
    pretrain(make_run(trainer={"max_steps": 2}, seed=5))
    said = capsys.readouterr().err
    assert f"{config.folder} holds a run that ended before its first checkpoint; it begins again\n" in said
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000002.ckpt"] and notes.read_text() == "mine"
    # the curves are those of this run alone
    assert [step for step, _ in all_curves(config)["train/loss"]] == [1, 2]
    assert yaml.safe_load((config.folder / "config.yaml").read_text())["seed"] == 5


def test_overwrite_replaces_the_run_and_nothing_else(make_run: MakeRun) -> None:
    first = make_run(trainer={"max_steps": 6})
    pretrain(first)
    (first.folder / "notes.txt").write_text("mine")
    (first.folder / "config_mine.yaml").write_text("trainer:\n  max_steps: 3\n")
    (first.folder / "config.1.yaml").write_text("# held from step 0 to step 2\n")
    (first.folder / "plots").mkdir()
    (first.folder / "plots" / "a.png").write_bytes(b"picture")
    before = contents(first.folder)
    impossible = make_run(trainer={"max_steps": 3, "devices": 3}, overwrite=True)
    refused(lambda: pretrain(impossible), "batch_size 4")  # said once the run has its folder
    own = make_run(trainer={"max_steps": 3}, overwrite=True, init_from=str(first.folder / "model"))
    refused(lambda: pretrain(own), f"init_from {own.init_from} is in {first.folder}, which --overwrite true deletes")
    assert contents(first.folder) == before
    second = make_run(trainer={"max_steps": 3, "save_every_n_steps": None}, overwrite=True)
    pretrain(second)
    assert (first.folder / "notes.txt").read_text() == "mine"
    assert (first.folder / "plots" / "a.png").read_bytes() == b"picture"
    assert [path.name for path in sorted(first.folder.glob("config*"))] == ["config.yaml", "config_mine.yaml"]
    assert list(saved_checkpoints(second.folder / "checkpoints")) == [3]
    saved = yaml.safe_load((second.folder / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 3 and saved["overwrite"] is False
    assert not (first.folder / ".replaced").exists()


def test_what_cannot_be_deleted_of_an_earlier_run_does_not_cost_the_new_one(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Like a file that TensorBoard has open on NFS."""
    config, unlink = make_run(trainer={"max_steps": 2}), os.unlink
    pretrain(config)
    (config.folder / "tensorboard" / ".nfs0001").touch()

    def in_use(path: Any, **options: Any) -> None:
        if Path(path).name == ".nfs0001":
            raise PermissionError
        unlink(path, **options)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", in_use)
        pretrain(make_run(trainer={"max_steps": 3}, overwrite=True))
    (left,) = config.folder.glob(".deleted-*")
    assert f"warning: cannot delete {left}, which is left of the run before\n" in capsys.readouterr().err
    assert list(checkpoints(config)) == [2, 3] and (config.folder / "report.md").exists()
    before = contents(config.folder)
    refused(lambda: pretrain(make_run()), "already holds a finished run at step 3")
    assert contents(config.folder).items() < before.items() and not left.exists()  # a later start has deleted it


def test_an_overwrite_that_stops_halfway_leaves_the_run_as_it_was(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rename = make_run(trainer={"max_steps": 2}), Path.rename
    pretrain(config)
    before = contents(config.folder)

    def of_another_user(path: Path, target: Path) -> Any:
        if path == config.folder / "tensorboard":
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", of_another_user)
        said = f"cannot move {config.folder / 'tensorboard'} into {config.folder / '.replaced'} (Permission denied)"
        refused(lambda: pretrain(make_run(overwrite=True)), said, "another --run_name")
    assert contents(config.folder) == before
    # killed while it sets the run aside, or puts it back
    replaced = config.folder / ".replaced"
    replaced.mkdir()
    for name in ("model", "config.yaml", "report.md"):
        (config.folder / name).rename(replaced / name)
    refused(lambda: pretrain(make_run()), "already holds a finished run at step 2")
    assert contents(config.folder) == before
    # killed before its first step
    killed = make_run("killed", trainer={"max_steps": 3}, ckpt_path="last", resume_changed=True)
    with run_folder(make_run(overwrite=True)):
        (config.folder / "config.yaml").write_text("of the run that has not begun")
        shutil.copytree(config.folder, killed.folder, ignore=shutil.ignore_patterns(".lock"))
    assert contents(config.folder) == before
    pretrain(killed)
    assert list(checkpoints(killed)) == [2, 3] and not (killed.folder / ".replaced").exists()


def test_last_without_a_checkpoint(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that restarts a run says "last, or begin"; a typing error in run_name is an error."""
    config = make_run(ckpt_path="last", trainer={"max_steps": 2})
    refused(lambda: pretrain(config), "there is nothing to resume", "checkpoint", "--ckpt_path last_or_begin")
    assert not config.folder.exists()
    config.ckpt_path = "last_or_begin"
    with pytest.raises(ZeroDivisionError):
        pretrain(config, callbacks=[At(1, divide)])
    config.ckpt_path = "last"
    refused(lambda: pretrain(config), "there is nothing to resume", "--ckpt_path last_or_begin")
    config.ckpt_path = "last_or_begin"
    capsys.readouterr()
    pretrain(config)
    assert final_state(config)["global_step"] == 2
    assert f"starting {config.folder}\n" in capsys.readouterr().err
    longer = make_run(ckpt_path="last_or_begin", trainer={"max_steps": 3}, resume_changed=True)
    pretrain(longer)
    newest = config.folder / "checkpoints" / "step_00000002.ckpt"
    assert f"resumed at step 2 from {newest}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "validation"),
    [("pretrain", False), ("sft", False), ("reward", False), ("dpo", False), ("ppo", False), ("sft", True)],
)
def test_a_finished_run_has_its_last_step_and_is_left_alone(
    stage: str, validation: bool, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shorter than `save_every_n_steps`, and where there may be nothing to validate on."""
    trainer = {"max_steps": 1, "save_every_n_steps": 250, "val_every_n_steps": 1}
    data = {"batch_size": 2, **({"validation_rows": 2} if validation else {"validation_fraction": 0.0})}

    def run(**more: Any) -> Any:
        schedule = {"name": "constant", "warmup_steps": 0}
        if stage == "pretrain":
            config = make_run(trainer=trainer, schedule=schedule, **more)
            shutil.copytree(config.data.paths[0], tmp_path / "shards", dirs_exist_ok=True)
            if not validation:
                shutil.rmtree(tmp_path / "shards" / "validation", ignore_errors=True)
            config.data.paths = [str(tmp_path / "shards")]
        else:
            config = make_stage(stage, tmp_path, trainer=trainer, data=data, schedule=schedule, **more)
        COMMANDS[stage].run(config)
        return config

    config = run()
    assert list(saved_checkpoints(config.folder / "checkpoints")) == [1]
    export(ExportConfig(str(config.folder), str(tmp_path / "exported")))
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    before = contents(config.folder)
    assert "model folder" in capsys.readouterr().out
    for form in ("last", "last_or_begin"):
        run(ckpt_path=form, optimizer={"learning_rate": 1e-5})
        said = capsys.readouterr()
        line = f"{config.folder} is finished at step 1; a larger --trainer.max_steps goes on, "
        line += "with --resume_changed true where the schedule has decayed"
        assert [each for each in said.err.splitlines() if "is finished at" in each or "resumed" in each] == [line]
        assert contents(config.folder) == before and "model folder" not in said.out
    # without what comes after the last step it is not finished
    shutil.rmtree(config.folder / "model")
    run(ckpt_path="last")
    assert "is finished at" not in capsys.readouterr().err
    assert (config.folder / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("options", [{"overwrite": True}, {"ckpt_path": "last"}, {"ckpt_path": "last_or_begin"}, {}])
def test_two_runs_in_one_folder(options: dict[str, Any], make_run: MakeRun) -> None:
    few = {"max_steps": 2, "val_every_n_steps": None, "save_every_n_steps": 1}
    straight, config = make_run("straight", trainer=few), make_run(trainer=few)
    pretrain(straight)
    messages = []

    def start_another(module: L.LightningModule) -> None:
        before = contents(config.folder)
        messages.append(refused(lambda: pretrain(make_run(**options)), f"{config.folder} is in use by process"))
        assert contents(config.folder) == before

    pretrain(config, callbacks=[At(2, start_another)])
    assert str(os.getpid()) in messages[0] and "another --run_name" in messages[0]
    assert_identical(final_state(config)["state_dict"], final_state(straight)["state_dict"])
    assert not (config.folder / ".lock").exists()


# checkpoints


class At(L.Callback):
    """Does something at the start of the n-th micro-batch of this process."""

    def __init__(self, number: int, what: Callable[[L.LightningModule], Any]) -> None:
        self.number, self.what, self.seen = number, what, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen += 1
        if self.seen == self.number:
            self.what(pl_module)


def divide(module: L.LightningModule) -> None:
    """A bug."""
    raise ZeroDivisionError


def test_a_missing_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(ckpt_path=str(tmp_path / "step_00000009.ckpt"))
    refused(lambda: pretrain(config), "there is no checkpoint", "step_00000009.ckpt", "--ckpt_path last")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    damage: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = make_run("straight")
    pretrain(straight)
    config = make_run("damaged")
    with pytest.raises(ZeroDivisionError):
        pretrain(config, callbacks=[At(5, divide)])
    older, newest = (config.folder / "checkpoints" / f"step_0000000{step}.ckpt" for step in (2, 4))
    go_on = "last"
    if damage == "other":
        torch.save({"weights": torch.ones(3)}, newest)
        refused(lambda: pretrain(make_run("damaged", ckpt_path="last")), str(newest))
        go_on = str(older)
    else:
        whole = newest.read_bytes()
        newest.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not a checkpoint", "empty": b""}[damage])
        refused(lambda: pretrain(make_run("damaged", ckpt_path=str(newest))), str(newest))
    resumed = make_run("damaged", ckpt_path=go_on)
    pretrain(resumed)
    assert (f"warning: {newest} is damaged (" in capsys.readouterr().err) == (damage != "other")
    assert_identical(final_state(resumed)["state_dict"], final_state(straight)["state_dict"])


def test_a_checkpoint_of_another_model(make_run: MakeRun) -> None:
    config = make_run(trainer={"max_steps": 2})
    pretrain(config)
    before = {name: content for name, content in contents(config.folder).items() if "tensorboard" not in name}
    wider = make_run(model={"intermediate_size": 96, "qk_norm": True}, ckpt_path="last")
    refused(
        lambda: pretrain(wider),
        "the checkpoint is of another model",
        "intermediate_size 64 (this run: 96)",
        "qk_norm False (this run: True)",
    )
    # config.yaml is still that of the run
    after = contents(config.folder)
    assert len(before) > 5 and {name: after[name] for name in before} == before


def test_a_checkpoint_of_other_data(make_run: MakeRun) -> None:
    pretrain(make_run(trainer={"max_steps": 2}))
    refused(
        lambda: pretrain(make_run(data={"sequence_length": 16}, ckpt_path="last")),
        "data.sequence_length (from 32 to 16) changed",
        "init_from",
    )


def test_a_full_disk_while_a_checkpoint_is_written(make_run: MakeRun) -> None:
    straight = make_run("straight")
    pretrain(straight)
    config = make_run("full")
    with largest_file(100_000) as limit:
        message = refused(lambda: pretrain(config, callbacks=[At(3, lambda module: limit())]), "cannot write")
    folder = config.folder / "checkpoints"
    assert str(folder / "step_00000004.ckpt") in message and "earlier checkpoints are intact" in message
    assert [path.name for path in folder.iterdir()] == ["step_00000002.ckpt"]
    assert (folder / "step_00000002.ckpt").stat().st_size > 100_000
    resumed = make_run("full", ckpt_path="last")
    pretrain(resumed)
    assert_identical(final_state(resumed)["state_dict"], final_state(straight)["state_dict"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB for the curves of the run "run"."""
    folder = tmp_path / "run" / "tensorboard"
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_run_on_a_full_disk_reaches_its_checkpoints(
    small_disk: Path, make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    # the file grows to the end of its page before it meets the full disk
    trainer = {"max_steps": 16, "save_every_n_steps": 4, "val_every_n_steps": None}
    straight, config = make_run("straight", trainer=trainer), make_run("run", trainer=trainer)
    pretrain(straight)

    def fill() -> None:
        with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))

    capfd.readouterr()
    pretrain(config, callbacks=[At(3, lambda module: fill())])
    errors = capfd.readouterr().err
    assert errors.count("warning") == 1 and "No space left on device; the run goes on without them" in errors
    assert "Traceback" not in errors
    assert list(checkpoints(config)) == list(checkpoints(straight))
    assert_identical(final_state(config)["state_dict"], final_state(straight)["state_dict"])
    assert (config.folder / "model" / "model.safetensors").exists()
    # what was written before is there, and a run that goes on writes again
    (small_disk / "filler").unlink()
    assert [step for step, _ in all_curves(config)["train/loss"]][:2] == [1, 2]
    pretrain(make_run("run", trainer=trainer, ckpt_path=str(checkpoints(config)[12])))
    assert {13, 14, 15, 16} <= {step for step, _ in all_curves(config)["train/loss"]}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("micro", [None, 2])
def test_a_loss_that_is_not_finite_stops_before_the_update(value: float, micro: int | None, make_run: MakeRun) -> None:
    """One number of a norm goes bad before step 4; the others must stay what they were."""
    kept: dict[str, torch.Tensor] = {}
    modules = []

    def spoil(module: L.LightningModule) -> None:
        kept.update({name: tensor.clone() for name, tensor in module.state_dict().items()})
        modules.append(module)
        with torch.no_grad():
            module.model.final_norm.weight[0] = value

    data = {"micro_batch_size": micro}
    config = make_run(data=data, trainer={"save_every_n_steps": 1, "keep_last_checkpoints": 9})
    first_of_step_4 = 3 * (4 // (micro or 4)) + 1
    refused(
        lambda: pretrain(config, callbacks=[At(first_of_step_4, spoil)]),
        "of step 4 is not finite",
        "optimizer.learning_rate",
    )
    now = modules[0].state_dict()
    changed = [name for name in kept if not torch.equal(now[name], kept[name])]
    assert changed == ["model.final_norm.weight"]
    assert list(saved_checkpoints(config.folder / "checkpoints")) == [1, 2, 3]
    weights = final_state(config)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    # and the run goes on from there as if nothing had been
    straight = make_run("straight", data=data)
    pretrain(straight)
    resumed = make_run(data=data, ckpt_path="last")
    pretrain(resumed)
    assert_identical(final_state(resumed)["state_dict"], final_state(straight)["state_dict"])
