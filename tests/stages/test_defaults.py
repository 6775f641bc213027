"""What a stage chooses where nothing is given: length, rates and warm-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_rows import save_policy
from conftest import MakeRun
from run_files import all_curves
from stage_runs import chat_tokenizer, make_stage

from lit_llm.config import UserError, default_learning_rate
from lit_llm.planning import count_parameters
from lit_llm.stages.defaults import keep_earlier_choices
from lit_llm.stages.dpo import build_dpo
from lit_llm.stages.ppo import build_ppo
from lit_llm.stages.pretrain import build_pretraining, pretrain
from lit_llm.stages.reward import build_reward
from lit_llm.stages.sft import build_sft

BUILD: dict[str, Any] = {"sft": build_sft, "reward": build_reward, "dpo": build_dpo, "ppo": build_ppo}
NOTHING_GIVEN: dict[str, Any] = {
    "optimizer": {"learning_rate": None},
    "schedule": {"warmup_steps": None},
    "data": {"sequence_length": None},
}


@pytest.mark.parametrize("stage", BUILD)
def test_a_later_stage_fits_length_rate_and_warm_up(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_stage(stage, tmp_path, **NOTHING_GIVEN, epochs=5.0)
    module, data, _ = BUILD[stage](config)
    assert config.data.sequence_length == 64 == config.model.max_position_embeddings
    expected = default_learning_rate(stage, count_parameters(config.model))  # type: ignore[arg-type]
    assert config.optimizer.learning_rate == expected
    steps = -(-5 * data.num_samples // 8)
    assert (config.trainer.max_steps, config.schedule.warmup_steps) == (steps, max(1, round(0.1 * steps)))
    printed = capsys.readouterr().err
    assert "sequence length 64: all that the model reads; --data.sequence_length sets another" in printed
    assert f"learning rate {expected:g}: {stage} of " in printed
    assert "k parameters with adamw; --optimizer.learning_rate sets another" in printed
    assert f"warm-up {config.schedule.warmup_steps} of {steps} steps" in printed
    assert module.config is config


def test_an_adapter_has_ten_times_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_stage("dpo", tmp_path, optimizer={"learning_rate": None}, lora={"rank": 2})
    build_dpo(config)
    expected = 10 * default_learning_rate("dpo", count_parameters(config.model))
    assert config.optimizer.learning_rate == pytest.approx(expected)
    assert "k parameters with lora; --optimizer.learning_rate sets another" in capsys.readouterr().err


def test_the_length_suits_every_model_that_reads_the_rows(tmp_path: Path) -> None:
    shorter = save_policy(tmp_path / "shorter", chat_tokenizer(), max_position_embeddings=40)
    for stage in ("dpo", "ppo"):
        config = make_stage(
            stage, tmp_path, data={"sequence_length": None, "max_dropped_share": 1.0}, reference_model=str(shorter)
        )
        BUILD[stage](config)
        assert config.data.sequence_length == 40
    config = make_stage("ppo", tmp_path, data={"sequence_length": None}, max_new_tokens=64)
    with pytest.raises(UserError, match=r"max_new_tokens 64 leaves no room for a prompt in data.sequence_length 64"):
        build_ppo(config)


def test_pretraining_writes_down_what_it_chose_and_keeps_it_when_it_goes_on(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A longer run would choose a longer warm-up, and so could not go on with the steps that are done."""
    constant = {"name": "constant", "warmup_steps": None}
    null: dict[str, Any] = {**NOTHING_GIVEN, "schedule": constant, "optimizer": {"learning_rate": None, "name": "muon"}}
    config = make_run(**null, trainer={"max_steps": 2, "val_every_n_steps": None})
    pretrain(config)
    saved = yaml.safe_load((config.folder / "config.yaml").read_text())
    assert (saved["data"]["sequence_length"], saved["schedule"]["warmup_steps"]) == (32, 1)
    assert (saved["optimizer"]["learning_rate"], saved["optimizer"]["muon_learning_rate"]) == (4e-3, 0.02)
    assert "Muon's learning rate 0.02: pretrain" in capsys.readouterr().err

    longer = make_run(**null, trainer={"max_steps": 80, "val_every_n_steps": None}, ckpt_path="last")
    build_pretraining(longer)
    assert longer.schedule.warmup_steps == 2
    # as this one is asked to go on
    longer = make_run(**null, trainer={"max_steps": 80, "val_every_n_steps": None}, ckpt_path="last")
    pretrain(longer)
    assert longer.schedule.warmup_steps == 1
    assert "resumed at step 2" in capsys.readouterr().err
    assert [value for _, value in all_curves(longer)["learning_rate/muon"]] == pytest.approx([0.02] * 80)


