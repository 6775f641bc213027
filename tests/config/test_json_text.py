"""JSON from outside: read as json reads it, or refused in one line."""

from __future__ import annotations

import json

import pytest

from lit_llm.config.json_text import MAX_DEPTH, parse_json


def test_what_is_read() -> None:
    value = {"a": [1, -2.5, None, True], "é": {"b": "\ud83d"}, "n": 10**4000}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps({"é": "北"}, ensure_ascii=False).encode("utf-8-sig")) == {"é": "北"}
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deepest)) == deepest
    assert len(parse_json("[" + ",".join(["{}"] * 1000) + "]")) == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "it is nested more than 200 deep"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "it is nested more than 200 deep"),
        ('{"a": ' + "9" * 5000 + "}", "it has an integer of thousands of digits"),
        (b'{"a": "\xff"}', r"it is not UTF-8 \(at byte 7\)"),
        ('{"a": }', "Expecting value: line 1 column 7"),
        ("", "Expecting value"),
    ],
)
def test_what_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_json(text)
    assert len(str(error.value)) < 80 and "\n" not in str(error.value)
