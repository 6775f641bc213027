"""A run that goes on with other settings says so, and its folder tells which steps were made with which."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import MakeRun
from run_files import all_curves, assert_equal_weights, assert_identical, checkpoints
from stage_runs import make_stage, run_stage
from test_bad_input import refused
from test_bad_run_folder import At, divide
from test_resume import final_state

from lit_llm.cli.parsing import option_keys
from lit_llm.config import DPOConfig, PPOConfig, PretrainConfig, RewardConfig, SFTConfig, to_plain
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint_files import saved_checkpoints
from lit_llm.training.run_record import _LEARNED_OF_TRAINER, _NOT_LEARNED, differences

CONSTANT = {"schedule": {"name": "constant", "warmup_steps": 0}}
FEW = {"max_steps": 3, "val_every_n_steps": None, "save_every_n_steps": 1, "keep_last_checkpoints": 9}


def saved(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_what_is_learned_is_not_changed_in_silence(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(**CONSTANT, trainer=FEW)
    pretrain(first)
    before = (first.folder / "config.yaml").read_bytes()
    capsys.readouterr()
    changed: dict[str, Any] = {
        "optimizer": {"learning_rate": 1e-4, "beta2": 0.9, "weight_decay": 0.3},
        "data": {"batch_size": 8, "validation_windows": 4},
        "trainer": {**FEW, "max_steps": 5, "gradient_clip_val": 0.5},
        "schedule": {"name": "constant", "warmup_steps": 2},
    }
    learned = {
        "optimizer.learning_rate": "from 0.003 to 0.0001",
        "optimizer.beta2": "from 0.95 to 0.9",
        "optimizer.weight_decay": "from 0.1 to 0.3",
        "data.batch_size": "from 4 to 8",
        "trainer.gradient_clip_val": "from 1.0 to 0.5",
        "schedule.warmup_steps": "from 0 to 2",
    }
    other = make_run(**changed, ckpt_path="last")
    newest = str(first.folder / "checkpoints" / "step_00000003.ckpt")
    named = [f"{name} ({what})" for name, what in learned.items()]
    message = refused(lambda: pretrain(other), newest, "--resume_changed true", *named)
    assert "validation_windows" not in message
    lines = capsys.readouterr().err.splitlines()
    assert {f"changed: {each}" for each in named} <= set(lines)
    assert "differs: data.validation_windows (from 8 to 4)" in lines
    # the last ones: trainer.max_steps shifts no rate that the run has had, but here the warm-up does
    assert "changed: trainer.max_steps (from 3 to 5)" in lines
    assert (first.folder / "config.yaml").read_bytes() == before
    assert [path.name for path in first.folder.glob("config*.yaml")] == ["config.yaml"]

    pretrain(replace(other, resume_changed=True))
    curves = all_curves(first)
    assert [rate for _, rate in curves["learning_rate/adamw_decay"]] == pytest.approx([3e-3] * 3 + [1e-4] * 2)
    state = final_state(first)
    for group in state["optimizer_states"][0]["param_groups"]:
        assert tuple(group["betas"]) == (0.9, 0.9)
        assert group["weight_decay"] == (0.3 if group["name"] == "adamw_decay" else 0.0)
    assert state["TokenDataModule"]["samples_consumed"] == 3 * 4 + 2 * 8
    assert saved(first.folder / "config.yaml") == to_plain(replace(other, ckpt_path=None, resume_changed=False))
    assert saved(first.folder / "config.1.yaml") == yaml.safe_load(before)
    assert (first.folder / "config.1.yaml").read_text().startswith("# held from step 0 to step 3\n")
    assert (first.folder / "config.yaml").read_text().startswith("# holds from step 3 on; before it config.1.yaml\n")
    # a third part: each is kept, and its steps
    third = make_run(**{**changed, "optimizer": {"learning_rate": 5e-4}}, ckpt_path="last", resume_changed=True)
    third.trainer.max_steps = 6
    pretrain(third)
    assert (first.folder / "config.2.yaml").read_text().startswith("# held from step 3 to step 5\n")
    assert saved(first.folder / "config.2.yaml")["optimizer"]["learning_rate"] == 1e-4
    assert saved(first.folder / "config.yaml")["optimizer"]["learning_rate"] == 5e-4


def test_the_new_settings_are_those_that_the_optimizer_steps_with(make_run: MakeRun) -> None:
    """The first step after the resume is one of an optimizer that was made with the new options."""
    first = make_run(**CONSTANT, trainer={**FEW, "max_steps": 2})
    pretrain(first)
    faster = {"optimizer": {"learning_rate": 0.02, "beta1": 0.5}, "trainer": FEW}
    pretrain(make_run(**CONSTANT, **faster, ckpt_path="last", resume_changed=True))
    old, new = (torch.load(checkpoints(first)[step], weights_only=True) for step in (2, 3))
    same = make_run("same", **CONSTANT, trainer=FEW)
    pretrain(same)
    plain = torch.load(checkpoints(same)[3], weights_only=True)
    name = "model.blocks.0.attention.q_proj.weight"
    (before, after, usual), (moment, then, mean) = (
        [state["state_dict"][name] for state in (old, new, plain)],
        [state["optimizer_states"][0]["state"][name]["exp_avg"] for state in (old, new, plain)],
    )
    gradient = (mean - 0.9 * moment) / 0.1
    torch.testing.assert_close(then, 0.5 * moment + 0.5 * gradient, rtol=1e-3, atol=1e-7)
    square = new["optimizer_states"][0]["state"][name]["exp_avg_sq"]
    step = (then / (1 - 0.5**3)) / ((square / (1 - 0.95**3)).sqrt() + 1e-8)
    torch.testing.assert_close(after, before * (1 - 0.02 * 0.1) - 0.02 * step, rtol=1e-4, atol=1e-6)
    assert (usual - before).abs().max() < (after - before).abs().max() / 3


def test_what_is_not_learned_is_listed_and_goes_on(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    straight, first = (make_run(name, **CONSTANT, trainer=FEW) for name in ("straight", "run"))
    pretrain(straight)
    with pytest.raises(ZeroDivisionError):
        pretrain(first, callbacks=[At(2, divide)])
    capsys.readouterr()
    trainer = {**FEW, "max_steps": 3, "log_every_n_steps": 2, "timeout_minutes": 5.0}
    other = make_run(**CONSTANT, trainer=trainer, data={"num_workers": 1}, ckpt_path="last")
    pretrain(other)
    errors = capsys.readouterr().err
    for line in (
        "differs: trainer.log_every_n_steps (from 1 to 2)",
        "differs: trainer.timeout_minutes (from 30.0 to 5.0)",
        "differs: data.num_workers (from 0 to 1)",
    ):
        assert f"{line}\n" in errors
    assert "changed:" not in errors
    assert_equal_weights(straight, other)
    assert saved(first.folder / "config.1.yaml")["trainer"]["timeout_minutes"] == 30.0
    assert saved(first.folder / "config.yaml")["trainer"]["timeout_minutes"] == 5.0


@pytest.mark.parametrize(("before", "after", "batch"), [(None, 1, 3), (1, 2, 13)])
def test_the_steps_are_the_same_in_other_micro_batches(
    before: int | None, after: int | None, batch: int, make_run: MakeRun
) -> None:
    """Lightning counts micro-batches, and would end a step in the midst of one."""
    trainer = {**FEW, "max_steps": 7, "val_every_n_steps": 2, "log_every_n_steps": 1}
    straight = make_run("straight", **CONSTANT, trainer=trainer)
    pretrain(straight)
    with pytest.raises(ZeroDivisionError):
        pretrain(
            make_run(**CONSTANT, trainer=trainer, data={"micro_batch_size": before}), callbacks=[At(batch, divide)]
        )
    other = make_run(**CONSTANT, trainer=trainer, data={"micro_batch_size": after}, ckpt_path="last")
    pretrain(other)
    expected, found = all_curves(straight), all_curves(other)
    assert found["throughput/tokens"] == expected["throughput/tokens"]
    for name in ("train/loss", "val/loss"):
        assert [step for step, _ in found[name]] == [step for step, _ in expected[name]]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in expected[name]], rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "steps", "learned"),
    [
        ({"name": "constant", "warmup_steps": 2}, (4, 6), False),
        ({"name": "cosine", "warmup_steps": 2}, (4, 6), True),
        ({"name": "linear", "warmup_steps": 0}, (4, 6), True),
        ({"name": "wsd", "warmup_steps": 1, "decay_fraction": 0.5}, (4, 6), True),
        ({"name": "wsd", "warmup_steps": 1, "decay_fraction": 0.2}, (40, 60), False),
    ],
)
def test_a_longer_run_is_another_one_where_its_rates_would_have_been_others(
    schedule: dict[str, Any], steps: tuple[int, int], learned: bool, make_run: MakeRun
) -> None:
    """Four steps are done. As long as they had the rates of the longer run, the run goes on as that run."""
    first, longer = (make_run(schedule=schedule, trainer={"max_steps": count}) for count in steps)
    (difference,) = differences(to_plain(first), longer, 4)
    assert (difference.name, difference.old, difference.new) == ("trainer.max_steps", *steps)
    assert difference.learned == learned


def test_a_run_that_is_made_longer_is_the_longer_run(make_run: MakeRun) -> None:
    """The rate that the checkpoint brings is that of a run which had ended; the new one is not that low."""
    schedule = {"name": "wsd", "warmup_steps": 1, "decay_fraction": 0.4, "min_ratio": 0.0}
    straight = make_run("straight", schedule=schedule, trainer={**FEW, "max_steps": 9})
    pretrain(straight)
    first = make_run("first", schedule=schedule, trainer={**FEW, "max_steps": 5})
    with pytest.raises(ZeroDivisionError):
        pretrain(first, callbacks=[At(4, divide)])
    longer = make_run("first", schedule=schedule, trainer={**FEW, "max_steps": 9}, ckpt_path="last")
    pretrain(longer)
    assert_identical(final_state(straight)["state_dict"], final_state(longer)["state_dict"])
    assert_identical(*(all_curves(config)["learning_rate/adamw_decay"] for config in (straight, longer)))


def test_going_back_leaves_no_checkpoint_of_the_other_way(make_run: MakeRun) -> None:
    first = make_run(**CONSTANT, trainer=FEW)
    pretrain(first)
    back = make_run(
        **CONSTANT,
        trainer=FEW,
        optimizer={"learning_rate": 1e-4},
        ckpt_path=str(checkpoints(first)[1]),
        resume_changed=True,
    )
    with pytest.raises(ZeroDivisionError):
        pretrain(back, callbacks=[At(2, divide)])
    folder = first.folder / "checkpoints"
    assert list(saved_checkpoints(folder)) == [1, 2]
    kept = sorted(path.name for path in folder.glob("*.abandoned"))
    assert kept == ["step_00000002.ckpt.abandoned", "step_00000003.ckpt.abandoned"]
    pretrain(replace(back, ckpt_path="last", resume_changed=False))
    assert final_state(back)["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-4


def test_a_shorter_run_goes_back(make_run: MakeRun) -> None:
    first = make_run(**CONSTANT, trainer={**FEW, "max_steps": 5})
    pretrain(first)
    made = checkpoints(first)
    shorter = {"max_steps": 3, "keep_last_checkpoints": 1, "keep_best_checkpoint": False}
    beyond = make_run(**CONSTANT, trainer={**FEW, **shorter}, ckpt_path=str(made[5]))
    refused(lambda: pretrain(beyond), "step_00000005.ckpt is of step 5, after trainer.max_steps 3")
    pretrain(replace(beyond, ckpt_path=str(made[2])))
    assert list(saved_checkpoints(first.folder / "checkpoints")) == [3]
    kept = sorted(path.name for path in (first.folder / "checkpoints").glob("*.abandoned"))
    assert kept == ["step_00000004.ckpt.abandoned", "step_00000005.ckpt.abandoned"]


def test_a_change_that_made_no_step_leaves_no_record(make_run: MakeRun) -> None:
    """Killed before its first checkpoint: what goes on is what the checkpoint and the steps to come are made with."""
    trainer = {**FEW, "max_steps": 6}

    def run(rate: float, stop: int | None, **more: Any) -> PretrainConfig:
        config = make_run(**CONSTANT, trainer=trainer, optimizer={"learning_rate": rate}, **more)
        if stop is None:
            pretrain(config)
            return config
        with pytest.raises(ZeroDivisionError):
            pretrain(config, callbacks=[At(stop, divide)])
        return config

    def records() -> dict[str, tuple[str, float]]:
        texts = {path.name: path.read_text() for path in sorted(folder.glob("config*.yaml"))}
        return {
            name: (text.partition("\n")[0], yaml.safe_load(text)["optimizer"]["learning_rate"])
            for name, text in texts.items()
        }

    folder = run(1e-3, 3).folder  # which keeps two steps
    first = (folder / "config.yaml").read_bytes()
    again: dict[str, Any] = {"ckpt_path": "last", "resume_changed": True}
    kept = ("# held from step 0 to step 2", 1e-3)
    holds = "# holds from step 2 on; before it config.1.yaml"
    run(2e-3, 1, **again)
    assert records() == {"config.1.yaml": kept, "config.yaml": (holds, 2e-3)}
    run(3e-3, 1, **again)  # another change instead
    assert records() == {"config.1.yaml": kept, "config.yaml": (holds, 3e-3)}
    run(1e-3, 1, ckpt_path="last")  # and none at all
    assert records().keys() == {"config.yaml"} and (folder / "config.yaml").read_bytes() == first
    run(2e-3, 2, **again)  # one step is kept: the record stays
    run(3e-3, 1, **again)
    then = ("# held from step 2 to step 3", 2e-3)
    third = ("# holds from step 3 on; before it config.2.yaml", 3e-3)
    assert records() == {"config.1.yaml": kept, "config.2.yaml": then, "config.yaml": third}
    run(2e-3, 2, ckpt_path="last")  # step 4 is made with what step 3 was
    assert records() == {"config.1.yaml": kept, "config.yaml": (holds, 2e-3)}
    # back to the first way, which the steps to come belong to; the other one has had steps
    run(1e-3, None, ckpt_path=str(folder / "checkpoints" / "step_00000001.ckpt"))
    assert records() == {
        "config.2.yaml": ("# held from step 2, from where the run went back to step 1", 2e-3),
        "config.yaml": (yaml.safe_dump({"run_name": "run"}).strip(), 1e-3),
    }


@pytest.mark.parametrize(
    ("stage", "change", "name"),
    [
        ("sft", {"neftune_alpha": 5.0}, "neftune_alpha (from 0.0 to 5.0)"),
        ("reward", {"centring": 0.5}, "centring (from 0.01 to 0.5)"),
        ("dpo", {"beta": 0.5}, "beta (from 0.1 to 0.5)"),
        ("ppo", {"kl_coefficient": 0.5}, "kl_coefficient (from 0.05 to 0.5)"),
    ],
)
def test_every_stage_compares(stage: str, change: dict[str, Any], name: str, tmp_path: Path) -> None:
    few = {"max_steps": 1, "val_every_n_steps": None, "save_every_n_steps": None}
    options: dict[str, Any] = {"trainer": few, "data": {"batch_size": 2, "validation_rows": 2}, **CONSTANT}
    make: Callable[..., Any] = lambda **more: make_stage(stage, tmp_path, **{**options, **more})  # noqa: E731
    first = make()
    run_stage(first)
    longer = {"trainer": {**few, "max_steps": 2}, "ckpt_path": "last"}
    message = refused(lambda: run_stage(make(**change, **longer)), name, "--resume_changed true")
    assert "max_steps" not in message
    run_stage(make(**change, **longer, resume_changed=True))
    (key,) = change
    assert saved(first.folder / "config.yaml")[key] == change[key]
    assert saved(first.folder / "config.1.yaml")[key] != change[key]


def test_the_lists_are_of_settings_that_there_are() -> None:
    kinds = (PretrainConfig, SFTConfig, RewardConfig, DPOConfig, PPOConfig)
    names = {name for kind in kinds for name in option_keys(kind)}
    assert names >= _NOT_LEARNED | _LEARNED_OF_TRAINER
    for kind in kinds:
        for group in dataclasses.fields(kind):
            assert group.name not in ("model", "optimizer", "lora", "seed") or group.name not in _NOT_LEARNED


def test_the_flag_says_nothing_alone(make_run: MakeRun) -> None:
    refused(lambda: make_run(resume_changed=True), "resume_changed has no effect", "ckpt_path")
