"""Batteries that several processes share."""

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
import torch.distributed as dist
from battery_files import write_battery
from conftest import ROOT
from ranks import run_ranks
from test_battery import found, model_folder

from lit_llm.config import EvaluateConfig, UserError
from lit_llm.evaluation.battery import run as battery_run
from lit_llm.evaluation.battery.finished import path_of_rank
from lit_llm.stages.evaluate import evaluate
from lit_llm.tokenizer import Tokenizer


@pytest.fixture
def battery(tmp_path: Path) -> Path:
    return write_battery(tmp_path / "tasks")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return model_folder(tmp_path / "one", tokenizer)


def left_by_three_ranks(whole: Path, output: Path) -> dict[str, int]:
    """What three killed ranks leave of a finished evaluation; returns how many whole answers of each task."""
    (output / "battery").mkdir(parents=True)
    left = {}
    for path in (whole / "battery").iterdir():
        head, *answers = path.read_text().splitlines(keepends=True)
        parts = [answers[rank::3][:2] for rank in range(3)]
        for rank, part in enumerate(parts):
            cut = "".join([head, *part])[: -9 if rank == 1 else None]  # in the middle of a line
            (output / "battery" / path_of_rank(path, rank).name).write_text(cut)
        left[path.name] = sum(map(len, parts)) - 1
    return left


def answers_in(path: Path) -> dict[str, Any]:
    """The answers of a file by their question."""
    answers = {}
    for line in path.read_text().splitlines()[1:]:
        answer = json.loads(line)
        assert answer["id"] not in answers
        answers[answer["id"]] = answer
    return answers


def questions_asked(folder: Path, battery: Path, output: Path, notes: Path) -> None:
    """Evaluate, and note how many questions this rank is asked."""
    count = 0
    ask = battery_run._choose

    def counted(missing: Any, *arguments: Any) -> Any:
        nonlocal count
        count += len(missing)
        return ask(missing, *arguments)

    battery_run._choose = counted
    evaluate(EvaluateConfig(str(folder), battery=str(battery), output=str(output)))
    (notes / f"{dist.get_rank()}").write_text(str(count))


def test_ranks_answer_what_one_does_and_go_on_in_another_number(folder: Path, battery: Path, tmp_path: Path) -> None:
    whole = found(folder, battery, tmp_path / "whole")["battery"]
    left = left_by_three_ranks(tmp_path / "whole", tmp_path / "ranks")
    run_ranks(questions_asked, 2, tmp_path, folder, battery, tmp_path / "ranks", tmp_path)
    report = json.loads((tmp_path / "ranks" / "evaluation.json").read_text())["battery"]
    assert report == whole
    asked = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert sum(asked) == 30 + 6 - left["pairs.full.jsonl"] - left["chosen.full.jsonl"]
    assert abs(asked[0] - asked[1]) <= 2
    for path in (tmp_path / "ranks" / "battery").iterdir():  # the ranks' own files are gone
        answers, expected = answers_in(path), answers_in(tmp_path / "whole" / "battery" / path.name)
        assert answers.keys() == expected.keys()
        for name, answer in answers.items():
            # which depend in their last bits on what is read together
            assert answer.pop("log_probs", []) == pytest.approx(expected[name].pop("log_probs", []), rel=1e-5)
            assert answer == expected[name]
    # and one alone goes on from several
    left_by_three_ranks(tmp_path / "whole", tmp_path / "alone")
    assert found(folder, battery, tmp_path / "alone")["battery"] == whole
    assert len(list((tmp_path / "alone" / "battery").iterdir())) == 3


def test_what_a_rank_has_left_is_checked_too(folder: Path, battery: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    found(folder, battery, output, battery_tasks="chosen")
    (output / "evaluation.json").rename(output / "before.json")
    for name in ("evaluation.md", "evaluation.html"):
        (output / name).unlink()
    kept = output / "battery" / "chosen.full.jsonl"
    kept.rename(path_of_rank(kept, 2))
    other = {"battery_tasks": "chosen", "begin_token": "never"}
    with pytest.raises(UserError, match=r"chosen\.full\.rank2\.jsonl has 6 answers .* another begin_token"):
        found(folder, battery, output, **other)
    found(folder, battery, output, overwrite=True, **other)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def refused(folder: Path, battery: Path, output: Path) -> None:
    """Rank 1 alone is asked the row that cannot be; rank 0 says so, and rank 1 just ends."""
    config = EvaluateConfig(str(folder), battery=str(battery), output=str(output))
    expected: type[BaseException] = UserError if dist.get_rank() == 0 else SystemExit
    with pytest.raises(expected, match="line 2: a choice of" if dist.get_rank() == 0 else "0"):
        evaluate(config)
    with pytest.raises(UserError, match="several processes share the questions of a battery and nothing else"):
        evaluate(EvaluateConfig(str(folder), battery=str(battery), texts=[str(battery)], output=str(output / "more")))


@pytest.mark.slow
def test_what_one_rank_cannot_be_asked_is_said_by_the_first(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "choices": ["b", word], "answer": 0} for word in ("c", "c d " * 200)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text("tasks: [{name: own, form: own, paths: [own.jsonl]}]")
    run_ranks(refused, 2, tmp_path, folder, tmp_path / "own.yaml", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0, "battery": "base"}, "devices is 0; it must be at least 1"),
        ({"devices": 2, "battery": "base", "texts": ["a"]}, "evaluate texts by a command of its own, or in one"),
        ({"devices": 2}, "nothing else: give battery"),
    ],
)
def test_options_of_shared_batteries(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluateConfig(**options)


@pytest.mark.slow
def test_killed_processes_go_on_under_torchrun(folder: Path, battery: Path, tmp_path: Path) -> None:
    """Two processes that the command starts, killed in the middle; then three of torchrun's."""
    rows = battery.with_name("written.jsonl")
    rows.write_text(rows.read_text() * 40)
    script = str(ROOT / "experiments" / "evaluate.py")
    options = ["--model", str(folder), "--battery", str(battery), "--battery_tasks", "written", "--batch_size", "2"]
    options += ["--output", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, script, *options, "--devices", "2"], stderr=subprocess.PIPE, env=environment
    )
    kept = tmp_path / "out" / "battery" / "written.full.jsonl"
    both = [kept, path_of_rank(kept, 1)]
    while not all(path.exists() and path.read_bytes().count(b"\n") > 5 for path in both):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.stderr is not None
    said = process.stderr.read().decode()  # ends when the other process has noticed, and ended as well
    assert "rank 1 lost the other ranks" in said and "goes on from them" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "evaluation.json").exists()
    done = [line for path in both for line in path.read_text().splitlines()[1:5]]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--rdzv-endpoint"]
    torchrun += ["localhost:0", "--rdzv-backend", "c10d", script, *options]
    again = subprocess.run(torchrun, capture_output=True, text=True, env=environment, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("report   ") == 1 and again.stderr.count("160 questions scored") == 1
    assert set(done) <= set(kept.read_text().splitlines()) and not both[1].exists()
    whole = found(folder, battery, tmp_path / "whole", battery_tasks="written", batch_size=2)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["battery"] == whole["battery"]
