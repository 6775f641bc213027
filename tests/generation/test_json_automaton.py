"""The automaton of JSON objects beside Python's own reader."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from lit_llm.generation.json_text import MOST_LEVELS, json_object


def taken(text: bytes) -> bool:
    """Whether the automaton takes a whole text."""
    automaton = json_object()
    return bool(automaton.final[automaton.after(0, text)])


VALUES: list[dict[str, Any]] = [
    {},
    {"": ""},
    {"a": [1, 0, -0.5, 2.5e3, -1e-7, 10**20, True, False, None]},
    {'é€𝄞\x80߿ࠀ퟿\U0010ffff"\\/\b\f\n\r\t\x01': 'é€𝄞"\\\x1f'},
    {"a": [[], {}, [[]], {"b": {"c": [{}]}}], "b": {"x": 1, "y": [2, "3"]}},
]


@pytest.mark.parametrize("value", VALUES)
def test_objects_are_taken(value: dict[str, Any]) -> None:
    for options in ({}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"separators": (" , ", ": ")}):
        assert taken(json.dumps(value, **options).encode())
    assert not taken(json.dumps(value).encode()[:-1]) and not taken(json.dumps(value).encode() + b" ")


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b"[]",
            b"1",
            b'"a"',
            b'{"a":01}',
            b'{"a":1.}',
            b'{"a":.5}',
            b'{"a":+1}',
            b'{"a":1e}',
            b'{"a":--1}',
            b'{"a":-}',
        ),
        *(b'{"a":1,}', b'{"a":[1,]}', b"{a:1}", b'{"a":tru}', b'{"a" 1}', b'{"a":"\n"}', b'{"a":1]}', b'{"a":NaN}'),
        *(b'{"a":"\\x"}', b'{"a":"\\u00g0"}', b"{'a':1}", b'{"a":1}}', b'{"a"}', b"{,}", b'{"a":1 2}'),
        *(b'"\xc0\x80"', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xf4\x90\x80\x80"}', b'{"a":"\xe2\x82"}', b'{"a":"\xff"}'),
    ],
)
def test_what_is_none_is_not_taken(text: bytes) -> None:
    assert not taken(text)


def test_whatever_is_taken_is_read_by_others() -> None:
    """Texts with a byte changed, left out or doubled."""
    chance = random.Random(0)
    count = 0
    for value in VALUES * 40:
        text = bytearray(json.dumps(value, ensure_ascii=chance.random() < 0.5).encode())
        place = chance.randrange(len(text))
        change = chance.choice(
            [b"", bytes([text[place]] * 2), bytes([chance.choice(text)]), bytes([chance.randrange(256)])]
        )
        text[place : place + 1] = change
        if taken(bytes(text)):
            count += 1
            assert isinstance(json.loads(bytes(text)), dict), bytes(text)
    assert count > 20


def test_levels_are_counted() -> None:
    for levels, whole in ((MOST_LEVELS, True), (MOST_LEVELS + 1, False)):
        inner = levels - 1
        assert taken(b'{"a":' + b"[" * inner + b"]" * inner + b"}") == whole


def test_every_state_can_come_to_an_end() -> None:
    """No text is led to where it cannot go on."""
    automaton = json_object()
    ends = set(automaton.final.nonzero()[0].tolist())
    while True:
        before = len(ends)
        for row in automaton.table:
            ends |= {state for state, following in enumerate(row.tolist()) if following in ends}
        if len(ends) == before:
            break
    assert len(ends) == automaton.dead  # all but the dead end