@pytest.mark.parametrize(
    ("has_units", "precision", "of_muon"), [(True, "bf16-mixed", "bfloat16"), (False, "32-true", "auto")]
)
def test_the_precision_suits_the_processor_and_stays_when_the_run_moves_to_another(
    has_units: bool, precision: str, of_muon: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"trainer": {"precision": "auto", "max_steps": 1}, "optimizer": {"name": "muon"}}
    monkeypatch.setattr("lit_llm.stages.defaults.multiplies_bfloat16", lambda device: has_units)
    config = make_run(**options, schedule={"warmup_steps": 1})
    pretrain(config)
    saved = yaml.safe_load((config.folder / "config.yaml").read_text())
    assert (saved["trainer"]["precision"], saved["optimizer"]["muon_ns_dtype"]) == (precision, of_muon)
    monkeypatch.setattr("lit_llm.stages.defaults.multiplies_bfloat16", lambda device: not has_units)
    options["trainer"]["max_steps"] = 2
    longer = make_run(**options, schedule={"warmup_steps": 1}, ckpt_path="last", resume_changed=True)
    pretrain(longer)
    assert (longer.trainer.precision, longer.optimizer.muon_ns_dtype) == (precision, of_muon)


@pytest.mark.parametrize("content", ["", "42", "{", "optimizer: 3", "schedule: {warmup_steps: many}", None])
def test_a_record_that_says_nothing_leaves_the_choice_open(content: str | None, make_run: MakeRun) -> None:
    config = make_run(**NOTHING_GIVEN, ckpt_path="last")
    (config.folder / "checkpoints" / "step_00000002.ckpt").mkdir(parents=True)
    if content is not None:
        (config.folder / "config.yaml").write_text(content)
    keep_earlier_choices(config)
    assert (config.optimizer.learning_rate, config.schedule.warmup_steps, config.data.sequence_length) == (None,) * 3


def test_the_record_is_found_by_the_path_of_a_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    record = tmp_path / "other" / "config.yaml"
    record.parent.mkdir()
    record.write_text("data: {sequence_length: 16}\noptimizer: {learning_rate: 0.5}\nschedule: {warmup_steps: 3}\n")
    checkpoint = str(tmp_path / "other" / "checkpoints" / "step_00000002.ckpt")
    config = make_run(**NOTHING_GIVEN, ckpt_path=checkpoint)
    keep_earlier_choices(config)
    assert (config.optimizer.learning_rate, config.schedule.warmup_steps, config.data.sequence_length) == (0.5, 3, 16)
    given = make_run(ckpt_path=checkpoint)
    keep_earlier_choices(given)
    assert (given.optimizer.learning_rate, given.schedule.warmup_steps, given.data.sequence_length) == (3e-3, 2, 32)
    record.write_text("schedule: {warmup_steps: -1}")
    with pytest.raises(UserError, match=r"schedule.warmup_steps is -1"):
        keep_earlier_choices(make_run(**NOTHING_GIVEN, ckpt_path=checkpoint))


@pytest.mark.parametrize("ckpt_path", ["last", "last_or_begin"])
def test_a_start_that_left_no_checkpoint_chooses_for_no_other(ckpt_path: str, make_run: MakeRun) -> None:
    """What it chose was for its own model and length, of which nothing is gone on with."""
    config = make_run(**NOTHING_GIVEN, ckpt_path=ckpt_path)
    record = "data: {sequence_length: 16}\noptimizer: {learning_rate: 0.5}\nschedule: {warmup_steps: 3}\n"
    (config.folder / "checkpoints").mkdir(parents=True)
    (config.folder / "config.yaml").write_text(record)
    keep_earlier_choices(config)
    assert (config.optimizer.learning_rate, config.schedule.warmup_steps, config.data.sequence_length) == (None,) * 3
    (config.folder / "checkpoints" / "step_00000002.ckpt").mkdir()
    keep_earlier_choices(config)
    assert (config.optimizer.learning_rate, config.schedule.warmup_steps, config.data.sequence_length) == (0.5, 3, 16)


def test_a_long_context_is_not_filled(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_run(model={"max_position_embeddings": 4096}, data={"sequence_length": None})
    build_pretraining(config)
    assert config.data.sequence_length == 1024
    assert "sequence length 1024: of the 4096 that the model reads" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data.sequence_length 33 is more than model.max_position_embeddings 32"):
        make_run(data={"sequence_length": 33})
