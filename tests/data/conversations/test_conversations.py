"""Rows of files as conversations, preferences and prompts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_llm.config import UserError
from lit_llm.data.conversations.reading import RowPlace, read_conversations, read_preferences, read_prompts
from lit_llm.tokenizer import Message

Pair = tuple[str, str]


def write(path: Path, *rows: Any) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif path.name.endswith(".json.gz"):
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return str(path)


def pairs(messages: tuple[Message, ...]) -> list[Pair]:
    return [(message.role, message.content) for message in messages]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


QA = [("user", "q"), ("assistant", "a")]
SYSTEM = ("system", "s")
FORMS: dict[str, tuple[dict[str, Any], list[Pair]]] = {
    "alpaca": ({"instruction": "i", "input": "x\n", "output": "a"}, [("user", "i\n\nx\n"), ("assistant", "a")]),
    "alpaca without input": ({"instruction": "q", "input": "", "output": "a", "system": "s"}, [SYSTEM, *QA]),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
                {"from": "tool", "value": "t"},
                {"from": "gpt", "value": " b "},
            ]
        },
        [SYSTEM, *QA, ("tool", "t"), ("assistant", " b ")],
    ),
    "messages": ({"messages": [user("q"), assistant("a")], "id": 7, "system": None}, QA),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, QA),
    "prompt and completion as messages": (
        {"prompt": [{"role": "system", "content": "s"}, user("q")], "completion": [assistant("a")]},
        [SYSTEM, *QA],
    ),
    "gsm8k": ({"question": "q", "answer": "a"}, QA),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    path = write(tmp_path / "a.jsonl", row)
    (found,) = read_conversations([path])
    assert pairs(found.messages) == expected
    assert found.place == RowPlace(path, 1)
    name = {"prompt and completion": "prompt_completion"}.get(form, form.split(" ")[0])
    if "as messages" not in form:
        assert read_conversations([path], name) == [found]
    (prompt,) = read_prompts([path])
    assert pairs(prompt.messages) == expected[:-1]
    assert prompt.fields == row


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_files(name: str, tmp_path: Path) -> None:
    rows = [{"messages": [user(f"q{index}"), assistant("é\n")]} for index in range(3)]
    found = read_conversations([write(tmp_path / name, *rows)])
    assert [conversation.messages[0].content for conversation in found] == ["q0", "q1", "q2"]
    assert {conversation.messages[1].content for conversation in found} == {"é\n"}
    assert [str(conversation.place) for conversation in found] == [f"{tmp_path / name}, row {n}" for n in (1, 2, 3)]


def test_rows_are_counted_as_an_editor_counts_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"question": "q", "answer": "a"})
    path.write_text(f"\ufeff{row}\n\n{row}\n   \n{row}")
    assert [conversation.place.number for conversation in read_conversations([str(path)])] == [1, 3, 5]


def test_folders_globs_and_hub(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.json", "sub/c.parquet"):
        write(tmp_path / name, {"question": name, "answer": "a"})
    (tmp_path / "README.md").write_text("not rows")

    def asked(*paths: str) -> list[str]:
        return [conversation.messages[0].content for conversation in read_conversations(paths)]

    assert asked(str(tmp_path)) == ["a.json", "b.jsonl", "sub/c.parquet"]
    assert asked(str(tmp_path / "*.jsonl"), str(tmp_path / "a.json")) == ["b.jsonl", "a.json"]
    with pytest.raises(UserError, match="give files that end in"):
        read_conversations([str(tmp_path / "README.md")])
    with pytest.raises(UserError, match=r"data\.validation_paths 'missing': no such file, folder or glob"):
        read_conversations(["missing"], option="data.validation_paths")


def test_hub(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", {"question": "q", "answer": "a"}, {"question": "p", "answer": "b"})
    write(tmp_path / "test.jsonl", {"question": "t", "answer": "c"})
    names = ("", ":default", ":default:train", "::test", ":default:test")
    for name, expected in zip(names, (["q", "p"], ["q", "p"], ["q", "p"], ["t"], ["t"]), strict=True):
        path = f"hf:{tmp_path}{name}"
        found = read_conversations([path])
        assert [conversation.messages[0].content for conversation in found] == expected
        assert str(found[-1].place) == f"{path}, row {len(expected)}"
    with pytest.raises(UserError, match=r"cannot be loaded, split 'nosuch' \(.*nosuch.*\)$"):
        read_conversations([f"hf:{tmp_path}::nosuch"])
    # A split where a configuration is due: the error says where it belongs.
    with pytest.raises(UserError, match=r"configuration 'test', split 'train' .*the third part, as in hf:\S+::test$"):
        read_conversations([f"hf:{tmp_path}:test"])
    for path in ("hf:a:b:c:d", "hf:", "hf::b"):
        with pytest.raises(UserError, match=r"data\.paths 'hf:.*: write hf:NAME, hf:NAME:CONFIG, hf:NAME:CONFIG:SPLIT"):
            read_conversations([path])


def test_empty_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    empty = {"messages": [user("q"), assistant(" \n"), user("r"), assistant("b")]}
    long = {"messages": [{"role": "system", "content": ""}, user("q"), assistant("a"), user("r"), assistant("b")]}
    full = {"messages": [user("q"), assistant("a")]}
    rows = read_conversations([write(tmp_path / "a.json", full, empty, long, full)])
    assert [conversation.place.number for conversation in rows] == [1, 3, 4]
    assert rows.statistics.rows == 4
    assert rows.statistics.lines() == [
        "4 rows, 3 kept",
        "1 of 4 rows left out (25.0%): 1 with an empty answer",
        "turns of each: min 2, mean 2.7, max 4",
    ]
    with pytest.raises(UserError, match="all 1 rows are left out: 1 with an empty answer"):
        read_conversations([write(tmp_path / "b.json", empty)])
    with pytest.raises(UserError, match="no row there"):
        read_conversations([write(tmp_path / "c.jsonl")])


GOOD = {"instruction": "q", "output": "a"}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "misspelt": ({"instruction": "q", "ouput": "a"}, "no field 'output'; rename 'ouput'"),
    "missing": ({"instruction": "q"}, "no field 'output'; its fields are instruction"),
    "null": ({"instruction": "q", "output": None}, "the field 'output' is null"),
    "number": ({"instruction": 3, "output": "a"}, "the field 'instruction' is a number, not text"),
    "no user": ({"instruction": " ", "input": "", "output": "a"}, "message 1, the user's, is empty"),
    "surrogate": ({"instruction": "\ud800", "output": "a"}, "half of a surrogate pair"),
    "list": (["q", "a"], "the row is a list, not an object"),
    "tools": ({**GOOD, "tools": "[1"}, "the field 'tools' is not JSON"),
    "tool": ({**GOOD, "tools": ["f"]}, "the field 'tools' is not a list of objects"),
    "history": ({**GOOD, "history": "x"}, "the field 'history' is text, not a list"),
    "round": ({**GOOD, "history": [["x"]]}, "round 1 of 'history' is not a pair"),
    "mixed": ({"question": "q", "answer": "a"}, "the row has the form gsm8k, those before it the form alpaca"),
}
BAD_MESSAGES: dict[str, tuple[Any, str]] = {
    "text": ("hello", "the field 'messages' is text, not a list of messages"),
    "none": ([], "the field 'messages' has no message"),
    "no object": ([user("q"), "a"], "message 2 of 'messages' is text, not an object"),
    "role": ([user("q"), {"role": "bot", "content": "a"}], "has the role 'bot'; it must be one of human, gpt, system"),
    "role missing": ([{"rol": "user", "content": "a"}], "message 1 of 'messages' has no 'role'; rename 'rol'"),
    "null": ([user("q"), {"role": "assistant", "content": None}], "the content of message 2 of 'messages' is null"),
    "parts": ([user("q"), {"role": "assistant", "content": [{"type": "text"}]}], "is a list, not text"),
    "weight": ([user("q"), {**assistant("a"), "weight": 0.5}], "weight of message 2 of 'messages' is 0.5; it must be"),
    "two weights": ([user("q"), {**assistant("a"), "weight": 0, "train": True}], "says both that it is to be learned"),
    "field": ([user("q"), {**assistant("a"), "thinking": ["\ud800"]}], "half of a surrogate pair"),
    "last": ([user("q"), assistant("a"), user("r")], "the last message is from 'user', not 'assistant'"),
}


@pytest.mark.parametrize("name", [*BAD_ROWS, *(f"messages: {name}" for name in BAD_MESSAGES)])
def test_bad_rows_are_named(name: str, tmp_path: Path) -> None:
    if name in BAD_ROWS:
        good, (bad, message) = GOOD, BAD_ROWS[name]
    else:
        value, message = BAD_MESSAGES[name.removeprefix("messages: ")]
        good, bad = {"messages": [user("q"), assistant("a")]}, {"messages": value}
    path = write(tmp_path / "a.jsonl", good, good, bad)
    with pytest.raises(UserError) as error:
        read_conversations([path])
    assert str(error.value).startswith(f"{path}, row 3: ") and message in str(error.value)
    assert "; " in str(error.value) and "\n" not in str(error.value)


def test_unknown_forms_are_told_what_is_near(tmp_path: Path) -> None:
    for row, message in (
        ({"instruction": "q", "outptu": "a"}, "'outptu' may be meant for 'output'; known are messages: messages;"),
        ({"text": "t"}, r"row 1: its fields \(text\) are those of no known form; known are"),
        ({"instruction": "q", "output": None}, "row 1: the field 'output' is null"),
    ):
        with pytest.raises(UserError, match=message):
            read_conversations([write(tmp_path / "a.json", row)])
    with pytest.raises(UserError, match="row 1: no field 'conversations'"):
        read_conversations([write(tmp_path / "a.json", GOOD)], "sharegpt")


def test_forms_are_told_by_file(tmp_path: Path) -> None:
    """Each file has its own; a parquet file has every column in every row."""
    first = write(tmp_path / "a.parquet", {"instruction": "q", "output": "a", "prompt": None, "completion": None})
    second = write(tmp_path / "b.parquet", {"instruction": None, "output": None, "prompt": "q", "completion": "a"})
    assert [pairs(conversation.messages) for conversation in read_conversations([first, second])] == [QA, QA]


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"question": "q", "answer": "a"}).encode()
    for content, message in (
        (good + b"\n{", r"a\.jsonl:2: broken JSON"),
        (good + b'\n{"question": "\xff", "answer": "a"}', "row 2: 1 bytes are not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_conversations([str(path)])
    for name, message in (("a.json", "broken JSON"), ("a.parquet", "not a readable parquet"), ("a.jsonl.gz", "cannot")):
        (tmp_path / name).write_bytes(b"[1")
        with pytest.raises(UserError, match=message):
            read_conversations([str(tmp_path / name)])


PREFERENCES: dict[str, tuple[dict[str, Any], float | None]] = {
    "prompt": ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}, 2.0),
    "prompt as messages": ({"prompt": [user("q")], "chosen": "a", "rejected": "b", "margin": None}, None),
    "alpaca": ({"instruction": "q", "input": "", "output": "x", "chosen": "a", "rejected": "b"}, None),
    "answers as messages": ({"prompt": "q", "chosen": [assistant("a")], "rejected": assistant("b")}, None),
    "whole conversations": (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "score_chosen": 1.5}
        | {"score_rejected": 2},
        None,
    ),
    "both": (
        {"prompt": "q ", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        None,
    ),
}


@pytest.mark.parametrize("suffix", ["json", "parquet"])
@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(name: str, suffix: str, tmp_path: Path) -> None:
    row, margin = PREFERENCES[name]
    path = write(tmp_path / f"a.{suffix}", row)
    (found,) = read_preferences([path])
    assert (pairs(found.prompt), pairs(found.chosen), pairs(found.rejected)) == (QA[:1], QA[1:], [("assistant", "b")])
    assert found.margin == margin and found.place == RowPlace(path, 1)
    (prompt,) = read_prompts([path])
    assert pairs(prompt.messages) == QA[:1]


def test_shared_words_stay_in_the_answers(tmp_path: Path) -> None:
    """The prompt is messages that both begin with, not characters."""
    start = [{"role": "system", "content": "s"}, user("q"), assistant("a"), user("r")]
    chosen = [*start, assistant("The same beginning, good"), user("more"), assistant("last")]
    rejected = [*start, assistant("The same beginning, bad")]
    (found,) = read_preferences([write(tmp_path / "a.json", {"chosen": chosen, "rejected": rejected})])
    assert pairs(found.prompt) == [SYSTEM, *QA, ("user", "r")]
    assert [message.content for message in found.chosen] == ["The same beginning, good", "more", "last"]
    assert [message.content for message in found.rejected] == ["The same beginning, bad"]


def test_pairs_that_teach_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": chosen, "rejected": rejected} for chosen, rejected in ("ab", "aa", ("a", " "))]
    whole = [user("q"), assistant("a")]
    found = read_preferences([write(tmp_path / "a.json", *rows, {"chosen": whole, "rejected": whole})])
    assert [pair.place.number for pair in found] == [1]
    assert found.statistics.dropped == {"whose two answers are the same": 2, "with an empty answer": 1}
    assert found.statistics.rows == 4


BAD_PREFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no prompt (a preference file without prompts); add a field"),
    "no prompt, messages": (
        {"chosen": [assistant("a")], "rejected": [assistant("b")]},
        "no prompt (a preference file without prompts)",
    ),
    "no rejected": ({"prompt": "q", "chosen": "a", "reject": "b"}, "no field 'rejected'; rename 'reject'"),
    "two kinds": ({"prompt": "q", "chosen": "a", "rejected": [assistant("b")]}, "one of chosen and rejected is text"),
    "nothing shared": (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("p"), assistant("b")]},
        "no first message in common",
    ),
    "another prompt": (
        {"prompt": "z", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        "the prompt is not what chosen and rejected begin with",
    ),
    "another question": (
        {"chosen": [user("q"), user("x"), assistant("a")], "rejected": [user("q"), user("y"), assistant("b")]},
        "chosen begins with a message from 'user' where an answer is due",
    ),
    "no answer": (
        {"prompt": "q", "chosen": [assistant("a"), user("x")], "rejected": [assistant("b")]},
        "chosen ends with a message from 'user'",
    ),
    "answered prompt": (
        {"prompt": [user("q"), assistant("a")], "chosen": "a", "rejected": "b"},
        "the prompt ends with an assistant's message",
    ),
    "empty prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, "message 1, the user's, is empty"),
    "margin": ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "is 'big', not a finite number"),
}


@pytest.mark.parametrize("name", BAD_PREFERENCES)
def test_bad_preferences_are_named(name: str, tmp_path: Path) -> None:
    row, message = BAD_PREFERENCES[name]
    path = write(tmp_path / "a.json", {"prompt": "q", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(UserError) as error:
        read_preferences([path])
    assert str(error.value).startswith(f"{path}, row 2: ") and message in str(error.value)


@pytest.mark.parametrize("scale", [None, 0.25])
def test_margins_of_scores_are_asked_for(scale: float | None, tmp_path: Path) -> None:
    answers = {"prompt": "q", "chosen": "a", "rejected": "b"}
    scores = {"score_chosen": 1.5, "score_rejected": 2}
    path = write(tmp_path / "a.json", {**answers, **scores}, {**answers, **scores, "margin": 3}, answers)
    found = read_preferences([path], score_scale=scale)
    assert [pair.margin for pair in found] == [None if scale is None else -0.125, 3.0, None]
    assert [pair.margin for pair in read_preferences([path], margins=False)] == [None] * 3
    one = write(tmp_path / "b.json", {**answers, "score_chosen": 1})
    if scale is None:
        assert read_preferences([one])[0].margin is None
        return
    with pytest.raises(UserError, match="row 1: no field 'score_rejected'"):
        read_preferences([one], score_scale=scale)


def answers_of(path: str) -> list[tuple[str, str]]:
    return [(pair.chosen[0].content, pair.rejected[0].content) for pair in read_preferences([path])]


def test_answers_that_repeat_their_prompt(tmp_path: Path) -> None:
    def row(prompt: str, *answers: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}

    start = "\n\nHuman: Say {}\n\nAssistant:"
    repeated = [row(start.format(word), *(start.format(word) + f" {x}" for x in "ab")) for word in ("hi", "ho")]
    found = read_preferences([write(tmp_path / "a.jsonl", *repeated)])
    assert [pair.prompt[0].content for pair in found] == [start.format("hi"), start.format("ho")]
    assert answers_of(write(tmp_path / "a.jsonl", *repeated)) == [("a", "b"), ("a", "b")]
    code = [row("def f():\n", "def f():\n    return 1", "def f():\n    pass")] * 2
    assert answers_of(write(tmp_path / "b.jsonl", *code)) == [("    return 1", "    pass")] * 2
    # only some, or only one of the two
    for rows, place in (
        ([row("Say hi", "yes", "no"), *repeated], 2),
        ([*repeated, row("Say hi", "Say hi: hi", "no")], 1),
        ([row("Say hi", "Say hi: hi", "no")], 1),
    ):
        with pytest.raises(UserError, match=rf"row {place}: an answer begins with the prompt, as in \d of \d rows"):
            answers_of(write(tmp_path / "c.jsonl", *rows))
    # by chance: a greeting, an echo, one of many
    for rows in (
        [row("Hi", "Hi there", "Hello")],
        [row("Say it", "Say it", "no"), row("Say so", "Say so", "no")],
        [row("Say hi", "Say hi: hi", "no"), *[row("Say ho", "ho", "ha")] * 19],
    ):
        assert answers_of(write(tmp_path / "d.jsonl", *rows)) == [(each["chosen"], each["rejected"]) for each in rows]
    path = write(tmp_path / "d.jsonl", *rows)
    line = f"rows with an answer that begins with the prompt, left as they are: 1 (the first: {path}, row 1)"
    assert read_preferences([path]).statistics.remarks() == [line]
    line = "rows whose answers began with the prompt, which was taken off them: 2"
    assert found.statistics.remarks() == [line]


def test_completions_that_repeat_their_prompt_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "Go on", "completion": text} for text in ("to the sea", "Go on to the sea", "Go on: home")]
    path = write(tmp_path / "a.jsonl", *rows)
    found = read_conversations([path])
    assert [each.messages[1].content for each in found] == [row["completion"] for row in rows]
    line = f"rows with an answer that begins with the prompt, left as they are: 2 (the first: {path}, row 2)"
    assert found.statistics.remarks() == [line]


ROWS_OF_FORMS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "q", "output": "a"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "gsm8k": {"question": "q", "answer": "a"},
    "messages": {"messages": [user("q"), assistant("a")]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
}


def read_form(form: str, path: str) -> Any:
    return (read_preferences if form == "preference" else read_conversations)([path])


@pytest.mark.parametrize("form", ROWS_OF_FORMS)
def test_rows_that_are_not_to_be_learned(form: str, tmp_path: Path) -> None:
    row = ROWS_OF_FORMS[form]
    said = [{"weight": 0}, {"weight": 1.0}, {"train": False}, {"loss": 0.0}, {"loss": None}, {"train": True}]
    rows = read_form(form, write(tmp_path / "a.jsonl", *({**row, **each} for each in said)))
    assert [each.place.number for each in rows] == [2, 5, 6]
    assert rows.statistics.dropped == {"not to be learned by their weight, train or loss": 3}
    assert not rows.statistics.unread
    for field, value in (("weight", 0.5), ("train", "no"), ("loss", -1)):
        with pytest.raises(UserError, match=rf"row 2: the {field} of the row is .*; it must be 0 or 1, .*; rename it"):
            read_form(form, write(tmp_path / "b.jsonl", row, {**row, field: value}))


@pytest.mark.parametrize("form", ROWS_OF_FORMS)
@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
def test_thoughts_of_a_row_are_its_answers(form: str, field: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**ROWS_OF_FORMS[form], field: "so"})
    if form in ("messages", "sharegpt", "preference"):
        with pytest.raises(UserError, match=f"row 1: the field '{field}' .*message.*, or remove it"):
            read_form(form, path)
        return
    (found,) = rows = read_form(form, path)
    assert pairs(found.messages) == QA and not rows.statistics.unread
    assert [dict(message.fields) for message in found.messages] == [{}, {field: "so"}]


@pytest.mark.parametrize("form", ROWS_OF_FORMS)
def test_fields_that_would_change_a_conversation_are_refused(form: str, tmp_path: Path) -> None:
    row = ROWS_OF_FORMS[form]
    for field, value, fix in (
        ("functions", [{"name": "f"}], "rename it to tools"),
        ("documents", [{"text": "d"}], "put what they say into the system's message"),
        ("chat_template_kwargs", {"enable_thinking": False}, "change the model's chat template"),
    ):
        assert len(read_form(form, write(tmp_path / "a.jsonl", {**row, field: None}))) == 1
        with pytest.raises(UserError, match=f"row 1: the field '{field}' is not read; {fix}"):
            read_form(form, write(tmp_path / "a.jsonl", {**row, field: value}))
    turns = next((name for name in ("messages", "conversations") if name in row), None)
    for field in ("masked", "mask", "training") if turns else ():
        first, last = row[turns]
        with pytest.raises(UserError, match=rf"message 2 of '{turns}' has '{field}', .*; say with weight 0 or 1"):
            read_form(form, write(tmp_path / "a.jsonl", {turns: [first, {**last, field: False}]}))


HISTORY = [["earlier", "said"], ["then", "done"]]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "x", "output": "a", "history": HISTORY, "system": "s"},
        {"prompt": "q\n\nx", "completion": "a", "history": HISTORY, "system": "s"},
        {"question": "q\n\nx", "answer": "a", "history": HISTORY, "system": "s"},
    ],
)
@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_history_is_earlier_turns(row: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    prompt = [SYSTEM, ("user", "earlier"), ("assistant", "said"), ("user", "then"), ("assistant", "done")]
    prompt.append(("user", "q\n\nx"))
    path = write(tmp_path / f"a.{suffix}", row)
    (found,) = rows = read_conversations([path])
    assert pairs(found.messages) == [*prompt, ("assistant", "a")] and not rows.statistics.unread
    assert pairs(read_prompts([path])[0].messages) == prompt
    pair = write(tmp_path / f"b.{suffix}", {**row, "chosen": "a", "rejected": "b"})
    assert pairs(read_preferences([pair])[0].prompt) == prompt


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("sharegpt", [False, True])
def test_turns_that_are_not_to_be_learned(key: str, sharegpt: bool, tmp_path: Path) -> None:
    said = [(user("q"), None), (assistant("x"), False), (user("r"), None), (assistant("y"), True)]
    turns = [
        {**turn, **({} if value is None else {key: value if key != "weight" else int(value)})} for turn, value in said
    ]
    if sharegpt:
        turns = [{"from": t.pop("role"), "value": t.pop("content"), **t} for t in turns]
    (found,) = rows = read_conversations(
        [write(tmp_path / "a.parquet", {"conversations" if sharegpt else "messages": turns})]
    )
    assert [message.learned for message in found.messages] == [None, False, None, True]
    assert not any(message.fields for message in found.messages) and not rows.statistics.unread


CALL = {"type": "function", "function": {"name": "find", "arguments": {"city": "Rome"}}}
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": {"properties": {"city": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "count", "parameters": {"properties": {"most": {"type": "integer"}}}}},
]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_tools_calls_and_thoughts(tools: Any, name: str, tmp_path: Path) -> None:
    """A table fills up with nulls what one row or one object has and others have not."""
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    answer = {**assistant("warm"), "reasoning_content": "it is"}
    rows = [
        {"tools": tools, "messages": [{"role": "system", "content": "s"}, user("q"), call, answer]},
        {"tools": None, "messages": [user("q"), {**assistant("a"), "name": "x"}]},
    ]
    first, second = read_conversations([write(tmp_path / name, *rows)])
    assert first.messages[0].tools == TOOLS and not any(message.tools for message in first.messages[1:])
    assert [dict(message.fields) for message in first.messages] == [
        {},
        {},
        {"tool_calls": [CALL]},
        {"reasoning_content": "it is"},
    ]
    assert (
        first.messages[2].content == "" and second.messages[1].fields == {"name": "x"} and not second.messages[0].tools
    )
    pair = {"tools": tools, "prompt": "q", "system": "s", "chosen": "a", "rejected": "b"}
    for messages in (
        read_preferences([write(tmp_path / f"b{name}", pair)])[0].prompt,
        read_prompts([str(tmp_path / f"b{name}")])[0].messages,
    ):
        assert messages[0].tools == TOOLS and messages[0].role == "system"


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    row = {"id": 1, "source": "", "tags": [], "output": "x", "messages": [user("q"), assistant("a")]}
    rows = read_conversations([write(tmp_path / "a.jsonl", row, {**row, "id": 0, "system": None, "tags": ["x"]})])
    assert rows.statistics.lines()[-1] == (
        "columns that are not read, with the rows that have them: id (2), output (2), tags (1)"
    )
    system = {"role": "system", "content": "t"}
    rows = read_conversations(
        [write(tmp_path / "b.jsonl", {"messages": [system, user("q"), assistant("a")], "system": "s"})]
    )
    assert rows.statistics.unread == {"system": 1}
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1, "score_chosen": 2, "score_rejected": 1}
    path = write(tmp_path / "c.jsonl", pair)
    assert read_preferences([path]).statistics.unread == {"score_chosen": 1, "score_rejected": 1}
    assert read_preferences([path], score_scale=1.0).statistics.unread == {"score_chosen": 1, "score_rejected": 1}
    assert read_preferences([path], margins=False).statistics.unread["margin"] == 1
    del pair["margin"]
    assert not read_preferences([write(tmp_path / "d.jsonl", pair)], score_scale=1.0).statistics.unread


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("value", "message"),
    [("[" * 100_000 + "]" * 100_000, "nested more than"), ("9" * 5000, "an integer of thousands of digits")],
)
@pytest.mark.parametrize("read", [read_conversations, read_preferences, read_prompts])
def test_json_that_python_cannot_read(name: str, value: str, message: str, read: Any, tmp_path: Path) -> None:
    good = json.dumps({"prompt": "q [{", "completion": "a", "chosen": "a", "rejected": "b", "n": [[1, {}], 2]})
    rows = [good, good, good[:-1] + f', "x": {value}}}', good]
    path = tmp_path / name
    path.write_text("\n".join(rows) if name == "a.jsonl" else f"[ {', '.join(rows)}]")
    with pytest.raises(UserError, match=message) as error:
        read([str(path)])
    assert str(error.value).startswith(f"{path}:3: " if name == "a.jsonl" else f"{path}, row 3: ")
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_prompts(tmp_path: Path) -> None:
    rows = [{"messages": [user("q"), assistant("a"), user("r")], "target": 3}, {"prompt": "p", "answer": ["x"]}]
    found = read_prompts([write(tmp_path / "a.jsonl", *rows)])
    assert [pairs(prompt.messages) for prompt in found] == [[*QA, ("user", "r")], [("user", "p")]]
    assert [prompt.fields for prompt in found] == rows
    for row, message in (
        ({"text": "t"}, r"row 1: no prompt \(its fields: text\); name it prompt"),
        ({"messages": [assistant("a")]}, "row 1: the prompt is empty"),
    ):
        with pytest.raises(UserError, match=message):
            read_prompts([write(tmp_path / "a.jsonl", row)])


def test_real_rows(shared_data: Path) -> None:
    instructions = read_conversations([str(shared_data / "instructions.json")])
    assert (len(instructions), instructions.statistics.dropped) == (1000, {})
    assert instructions[0].messages[0].content == (
        "Evaluate the following phrase by transforming it into the spelling given.\n\nfreind --> friend"
    )
    assert instructions[2].messages[0].content == "Convert 45 kilometers to meters."
    preferences = read_preferences([str(shared_data / "preferences.json")])
    assert len(preferences) == 994
    assert preferences.statistics.dropped == {"whose two answers are the same": 6}
    assert preferences[0].prompt == instructions[0].messages[:1]
    assert preferences[2].chosen[0].content == "45 kilometers is equivalent to 45000 meters."
    questions = read_conversations([str(shared_data / "gsm8k_train.jsonl")])
    assert len(questions) == 7473 and questions[-1].messages[1].content.splitlines()[-1].startswith("#### ")
    prompts = read_prompts([str(shared_data / "gsm8k_train.jsonl")])
    assert [prompt.messages for prompt in prompts] == [question.messages[:1] for question in questions]
    assert prompts[0].fields["answer"].endswith("#### 72")
