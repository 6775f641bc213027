"""Batteries of evaluate.py: what is asked, kept, taken up again and compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from battery_files import TASKS, write_battery
from chat_rows import save_policy
from conftest import ROOT, tiny_model
from random_decoder import random_decoder
from stage_runs import chat_tokenizer

from lit_llm.cli import main
from lit_llm.cli.commands import COMMANDS
from lit_llm.config import EvaluateConfig, UserError
from lit_llm.evaluation.battery import run as battery_run
from lit_llm.evaluation.battery.questions import Question
from lit_llm.interop import save_model_folder
from lit_llm.stages.battery import open_battery
from lit_llm.tokenizer import Tokenizer

evaluate = COMMANDS["evaluate"].run


@pytest.fixture
def battery(tmp_path: Path) -> Path:
    return write_battery(tmp_path / "tasks")


def model_folder(path: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    model = random_decoder(tiny_model(tie_word_embeddings=False), std=0.1, seed=seed)
    save_model_folder(path, model.config, model.state_dict(), tokenizer)
    return path


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return model_folder(tmp_path / "one", tokenizer)


def found(folder: Path, battery: Path, output: Path, **options: Any) -> dict[str, Any]:
    evaluate(EvaluateConfig(str(folder), battery=str(battery), output=str(output), **options))
    return json.loads((output / "evaluation.json").read_text())


def test_equal_choices_are_told(battery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = battery.parent / "chosen.jsonl"
    with path.open("a") as file:
        file.write('{"prompt": "a", "choices": ["b", "c", "b", "d"], "answer": 1}\n')
    open_battery(EvaluateConfig("nowhere", battery=str(battery)))
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "equal choices" in line]
    asked = "task chosen: questions with two equal choices, which no model can tell apart"
    assert told == f"{asked}: 1 of 7 ({path}, line 7)"


def test_report(folder: Path, battery: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = found(folder, battery, output)["battery"]
    (model,) = report["models"]
    pairs, chosen, written = model["tasks"]
    assert [pairs["questions"], chosen["questions"], written["questions"]] == [30, 6, 4]
    assert [pairs["chance"], chosen["chance"], written["chance"]] == [0.5, 0.25, 0.0]
    assert [pairs["metric"], chosen["metric"], written["metric"]] == ["acc", "acc_norm", "acc"]
    assert [part["part"] for part in pairs["parts"]] == ["p0", "p1"]
    assert pairs["accuracy"] == pytest.approx(sum(part["accuracy"] for part in pairs["parts"]) / 2)
    # pass@1 is the share of right answers, and more of them can only be right more often
    assert written["more"]["pass@1"]["accuracy"] == pytest.approx(written["accuracy"])
    assert written["more"]["pass@4"]["accuracy"] >= written["accuracy"]
    centred = [(task["accuracy"] - task["chance"]) / (1 - task["chance"]) for task in model["tasks"]]
    assert model["centred"]["value"] == pytest.approx(sum(centred) / 3)
    assert model["groups"][0]["accuracy"] == pytest.approx((pairs["accuracy"] + chosen["accuracy"]) / 2)
    answers = [json.loads(line) for line in (output / "battery" / "written.full.jsonl").read_text().splitlines()]
    assert len(answers) == 5 and all(len(answer["samples"]) == 4 for answer in answers[1:])
    for answer in answers[1:]:
        assert answer["score"] == sum(sample["correct"] for sample in answer["samples"]) / 4
        assert all(sample["correct"] == ("e" in sample["text"]) for sample in answer["samples"])
        assert len({sample["text"] for sample in answer["samples"]}) > 1
    markdown = (output / "evaluation.md").read_text()
    assert "## Battery" in markdown and f"{pairs['accuracy']:.2%}" in markdown and "### Parts of pairs" in markdown
    page = (output / "evaluation.html").read_text()
    assert (
        "<svg" in page
        and "Parts of pairs" in page
        and "<script" not in page
        and "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    )
    other = found(folder, battery, tmp_path / "again", batch_size=1)["battery"]
    for one, two in zip(model["tasks"], other["models"][0]["tasks"], strict=True):
        assert {**one, "files": None} == {**two, "files": None}
    limited = found(folder, battery, tmp_path / "few", limit=2, battery_tasks="pairs,chosen")["battery"]
    assert [task["questions"] for task in limited["models"][0]["tasks"]] == [4, 2]


def test_a_battery_that_was_stopped_goes_on(
    folder: Path, battery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(folder, battery, tmp_path / "whole")
    asked: list[str] = []
    ask = battery_run._choose

    def noted(missing: list[Question], *arguments: Any) -> Any:
        asked.extend(question.id for question in missing)
        return ask(missing, *arguments)

    monkeypatch.setattr(battery_run, "_choose", noted)
    output = tmp_path / "stopped"
    found(folder, battery, output, limit=1)
    assert asked == ["p0/0", "p1/0", "chosen/0"]
    # half a line is what a killed process leaves
    for name in ("pairs", "written"):
        kept = output / "battery" / f"{name}.full.jsonl"
        kept.write_bytes(kept.read_bytes()[:-9])
    (output / "evaluation.json").unlink()
    asked.clear()
    gone_on = found(folder, battery, output, overwrite=True)
    assert len(asked) == 30 - 1 + 6 - 1 and "p0/0" in asked  # that of the half line is asked again
    assert gone_on["battery"] == whole["battery"]
    asked.clear()
    found(folder, battery, output, overwrite=True)
    assert not asked


@pytest.mark.parametrize("changed", ["model", "task file", "task options", "precision", "begin_token"])
def test_what_was_made_with_something_else_is_not_taken_up(
    changed: str, folder: Path, battery: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    output, options = tmp_path / "out", {"battery_tasks": "chosen"}
    found(folder, battery, output, **options)
    for name in ("evaluation.json", "evaluation.md", "evaluation.html"):
        (output / name).unlink()
    later: dict[str, Any] = dict(options)
    if changed == "model":
        folder = model_folder(tmp_path / "one", tokenizer, seed=1)
    elif changed == "task file":
        rows = battery.with_name("chosen.jsonl")
        rows.write_text(rows.read_text().replace("or else", "or not"))
    elif changed == "task options":
        battery.write_text(TASKS.replace("paths: chosen.jsonl", "paths: chosen.jsonl, delimiter: ': '"))
    elif changed == "precision":
        later["dtype"] = "bfloat16"
    else:
        later["begin_token"] = "never"
    with pytest.raises(UserError, match=f"has 6 answers that were made with another {changed}; give another --output"):
        found(folder, battery, output, **later)
    report = found(folder, battery, output, overwrite=True, **later)
    fresh = found(folder, battery, tmp_path / "fresh", **later)
    assert report["battery"] == fresh["battery"]


def test_differences_are_paired(folder: Path, battery: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = found(folder, battery, tmp_path / "first", battery_tasks="pairs")
    other = model_folder(tmp_path / "two", tokenizer, seed=1)
    second = found(other, battery, tmp_path / "second", battery_tasks="pairs", compare_to=str(tmp_path / "first"))
    (gap,) = second["battery"]["differences"]
    before, after = (each["battery"]["models"][0]["tasks"][0]["accuracy"] for each in (first, second))
    assert (gap["from"], gap["to"]) == pytest.approx((before, after))
    assert gap["difference"] == pytest.approx(after - before) and gap["better"] - gap["worse"] == round(
        30 * (after - before)
    )
    assert gap["interval"][0] < gap["difference"] < gap["interval"][1]
    assert "### Differences" in (tmp_path / "second" / "evaluation.md").read_text()
    rounded = found(folder, battery, tmp_path / "rounded", battery_tasks="pairs", quantize="int4")["battery"]
    assert [model["model"] for model in rounded["models"]] == ["full", "int4"]
    (gap,) = rounded["differences"]
    assert (gap["first"], gap["second"], gap["from"]) == ("full", "int4", pytest.approx(before))
    assert rounded["models"][0] == first["battery"]["models"][0]
    with pytest.raises(UserError, match="there is no evaluation with a battery in it"):
        found(folder, battery, tmp_path / "third", compare_to=str(tmp_path))
    battery.write_text(TASKS.replace("paths: pairs.jsonl", "paths: pairs.jsonl, delimiter: ''"))
    with pytest.raises(UserError, match="task pairs was asked with another task options"):
        found(folder, battery, tmp_path / "third", battery_tasks="pairs", compare_to=str(tmp_path / "first"))


def test_questions_become_conversations(battery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = chat_tokenizer()
    run = tmp_path / "run"
    run.mkdir()
    save_policy(run / "model", tokenizer, max_position_embeddings=128)
    report = found(run, battery, tmp_path / "out", chat_template=True)
    (run / "config.yaml").write_text("{schedule: {}, init_from: null}")
    plain = found(run, battery, tmp_path / "plain")
    assert report["battery"]["models"] != plain["battery"]["models"]
    assert "only pretrained" not in capsys.readouterr().err
    battery.write_text(TASKS.replace("paths: chosen.jsonl", "paths: chosen.jsonl, chat: true"))
    found(run, battery, tmp_path / "chosen", limit=1)
    told = [line for line in capsys.readouterr().err.splitlines() if "only pretrained" in line]
    assert told == [
        f"{run} was only pretrained, and has not learned to answer in a conversation, which is asked of it in chosen"
    ]


def test_the_command_says_what_is_wrong_in_one_line(
    folder: Path, battery: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    battery.with_name("chosen.jsonl").write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 7}\n')
    words = ["--model", str(folder), "--battery", str(battery), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(EvaluateConfig, evaluate, words)
    assert stopped.value.code == 1
    assert "chosen.jsonl, line 1: the answer 7 is none of its 2 choices" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    for options, message in (
        ({"battery_data": "x"}, "battery_data is given, but no battery"),
        ({"compare_to": "x", "texts": ["y"]}, "compare_to is given, but no battery"),
    ):
        with pytest.raises(UserError, match=message):
            EvaluateConfig(**options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (r'{"prompt": "a", "target": "\ud83c"}', "own.jsonl, line 1: half of a surrogate pair"),
        (r'{"prompt": "a", "target": 3}', "own.jsonl, line 1: target must be a text or a list of texts, and is 3;"),
        (r'{"prompt": "a", "target": "b", "verifier": "regex"}', "own.jsonl, line 1: .*no field pattern; it has"),
        (r'{"prompt": "a", "pattern": "(", "verifier": "regex"}', r"own.jsonl, line 1: the pattern '\('"),
        (
            json.dumps({"prompt": "a", "choices": ["b", "c d " * 200], "answer": 0}),
            r"own.jsonl, line 1: a choice of [\d,]+ tokens is longer than the model's context",
        ),
    ],
)
def test_what_a_model_cannot_be_asked_is_named_by_its_line(
    row: str, message: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_text(row + "\n")
    (tmp_path / "own.yaml").write_text("tasks: [{name: own, form: own, paths: [own.jsonl]}]")
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(str(folder), battery=str(tmp_path / "own.yaml"), output=str(tmp_path / "out")))


@pytest.mark.slow
def test_a_killed_battery_goes_on(folder: Path, battery: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a task, in a process of its own, in a pipe."""
    rows = battery.with_name("written.jsonl")
    rows.write_text(rows.read_text() * 60)
    command = [sys.executable, str(ROOT / "experiments" / "evaluate.py"), "--model", str(folder), "--battery"]
    command += [str(battery), "--battery_tasks", "written", "--batch_size", "2", "--output", str(tmp_path / "out")]
    kept = tmp_path / "out" / "battery" / "written.full.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not kept.exists() or kept.read_bytes().count(b"\n") < 9:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = kept.read_bytes().splitlines()[:9]
    assert not (tmp_path / "out" / "evaluation.json").exists()
    report = found(folder, battery, tmp_path / "out", battery_tasks="written", batch_size=2)
    assert kept.read_bytes().splitlines()[:9] == done
    whole = found(folder, battery, tmp_path / "whole", battery_tasks="written", batch_size=2)
    assert report["battery"] == whole["battery"]
