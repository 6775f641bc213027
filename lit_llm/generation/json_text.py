"""The automaton of JSON objects, which texts are held to where any object will do (RFC 8259)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from lit_llm.generation.automata import Automaton

MOST_LEVELS = 6
"""Most objects and lists inside one another: an automaton can count no further than it has states."""

# A state is the open brackets, outermost first, and what comes next. Of strings: "k" are names and "s" values.
_State = tuple[str, str]
_LITERALS = ("true", "false", "null")
# The lead bytes of UTF-8 with the range of the byte after them, and how many follow that one (RFC 3629, section 4).
_LEADS = (
    (range(0xC2, 0xE0), range(0x80, 0xC0), 0),
    (range(0xE0, 0xE1), range(0xA0, 0xC0), 1),
    (range(0xE1, 0xED), range(0x80, 0xC0), 1),
    (range(0xED, 0xEE), range(0x80, 0xA0), 1),
    (range(0xEE, 0xF0), range(0x80, 0xC0), 1),
    (range(0xF0, 0xF1), range(0x90, 0xC0), 2),
    (range(0xF1, 0xF4), range(0x80, 0xC0), 2),
    (range(0xF4, 0xF5), range(0x80, 0x90), 2),
)
_DIGITS, _HEXADECIMAL = frozenset(b"0123456789"), frozenset(b"0123456789abcdefABCDEF")
_NUMBER_ENDS = {"zero", "int", "fraction", "exponent"}


@lru_cache(maxsize=1)
def json_object() -> Automaton:
    """Return the automaton of objects, with at most one space between their parts and `MOST_LEVELS` levels."""
    start: _State = ("", "value of the text")
    numbers, waiting = {start: 0}, [start]
    rows: list[list[int]] = []
    kinds, members = _kinds_of_bytes()
    while waiting:
        state = waiting.pop(0)
        row = []
        for byte in members:
            following = _after(*state, byte)
            if following is not None and following not in numbers:
                numbers[following] = len(numbers)
                waiting.append(following)
            row.append(-1 if following is None else numbers[following])
        rows.append(row)
    states = len(numbers)
    table = np.full((len(members), states + 1), states, dtype=np.int32)
    table[:, :states] = np.where(np.array(rows).T < 0, states, np.array(rows).T)
    final = np.zeros(states + 1, dtype=bool)
    final[numbers["", "end"]] = True
    return Automaton(table, kinds, final)


def _kinds_of_bytes() -> tuple[np.ndarray, list[int]]:
    """Return the kind of each byte, where those of a kind are never told apart, and a member of each kind."""
    sets: list[Iterable[int]] = [[byte] for byte in b'{}[]"\\/,:-+. 0eEtrufalsnb']
    sets += [b"123456789", b"cdABCDF", range(0x80, 0x90), range(0x90, 0xA0), range(0xA0, 0xC0)]
    sets += [lead for lead, _, _ in _LEADS]
    # what is left: may stand in a string, or nowhere
    sets += [range(0x20, 0x7F), range(0x100)]
    kinds = np.full(256, -1)
    members = []
    for numbered in sets:
        free = [byte for byte in numbered if kinds[byte] < 0]
        if free:
            kinds[free] = len(members)
            members.append(free[0])
    return kinds, members


def _after(stack: str, mode: str, byte: int) -> _State | None:
    """Return the state that a byte leads to, or None where it may not come."""
    letter = chr(byte)
    if mode.startswith(("k", "s")):
        inner = _after_in_string(mode[1:], byte)
        if inner == "over":
            return (stack, "colon") if mode[0] == "k" else _after_value(stack)
        return None if inner is None else (stack, mode[0] + inner)
    if mode.startswith("literal "):
        rest = mode.removeprefix("literal ")
        if rest[0] != letter:
            return None
        return (stack, f"literal {rest[1:]}") if rest[1:] else _after_value(stack)
    if mode.startswith("number "):
        return _after_in_number(stack, mode.removeprefix("number "), byte)
    if letter == " ":
        return (stack, mode.removesuffix(" ")) if mode.endswith(" ") else None
    return _after_part(stack, mode.removesuffix(" "), letter)


def _after_part(stack: str, mode: str, letter: str) -> _State | None:
    """Return what comes after a letter outside of strings, numbers and words."""
    if mode == "value of the text":
        return ("{", "first name ") if letter == "{" else None
    if mode == "colon":
        return (stack, "value ") if letter == ":" else None
    if mode in ("first name", "name"):
        if letter == "}" and mode == "first name":
            return _after_value(stack[:-1])
        return (stack, "k") if letter == '"' else None
    if mode == "next":
        if letter == ",":
            return stack, "name " if stack[-1] == "{" else "value "
        return _after_value(stack[:-1]) if letter == {"{": "}", "[": "]"}[stack[-1]] else None
    if mode == "first value" and letter == "]":
        return _after_value(stack[:-1])
    return _begin_value(stack, letter) if mode in ("first value", "value") else None


def _begin_value(stack: str, letter: str) -> _State | None:
    if letter == '"':
        return stack, "s"
    if letter in "{[":
        if len(stack) == MOST_LEVELS:
            return None
        return stack + letter, "first name " if letter == "{" else "first value "
    if letter in "-0123456789":
        return stack, "number " + {"-": "minus", "0": "zero"}.get(letter, "int")
    word = next((word for word in _LITERALS if word[0] == letter), None)
    return None if word is None else (stack, f"literal {word[1:]}")


def _after_value(stack: str) -> _State:
    return (stack, "next ") if stack else ("", "end")


def _after_in_number(stack: str, place: str, byte: int) -> _State | None:
    letter = chr(byte)
    following = None
    if byte in _DIGITS:
        begun = "zero" if letter == "0" else "int"
        digits = {"minus": begun, "int": "int", "point": "fraction", "fraction": "fraction"}
        following = digits.get(place, None if place == "zero" else "exponent")
    elif letter == "." and place in ("zero", "int"):
        following = "point"
    elif letter in "eE" and place in ("zero", "int", "fraction"):
        following = "e"
    elif letter in "+-" and place == "e":
        following = "sign"
    if following is not None:
        return stack, f"number {following}"
    if place not in _NUMBER_ENDS:
        return None
    return (stack, "next") if letter == " " else _after_part(stack, "next", letter)


def _after_in_string(place: str, byte: int) -> str | None:
    """Return the place in a string after a byte, "over" after its end; "" is where a character begins."""
    letter = chr(byte)
    if place == "":
        if letter == '"':
            return "over"
        if letter == "\\":
            return "\\"
        if 0x20 <= byte < 0x7F:
            return ""
        return next((f"lead {index}" for index, (lead, _, _) in enumerate(_LEADS) if byte in lead), None)
    if place == "\\":
        return "u4" if letter == "u" else "" if letter in '"\\/bfnrt' else None
    if place.startswith("u"):
        left = int(place[1:]) - 1
        return None if byte not in _HEXADECIMAL else f"u{left}" if left else ""
    if place.startswith("lead "):
        _, second, more = _LEADS[int(place[5:])]
        return None if byte not in second else f"more {more}" if more else ""
    left = int(place[5:]) - 1  # "more"
    return None if byte not in range(0x80, 0xC0) else f"more {left}" if left else ""
