"""A battery that is asked during training: curves, and a run that is the same as without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from battery_files import write_battery
from chat_rows import make_reward, save_policy, some_pairs
from conftest import MakeRun
from ranks import train_on_ranks
from run_files import all_curves
from stage_runs import chat_tokenizer, make_stage, run_stage
from test_resume import Crash, assert_same_run, final_state
from test_resume_ranks import port

from lit_llm.config import EvaluateConfig, PretrainConfig, UserError
from lit_llm.stages.evaluate import evaluate
from lit_llm.stages.pretrain import pretrain


@pytest.fixture
def battery(tmp_path: Path) -> Path:
    return write_battery(tmp_path / "tasks")


def asked_in_training(battery: Path, **more: Any) -> dict[str, Any]:
    return {"battery": str(battery), "evaluate_every_n_steps": 2, **more}


def test_a_battery_in_training_changes_nothing_and_is_resumed(make_run: MakeRun, battery: Path) -> None:
    """Its curves stand at every second step and the last one; dropout tells whether a random state was touched."""

    def run(name: str, trainer: dict[str, Any], **options: Any) -> PretrainConfig:
        return make_run(name, model={"dropout": 0.2}, trainer={"max_steps": 5, **trainer}, **options)

    plain, straight = run("plain", {}), run("straight", asked_in_training(battery))
    pretrain(plain)
    pretrain(straight)
    one, other = final_state(plain), final_state(straight)
    assert all((one["state_dict"][name] == other["state_dict"][name]).all() for name in one["state_dict"])
    shown = all_curves(straight)
    assert [step for step, _ in shown["battery/pairs"]] == [2, 4, 5]
    assert {"battery/chosen", "battery/written", "battery/centred"} <= shown.keys()
    with pytest.raises(RuntimeError, match="power"):
        pretrain(run("crashed", asked_in_training(battery)), callbacks=[Crash(4)])
    resumed = run("crashed", asked_in_training(battery), ckpt_path="last")
    pretrain(resumed)
    assert_same_run(straight, resumed)
    # the last point is what evaluate.py finds of the finished model
    options = {"battery": str(battery), "battery_tasks": "pairs", "output": str(battery.parent / "out")}
    report = evaluate(EvaluateConfig(str(straight.folder), **options)).report
    assert shown["battery/pairs"][-1][1] == pytest.approx(report["battery"]["models"][0]["tasks"][0]["accuracy"])


@pytest.mark.parametrize(
    ("trainer", "last"),
    [({"max_time": 1e-9}, 1), ({"early_stopping_patience": 1, "val_every_n_steps": 2}, 4)],
)
def test_a_battery_is_asked_where_a_run_ends_early(
    trainer: dict[str, Any], last: int, make_run: MakeRun, battery: Path
) -> None:
    asked = asked_in_training(battery, battery_tasks="pairs", battery_limit=2) | {"evaluate_every_n_steps": 50}
    # nothing is learned, so no validation is better
    config = make_run(optimizer={"learning_rate": 1e-12}, trainer={**asked, "max_steps": 99, **trainer})
    pretrain(config)
    assert [step for step, _ in all_curves(config)["battery/pairs"]] == [last]


def test_a_battery_in_other_stages(battery: Path, tmp_path: Path) -> None:
    config = make_stage(
        "sft", tmp_path, trainer=asked_in_training(battery, battery_tasks="pairs", battery_limit=2, max_steps=2)
    )
    run_stage(config)
    assert [step for step, _ in all_curves(config)["battery/pairs"]] == [2]
    policy = save_policy(tmp_path / "policy", chat_tokenizer())
    with pytest.raises(UserError, match=r"trainer\.battery cannot be asked of a reward model"):
        make_reward(tmp_path, policy, some_pairs(8), trainer=asked_in_training(battery))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_share_a_battery(strategy: str, make_run: MakeRun, battery: Path) -> None:
    """Each of two ranks answers half of it, or both answer all of it with weights that are spread over them."""
    options = asked_in_training(battery, max_steps=2, devices=2, strategy=strategy)
    config = make_run(trainer=options)
    train_on_ranks(config, 2, port())
    shown = all_curves(config)
    found = {"battery": str(battery), "output": str(battery.parent / "out"), "seed": config.seed}
    report = evaluate(EvaluateConfig(str(config.folder), **found)).report["battery"]["models"][0]
    for task in report["tasks"]:
        if task["task"] != "written":  # draws of other samples may follow from the last bits of the logits
            assert shown[f"battery/{task['task']}"] == [(2, pytest.approx(task["accuracy"]))]
    assert len(shown["battery/written"]) == 1


def test_a_battery_with_an_error_is_refused_before_anything_is_built(make_run: MakeRun, battery: Path) -> None:
    battery.with_name("chosen.jsonl").write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 7}\n')
    for place, message in (
        ("nosuch.yaml", "nosuch.yaml"),
        (str(battery), "chosen.jsonl, line 1: the answer 7 is none"),
    ):
        # there are no shards either, which would be said next
        config = make_run(data={"paths": ["nowhere"]}, trainer=asked_in_training(battery) | {"battery": place})
        with pytest.raises(UserError, match=message):
            pretrain(config)
        assert not config.folder.exists()
    row = {"prompt": "a", "choices": ["b" * 300, "c"], "answer": 0}
    battery.with_name("chosen.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(
        UserError, match=r"chosen.jsonl, line 1: a choice of \d+ tokens is longer than the model's context"
    ):
        pretrain(make_run(trainer=asked_in_training(battery)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"battery": "base"}, r"trainer\.battery is given without trainer\.evaluate_every_n_steps"),
        ({"evaluate_every_n_steps": 5}, r"trainer\.evaluate_every_n_steps is given without trainer\.battery"),
        ({"battery_limit": 5}, r"trainer\.battery_limit is given, but no trainer\.battery"),
        ({"battery_data": "x"}, r"trainer\.battery_data is given, but no trainer\.battery"),
        ({"battery": "b", "evaluate_every_n_steps": 0}, r"trainer\.evaluate_every_n_steps is 0"),
    ],
)
def test_options_of_a_battery_in_training(options: dict[str, Any], message: str, make_run: MakeRun) -> None:
    with pytest.raises(UserError, match=message):
        make_run(trainer=options)
