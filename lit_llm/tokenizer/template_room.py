"""How large a value would be that a template asks for, computed before it is made; and filters that check it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.filters import (
    do_batch,
    do_center,
    do_format,
    do_indent,
    do_round,
    do_trim,
    make_attrgetter,
    sync_do_slice,
    sync_do_sum,
)
from jinja2.utils import pass_environment

_MAX_DEPTH = 100  # of lists in lists, as a template makes them
_MAX_WIDTH = 1_000  # of padding, precision and the like
_MAX_BITS = 10_000  # of an integer
# whose time is a product of two lengths
_SLOW_METHODS = frozenset({"strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"})


class TemplateLimit(TemplateRuntimeError):
    """A template asks for more time or room than any conversation needs."""


def measure(value: Any, most: float) -> tuple[int, int]:
    """How large a value is when it is written out, and how deep.

    Characters count 1, entries of lists and mappings 8, and what is there several times counts each time.

    Raises:
        TemplateLimit: more than `most`.
    """
    if isinstance(value, str | bytes):
        return len(value), 0
    units, depth, level = 0, 0, [value]
    while level:
        following: list[Any] = []
        for item in level:
            if isinstance(item, str | bytes):
                units += len(item)
            elif isinstance(item, Mapping):
                units += 16 * len(item)
                following += [*item.keys(), *item.values()] if units <= most else []
            elif isinstance(item, list | tuple):
                units += 8 * len(item)
                following += item if units <= most else []
            elif isinstance(item, int):
                units += item.bit_length() // 8 + 1
            else:
                units += 1
            if units > most:
                raise TemplateLimit("what it makes is too large")
        level, depth = following, depth + bool(following)
        if depth > _MAX_DEPTH:
            raise TemplateLimit("what it makes is nested too deeply")
    return units, depth


def binop_room(operator: str, left: Any, right: Any, room: float) -> float:
    """Room that the result of an operator takes at most."""
    if operator == "%":
        return _percent_room(left, right, room) if isinstance(left, str) else 0
    if operator == "+":
        return len(left) + len(right) if isinstance(left, str) and isinstance(right, str) else 0
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_BITS:
            raise TemplateLimit("what it makes is too large")
        return 0
    for one, other in ((left, right), (right, left)):
        if isinstance(one, int) and not isinstance(other, float):
            return max(one, 0) * (measure(other, room)[0] + 8)
    return 0


def _percent_room(text: str, values: Any, room: float) -> float:
    numbers = values if isinstance(values, tuple) else ()
    too_wide = re.search(r"[%)][#0\- +]*(?:\d*\.)?\d{4,}", text)
    if too_wide or ("*" in text and any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in numbers)):
        raise TemplateLimit("it pads too much")
    return len(text) + text.count("%") * (measure(values, room)[0] + _MAX_WIDTH)


def _format_room(text: str, args: Any, kwargs: Any, room: float) -> float:
    if re.search(r"\{[^}]*(?:\{|\d{4,})", text.replace("{{", "")):
        raise TemplateLimit("it pads too much")
    return len(text) + text.count("{") * (measure([args, kwargs], room)[0] + _MAX_WIDTH)


def _width(value: Any) -> int:
    """A width, precision or number of columns, if it is one."""
    if isinstance(value, int) and abs(value) > _MAX_WIDTH:
        raise TemplateLimit("it pads too much")
    return value if isinstance(value, int) else 0


def _join_room(separator: str, values: list[Any], room: float) -> float:
    return measure(values, room)[0] + len(separator) * len(values)


def _replace_room(text: str, old: str, new: str) -> float:
    return len(text) + text.count(old) * len(new)


def method_room(text: str, name: str, args: Any, kwargs: Any, room: float) -> float:
    """Room that what a method of text returns takes at most; 0 where that is no more than the text."""
    if name in ("format", "format_map"):
        return _format_room(text, args, kwargs, room)
    if name in ("center", "ljust", "rjust", "zfill") and args:
        _width(args[0])
    if name == "expandtabs":
        return len(text) + text.count("\t") * _width(next(iter((*args, *kwargs.values())), 8))
    if name == "join" and args:
        return _join_room(text, args[0], room)
    if name == "replace" and len(args) > 1 and all(isinstance(each, str) for each in args[:2]):
        return _replace_room(text, *args[:2])
    if name in _SLOW_METHODS and any(isinstance(each, str) and len(each) > _MAX_WIDTH for each in args):
        raise TemplateLimit("it takes too long")
    return 0


def _center(value: Any, width: int = 80) -> str:
    _width(width)
    return do_center(value, width)


@pass_environment
def _indent(environment: Any, s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    each = len(width) if isinstance(width, str) else _width(width)
    environment.work.afford(len(s) + each * (s.count("\n") + 2))
    return do_indent(s, width, first, blank)


@pass_environment
def _join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    # without escaping, as templates of chats are rendered
    values = list(value)
    if attribute is not None:
        values = list(map(make_attrgetter(environment, attribute), values))
    environment.work.afford(_join_room(str(d), values, environment.work.room))
    return str(d).join(map(str, values))


@pass_environment
def _replace(environment: Any, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    environment.work.afford(_replace_room(str(environment.written(s)), str(old), str(new)))
    return str(s).replace(str(old), str(new), -1 if count is None else count)


@pass_environment
def _format(environment: Any, value: Any, *args: Any, **kwargs: Any) -> str:
    environment.work.afford(_percent_room(str(value), kwargs or args, environment.work.room))
    return do_format(value, *args, **kwargs)


def _round(value: Any, precision: int = 0, method: Any = "common") -> Any:
    if abs(_width(precision)) > 300:
        raise TemplateLimit("it rounds to too many digits")
    return do_round(value, precision, method)


def _batch(value: Any, linecount: int, fill_with: Any = None) -> Any:
    _width(linecount)
    return do_batch(value, linecount, fill_with)


def _slice(value: Any, slices: int, fill_with: Any = None) -> Any:
    _width(slices)
    return sync_do_slice(value, slices, fill_with)


@pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise TemplateLimit("it adds up what is not numbers")
    return sync_do_sum(environment, iterable, attribute, start)


def _trim(value: Any, chars: str | None = None) -> str:
    if isinstance(chars, str) and len(chars) > _MAX_WIDTH:
        raise TemplateLimit("it takes too long")
    return do_trim(value, chars)


@pass_environment
def _to_json(
    environment: Any,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does; Jinja's own filter would escape it for HTML."""
    units, depth = measure(value, environment.work.room)
    each = len(indent) if isinstance(indent, str) else _width(indent)
    each = each * (depth + 1) + sum(map(len, separators or ()))
    environment.work.afford(units * 6 + units // 8 * each)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


FILTERS: dict[str, Callable[..., Any]] = {
    "batch": _batch,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _slice,
    "sum": _sum,
    "tojson": _to_json,
    "trim": _trim,
}
