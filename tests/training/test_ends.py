"""Ends of a run before its last step: tokens, time and patience."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from conftest import MakeRun
from run_files import all_curves, assert_identical, checkpoints, last_state
from stage_runs import make_stage, run_stage

from lit_llm.config import RunConfig, TrainerConfig, UserError
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.ends import EndOfRun

RARELY = {"val_every_n_steps": None, "save_every_n_steps": None, "log_every_n_steps": 10}
# a rate far too high, so that validation gets worse after a few steps
DIVERGING = {
    "optimizer": {"learning_rate": 10.0},
    "schedule": {"name": "constant", "warmup_steps": 0},
    "data": {"validation_windows": 2},
}


class Crash(L.Callback):
    """Dies at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        if trainer.global_step + 1 == self.step:
            raise RuntimeError("the power is gone")


class Keep(L.Callback):
    """Keeps the callback that is looked at."""

    def on_train_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        self.end = next(each for each in trainer.callbacks if isinstance(each, EndOfRun))


def steps(config: RunConfig, name: str) -> list[int]:
    return [step for step, _ in all_curves(config).get(name, [])]


# tokens


def test_max_tokens_of_pretraining_sets_the_steps_and_the_schedule(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step reads 4 x 32 tokens; 5 of them fit into 700."""
    config = make_run(trainer={"max_tokens": 700, **RARELY}, schedule={"name": "linear", "warmup_steps": 2})
    result = pretrain(config)
    assert (result.steps, result.tokens, result.ended_early) == (5, 640, None)
    assert config.trainer.max_steps == last_state(config)["global_step"] == 5
    rates = all_curves(make_and_run(make_run, max_steps=5))["learning_rate/adamw_decay"]
    assert all_curves(config)["learning_rate/adamw_decay"] == rates and rates[-1][1] == pytest.approx(3e-3 * 0.4)
    assert "at trainer.max_tokens 700, which gives 5 steps\n" in capsys.readouterr().err
    saved = yaml.safe_load((config.folder / "config.yaml").read_text())["trainer"]
    assert (saved["max_tokens"], saved["max_steps"]) == (700, 5)
    # a finished run names the option that makes it longer
    pretrain(make_run(trainer={"max_tokens": 700, **RARELY}, schedule={"name": "linear"}, ckpt_path="last"))
    assert "is finished at step 5; a larger --trainer.max_tokens goes on" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"schedule.warmup_steps 3 is more than trainer.max_steps 1"):
        pretrain(make_run("short", trainer={"max_tokens": 1}, schedule={"warmup_steps": 3}))


def make_and_run(make_run: MakeRun, **trainer: Any) -> RunConfig:
    config = make_run("other", trainer={**RARELY, **trainer}, schedule={"name": "linear", "warmup_steps": 2})
    pretrain(config)
    return config


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_max_tokens_of_rows_is_met_on_average(stage: str, tmp_path: Path) -> None:
    config = make_stage(stage, tmp_path, trainer={"max_tokens": 3000, **RARELY}, sample_prompts=0)
    result = run_stage(config)
    assert result.steps == config.trainer.max_steps > 1
    # rows differ in length; the packs of sft are not quite full
    one_step = result.tokens / result.steps
    assert 3000 - 1.5 * one_step <= result.tokens <= 1.2 * 3000


def test_two_lengths_of_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"epochs and trainer.max_tokens both"):
        make_stage("sft", tmp_path, epochs=1.0, trainer={"max_tokens": 100})
    with pytest.raises(UserError, match=r"trainer.max_tokens cannot be turned into steps before answers"):
        make_stage("ppo", tmp_path, trainer={"max_tokens": 100})


# time


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(30, 1800.0), ("1.5", 90.0), ("00:30:00", 1800.0), ("12:00:05", 43205.0), ("01:00:00:01", 86401.0), (None, None)],
)
def test_forms_of_max_time(given: Any, seconds: float | None) -> None:
    assert TrainerConfig(max_time=given).max_seconds == seconds


@pytest.mark.parametrize("given", ["soon", 0, "-5", "00:00:00", "10:00", "1:2:3:4:5", "00:-1:00", "nan", "inf"])
def test_what_is_no_time(given: Any) -> None:
    with pytest.raises(UserError, match=r"trainer.max_time is .*HH:MM:SS"):
        TrainerConfig(max_time=given)


def test_a_time_that_yaml_has_taken_for_a_number(tmp_path: Path) -> None:
    from lit_llm.cli.parsing import parse

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_time: 12:30:00\n")
    with pytest.raises(UserError, match="numbers with colons count in sixties"):
        parse(TrainerConfig, ["--config", str(recipe)])
    recipe.write_text("max_time: '12:30:00'\n")
    assert parse(TrainerConfig, ["--config", str(recipe)]).max_seconds == 45000
    assert parse(TrainerConfig, ["--max_time", "12:30:00"]).max_seconds == 45000


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_max_time_ends_a_run_well_and_the_next_start_goes_on(
    micro_batch_size: int | None, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A time that is over at once leaves one step to each start."""
    options = {"data": {"micro_batch_size": micro_batch_size}, "model": {"dropout": 0.1}}
    straight = make_run("straight", trainer={"max_steps": 3, **RARELY}, **options)
    pretrain(straight)
    limited = {"max_steps": 3, **RARELY, "max_time": 1e-9}
    config = make_run("run", trainer=limited, **options)
    result = pretrain(config)
    assert result.steps == 1 and list(checkpoints(config)) == [1]
    assert "trainer.max_time 1e-09 is over" in str(result.ended_early)
    assert result.tokens_per_second > 0 and (result.model_folder / "model.safetensors").is_file()
    report = (config.folder / "report.md").read_text()
    assert "1 steps of 4 rows, 128 tokens" in report and f"| ended early | {result.ended_early} |" in report
    # shorter than log_every_n_steps, and still with a point of each curve
    for name in ("train/loss", "train/gradient_norm", "throughput/tokens_per_second", "val/loss"):
        assert steps(config, name) == [1], name
    said = capsys.readouterr().err
    assert "the learning rate is scheduled for all 3 steps" in said
    assert f"ended at step 1 of 3: {result.ended_early}\n" in said
    for step in (2, 3):
        more = pretrain(make_run("run", trainer=limited, ckpt_path="last", **options))
        assert more.steps == step and (more.ended_early is None) is (step == 3)
    ours, theirs = last_state(config), last_state(straight)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_identical(ours[key], theirs[key], key)
    assert all_curves(config)["train/loss"][-1] == all_curves(straight)["train/loss"][-1]


def test_max_time_of_reinforcement_learning(tmp_path: Path) -> None:
    config = make_stage("ppo", tmp_path, trainer={"max_steps": 3, **RARELY, "max_time": 1e-9}, sample_prompts=0)
    assert run_stage(config).steps == 1
    for name in ("objective/kl", "objective/scores", "objective/response_length", "val/reward"):
        assert steps(config, name) == [1], name


def test_a_run_shorter_than_its_log_interval_has_curves_and_a_speed(make_run: MakeRun) -> None:
    config = make_run(trainer={"max_steps": 2, **RARELY})
    result = pretrain(config)
    for name in ("train/loss", "train/gradient_norm", "learning_rate/adamw_decay", "throughput/tokens_per_second"):
        assert steps(config, name) == [2], name
    assert f"{result.tokens_per_second:,.0f} tokens/s" in (config.folder / "report.md").read_text()
    assert result.tokens_per_second > 0


# patience


def patient(make_run: MakeRun, name: str, patience: int | None = 2, **more: Any) -> RunConfig:
    trainer = {
        "max_steps": 12,
        "val_every_n_steps": 1,
        "save_every_n_steps": 100,  # what is saved before is saved because it is the best
        "early_stopping_patience": patience,
        **more.pop("trainer", {}),
    }
    return make_run(name, trainer=trainer, **DIVERGING, **more)


def test_early_stopping_waits_for_its_patience_and_resumes_exactly(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = patient(make_run, "straight")
    result = pretrain(straight)
    losses = [loss for _, loss in all_curves(straight)["val/loss"]]
    best = losses.index(min(losses))
    assert len(losses) == result.steps == best + 1 + 2 < 12
    assert list(checkpoints(straight))[-1] == result.steps and best + 1 in checkpoints(straight)
    line = f"val/loss has not been below {min(losses):.4f} in 2 validations"
    assert result.ended_early == line
    said = capsys.readouterr().err
    assert "after 2 validations in a row without a lower val/loss\n" in said
    assert f"ended at step {result.steps} of 12: {line}\n" in said
    assert f"the best is kept as {checkpoints(straight)[best + 1]}, which experiments/export.py" in said
    assert f"| ended early | {line} |" in (straight.folder / "report.md").read_text()
    # a run that loses its power while it waits stops at the same step
    with pytest.raises(RuntimeError, match="power"):
        pretrain(patient(make_run, "crashed"), callbacks=[Crash(best + 3)])
    resumed = patient(make_run, "crashed", ckpt_path="last")
    assert pretrain(resumed).steps == result.steps
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_identical(last_state(resumed)[key], last_state(straight)[key], key)
    assert all_curves(resumed)["val/loss"] == all_curves(straight)["val/loss"]
    # what has stopped for good is left alone
    capsys.readouterr()
    before = (straight.folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert pretrain(patient(make_run, "straight", ckpt_path="last")) is None
    said = capsys.readouterr().err
    assert f"{straight.folder} ended at step {result.steps}: {line}; a larger" in said and "resumed at" not in said
    assert (straight.folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    # and written where only that was lost
    (straight.folder / "report.md").unlink()
    again = pretrain(patient(make_run, "straight", ckpt_path="last"))
    assert again.steps == result.steps and again.ended_early == line and (straight.folder / "report.md").is_file()
    # more patience goes on from there
    assert pretrain(patient(make_run, "straight", patience=3, ckpt_path="last")).steps == result.steps + 1


def test_a_best_checkpoint_that_is_not_kept_is_not_named(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    often = {"save_every_n_steps": 1, "keep_last_checkpoints": 1}
    for keep, name in ((True, "kept"), (False, "gone")):
        config = patient(make_run, name, 1, trainer={**often, "keep_best_checkpoint": keep})
        result = pretrain(config)
        assert result.ended_early is not None
        assert len(checkpoints(config)) == (2 if keep else 1)
        assert ("the best is kept as" in capsys.readouterr().err) is keep
        assert ("| best checkpoint |" in (config.folder / "report.md").read_text()) is keep
        assert result.facts.best_step == (result.steps - 1 if keep else None)


def test_a_validation_that_another_end_has_added_does_not_count(make_run: MakeRun) -> None:
    trainer = {"val_every_n_steps": 2, "max_steps": 3}
    keep = Keep()
    config = patient(make_run, "run", 5, trainer=trainer)
    pretrain(config, callbacks=[keep])
    assert steps(config, "val/loss") == [2, 3]
    losses = dict(all_curves(config)["val/loss"])
    assert (keep.end.best_loss, keep.end.waited) == (pytest.approx(losses[2]), 0)


@pytest.mark.parametrize("worse", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_improvement(worse: float, make_run: MakeRun) -> None:
    class Spoil(Keep):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.validation_values = lambda: {"loss": worse}

    keep = Spoil()
    assert pretrain(patient(make_run, "run", 2), callbacks=[keep]).steps == 2
    assert keep.end.best_loss == math.inf


def test_patience_without_validations_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("early_stopping_patience", "max_tokens"):
        with pytest.raises(UserError, match=rf"trainer.{name} is 0; it must be at least 1, or null"):
            TrainerConfig(**{name: 0})
    with pytest.raises(UserError, match=r"early_stopping_patience needs .* set trainer.val_every_n_steps"):
        TrainerConfig(early_stopping_patience=1, val_every_n_steps=None)
    config = make_stage("sft", tmp_path, data={"validation_fraction": 0.0}, trainer={"early_stopping_patience": 1})
    with pytest.raises(UserError, match=r"early_stopping_patience needs validation data"):
        run_stage(config)
    assert not (config.folder / "config.yaml").exists()
