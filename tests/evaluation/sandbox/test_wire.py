"""Plain values on their way out of a sandbox."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest

from lit_llm.evaluation.sandbox.inside.wire import Opaque, pack, unpack


def over(value: Any) -> Any:
    return unpack(json.loads(json.dumps(pack(value))))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**53),
        10**5000,
        "a\n\ud800\0",
        0.1,
        -0.0,
        math.inf,
        [1, [2.0, (3, "x")], {}],
        {"a": {1, 2}, (1, 2): frozenset([b"x"]), 3: None},
        bytearray(b"ab"),
        1 + 2j,
        range(1, 9, 2),
        Fraction(1, 3),
        Decimal("0.10"),
        deque([1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_cross(value: Any) -> None:
    got = over(value)
    assert got == value
    assert type(got) is (bytes if isinstance(value, bytearray) else type(value))
    assert math.copysign(1, got) == math.copysign(1, value) if isinstance(value, float) else True


def test_not_a_number_crosses() -> None:
    assert math.isnan(over(math.nan))


class Equal:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class EqualNumber(int):
    __eq__ = Equal.__eq__
    __hash__ = int.__hash__


class EqualList(list):
    __eq__ = Equal.__eq__
    __hash__ = None  # type: ignore[assignment]


class Colour(IntEnum):
    RED = 3


def test_derived_values_cross_as_their_base() -> None:
    for value, plain in (
        (EqualNumber(3), 3),
        (EqualList([1]), [1]),
        (Colour.RED, 3),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
    ):
        got = over(value)
        assert type(got) is type(plain) and got == plain
    assert over(EqualNumber(3)) != 4 and over(EqualList([1])) != [2]


def test_other_objects_equal_nothing() -> None:
    for value in (Equal(), print, int, object(), (number for number in [1])):
        got = over([value])[0]
        assert isinstance(got, Opaque) and got != over([value])[0] and got not in (0, 1, None, "", [])
    assert repr(over(Equal())) == "<Equal>"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        "{}",
        '{"i": 1}',
        '{"t": 3}',
        '{"s": [[]]}',
        '{"n": ["1", "0x0"]}',
        '{"i": "0x1", "t": []}',
        '{"d": [1]}',
    ],
)
def test_forged_values_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        unpack(json.loads(text))
