"""JSON of strangers: its value, or one line."""

from __future__ import annotations

import pytest

from lit_llm.config.json_text import parse_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        ('{"a": "ü"}'.encode(), {"a": "ü"}),
        (b"\xef\xbb\xbf[1]", [1]),
        ("\ufeff7", 7),
        ("[" * 200 + "]" * 200, None),
    ],
)
def test_the_value_of_a_text(text: str | bytes, value: object) -> None:
    found = parse_json(text)
    assert value is None or found == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", "a whole number of more than 4300 digits"),
        (b'{"a": "\xff\xfe"}', r"not UTF-8 \(byte 0xFF at 7\)"),
        ('{"a":\n  1,,}', "at line 2, column 5"),
        ("", "at line 1, column 1"),
    ],
)
def test_what_is_wrong_is_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_json(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 120
