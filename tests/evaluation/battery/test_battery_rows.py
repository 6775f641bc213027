"""Batteries and task files: what is read, and what is refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lit_llm.config import SandboxConfig, UserError
from lit_llm.config.battery import BatteryTask
from lit_llm.evaluation.battery.definition import LocatedTask, open_batteries, packaged_batteries
from lit_llm.evaluation.battery.run import open_tasks
from lit_llm.evaluation.battery.writing import judged

OWN = {"prompt": "2 + 2 =", "target": "4"}


def asked(folder: Path, text: str, name: str = "rows.jsonl", **options: Any) -> Any:
    (folder / name).write_text(text)
    task = BatteryTask("t", **{"form": "choices", "paths": [name], **options})
    return open_tasks([LocatedTask(task, (folder / name,), folder)], None)[0]


@pytest.mark.parametrize(
    ("form", "name", "text", "message"),
    [
        (
            "pairs",
            "r.jsonl",
            '{"sentence_good": "a"}',
            "task t has no field 'sentence_bad', which form pairs",
        ),
        (
            "pairs",
            "r.jsonl",
            '{"sentence_good": "a", "sentence_bad": 3}',
            "the field sentence_bad must be a text",
        ),
        (
            "choices",
            "r.jsonl",
            '{"question": "q", "choices": ["a", "b"]}',
            "no field 'answer'.* it has question, choices",
        ),
        (
            "choices",
            "r.jsonl",
            '{"question": "q", "choices": ["a", "b"], "answer": 2}',
            "the answer 2 is none of",
        ),
        (
            "choices",
            "r.jsonl",
            '{"question": "q", "choices": ["a", "b"], "answer": "C"}',
            "the answer 'C' is none",
        ),
        (
            "choices",
            "r.jsonl",
            '{"question": "q", "choices": ["a"], "answer": 0}',
            "choices must be 2 to 26 texts",
        ),
        ("choices", "r.jsonl", '{"question": "q", "choices": "ab", "answer": 0}', "choices must be a list of texts"),
        ("choices", "r.csv", "q,a,b,A\nq,a,b,E\n", "line 2: the answer 'E' is none of its 2 choices, A to B"),
        ("choices", "r.csv", "q,a\n", "line 1: 2 columns"),
        ("answers", "r.csv", "q,a,b,A\n", "a .csv is read for form choices alone"),
        ("answers", "r.jsonl", "", "the file of task t has no row"),
        ("answers", "r.jsonl", "[1]", "line 1: each line must be an object"),
        ("answers", "r.jsonl", '{"question": ', "line 1: no JSON"),
        ("own", "r.jsonl", '{"prompt": "a"}', "line 1: a row of form own has choices and answer, or target"),
        ("own", "r.jsonl", json.dumps({**OWN, "verifier": "magic"}), "line 1: there is no verifier 'magic'; known are"),
        (
            "own",
            "r.jsonl",
            f'{json.dumps(OWN)}\n{{"prompt": "a", "choices": ["b", "c"], "answer": 1}}',
            "some rows",
        ),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(form: Any, name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refused:
        asked(tmp_path, text, name, form=form)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 2}, "part rows has 2 rows, all of them taken as examples"),
        ({"shots": 3}, "part rows has 2 examples, and shots is 3"),
        ({"shots": 1, "shots_path": "{part}_dev.jsonl"}, "the examples .*rows_dev.jsonl are not there"),
        ({"prompt": "{questoin}"}, "the prompt of task t has {questoin}, and the row no such field"),
        ({"part": "subject"}, "task t has part subject, and the row has no such field"),
    ],
)
def test_options_that_do_not_fit_the_rows_are_refused(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        asked(tmp_path, '{"question": "q", "choices": ["a", "b"], "answer": 1}\n' * 2, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 8, "temperature": 0.7},
        {"temperature": 0.7},
        {"verifier": "number"},
        {"stop": ["x"]},
        {"max_new_tokens": 5},
    ],
)
def test_options_of_written_answers_are_refused_where_rows_have_choices(options: Any, tmp_path: Path) -> None:
    name = next(iter(options))
    with pytest.raises(UserError, match=f"task t: {name} is for generated answers, and a task whose rows have choices"):
        asked(tmp_path, '{"prompt": "q", "choices": ["a", "b"], "answer": 1}', form="own", **options)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"form": "own", "paths": "a"}, "task 1 has no name"),
        ({"name": "a", "form": "essay", "paths": "a"}, "form is 'essay'; it must be pairs or choices"),
        ({"name": "a", "form": "own"}, "task a: give paths, files"),
        ({"name": "a", "form": "own", "paths": "a", "shot": 3}, "a task has no option shot"),
        ({"name": "a", "form": "own", "paths": "a", "samples": 4}, "samples 4 at temperature 0 would all be the same"),
        (
            {"name": "a", "form": "own", "paths": "a", "pass_at": [2]},
            r"pass_at is \[2\]; each must be from 1",
        ),
        ({"name": "a", "form": "pairs", "paths": "a", "verifier": "exact"}, "verifier is for generated answers"),
        ({"name": "a", "form": "pairs", "paths": "a", "shots": 1}, "form pairs takes no shots"),
        ({"name": "../a", "form": "pairs", "paths": "a"}, "is not empty and has no slashes"),
        ({"name": "a", "form": "own", "paths": "gone.jsonl", "source": "there"}, "needs gone.jsonl; .*had from there"),
        ({"name": "a", "form": "choices", "paths": "a", "temperature": 0.7}, "a: temperature is for generated answers"),
        (
            {"name": "a", "form": "pairs", "paths": "a", "stop": []},
            "a: stop is for generated .*, and form pairs has none",
        ),
        ({"name": "a", "form": "choices", "paths": "a", "top_p": 0.5}, "a: top_p is for generated answers"),
        (
            {"name": "a", "form": "own", "paths": "a", "top_p": 0.5},
            "task a: top_p has no effect at temperature 0; raise",
        ),
        (
            {"name": "a", "form": "own", "paths": "a", "score": "choice"},
            "a: score is for form choices alone, and the form is own",
        ),
        ({"name": "a", "form": "own", "paths": "a", "level": 0}, "task a: level is for form reasoning_gym alone"),
        (
            {"name": "a", "form": "code", "paths": "a", "size": 4},
            "size is for form reasoning_gym alone, and the form is code",
        ),
        ({"name": "a", "form": "own", "paths": "a", "separator": ""}, "task a: separator is given, but shots is 0"),
        ({"name": 2024, "form": "own", "paths": "a"}, "task 2024: name is 2024; it must be text"),
        ({"name": ["a"], "form": "own", "paths": "a"}, r"task \['a'\]: name is \['a'\]; it must be text"),
        ({"name": "a", "form": ["own"], "paths": "a"}, r"task a: form is \['own'\]; it must be pairs or"),
        ({"name": "a", "form": "own", "paths": [3]}, r"task a: paths is \[3\]; it must be a list of texts"),
        ({"name": "a", "form": "own", "paths": [["r"]]}, r"task a: paths is \[\['r'\]\]; it must be a list of texts"),
        ({"name": "a", "form": "own", "paths": "**x/["}, r"task a: paths has '\*\*x/\[', which is neither a path nor"),
        ({"name": "a", "form": "own", "paths": "x" * 300}, "which is neither a path nor a pattern .File name too long"),
        ({"name": "a", "form": "own", "paths": "a", "group": 2024}, "task a: group is 2024; it must be text"),
        ({"name": "a", "form": "own", "paths": "a", "shots": "3"}, "task a: shots is '3'; it must be a whole number"),
        ({"name": "a", "form": "own", "paths": "a", "samples": 2.0}, "samples is 2.0; it must be a whole number"),
        ({"name": "a", "form": "own", "paths": "a", "samples": True}, "samples is True; it must be a whole number"),
        ({"name": "a", "form": "own", "paths": "a", "description": 5}, "description is 5; it must be text"),
        ({"name": "a", "form": "own", "paths": "a", "prompt": 5}, "prompt is 5; it must be text"),
        ({"name": "a", "form": "own", "paths": "a", "stop": "E"}, "stop is 'E'; it must be a list of texts or null"),
        ({"name": "a", "form": "own", "paths": "a", "pass_at": 1}, "pass_at is 1; it must be a list of whole numbers"),
        (
            {"name": "a", "form": "reasoning_gym", "datasets": "chess"},
            "datasets is 'chess'; it must be a list of texts",
        ),
        ({"name": "a", "form": "own", "paths": "a", "chat": "false"}, "chat is 'false'; it must be true or false"),
    ],
)
def test_a_wrong_battery_is_refused(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(json.dumps({"tasks": [entry]}))
    with pytest.raises(UserError, match=message):
        open_batteries(str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [{name: a, form: own, paths: a, 3: 4, b: 5}]", "task a: a task has no option 3, b"),
        ("tasks: []\ndescription: d\ntasks: [{name: a, form: own, paths: a}]", "tasks stands there a second time"),
        ("{3: 4, description: d, tasks: [{name: a, form: own, paths: a}]}", "has 3; known are tasks and description"),
    ],
)
def test_keys_that_are_no_text_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        open_batteries(str(tmp_path / "b.yaml"))


def test_packaged_batteries_say_where_their_data_is(tmp_path: Path) -> None:
    assert packaged_batteries() == ["base", "chat", "code"]
    with pytest.raises(UserError, match=r"task blimp needs .*--battery_data; it can be had from github.*mmlu,gsm8k"):
        open_batteries("base")
    with pytest.raises(UserError, match="neither a file nor a packaged one; those are base, chat, code"):
        open_batteries("basis")
    with pytest.raises(UserError, match="there is no task 'blmp'; known are blimp, mmlu, gsm8k"):
        open_batteries("base", str(tmp_path), "blmp")
    with pytest.raises(UserError, match=r"battery_data .*gone: no such folder"):
        open_batteries("base", str(tmp_path / "gone"))
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n' * 7)
    (only,) = open_batteries("base", str(tmp_path), "gsm8k")
    assert only.paths == (tmp_path / "gsm8k_test.jsonl",)
    assert len(open_tasks([only], None)[0].questions) == 2


def test_limit_and_parts_leave_the_ids_as_they_are(tmp_path: Path) -> None:
    rows = [{"UID": part, "sentence_good": "a", "sentence_bad": "b"} for part in "yxyxy"]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    located = LocatedTask(BatteryTask("t", "pairs", ["rows.jsonl.gz"]), (path,), tmp_path)
    everything, few = (open_tasks([located], limit)[0] for limit in (None, 1))
    assert [each.id for each in everything.questions] == ["x/0", "x/1", "y/0", "y/1", "y/2"]
    assert [each.id for each in few.questions] == ["x/0", "y/0"]
    assert few.made_with == everything.made_with


def test_reasoning_gym_makes_the_same_questions_again() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed; pip install 'lit-llm[battery]'")

    def prompts(level: int | None) -> list[str]:
        task = BatteryTask("r", "reasoning_gym", datasets=["chain_sum", "leg_counting"], size=3, level=level)
        (found,) = open_tasks([LocatedTask(task, (), Path())], 2)
        assert [each.part for each in found.questions] == ["chain_sum"] * 2 + ["leg_counting"] * 2
        return [each.prompt for each in found.questions]

    assert prompts(0) == prompts(0) != prompts(1) != prompts(None)
    task = BatteryTask("r", "reasoning_gym", datasets=["chess"])
    with pytest.raises(UserError, match="reasoning_gym has no"):
        open_tasks([LocatedTask(task, (), Path())], None)


def test_programs_run_in_the_sandbox_that_is_asked_for(tmp_path: Path) -> None:
    test = "def check(candidate):\n    assert candidate() == 1\n"
    row = {"prompt": "def one():\n", "test": test, "entry_point": "one", "task_id": "one"}
    code = asked(tmp_path, json.dumps(row), form="code")
    assert code.runs_programs and not asked(tmp_path, json.dumps(OWN), form="own").runs_programs
    answer = "    print('x' * 5000)\n    return 1\n"
    for kilobytes, right in ((256, 1.0), (1, 0.0)):
        found = judged(code.questions[0], code.task, [answer], SandboxConfig(output_kb=kilobytes))
        assert found["score"] == right, found["samples"]
