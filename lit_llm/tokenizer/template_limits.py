"""A sandbox for templates of strangers: they reach nothing, and neither run for long nor make much.

Jinja's own sandbox keeps a template from Python's internals. Here every loop's turn, call, filter, test and operator of
it counts as a step, every value that it makes takes from the room that it has, and what could make a large value at one
stroke is estimated before it is done.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError, nodes, runtime
from jinja2.compiler import CodeGenerator
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
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_environment

MAX_SOURCE = 100_000
"""Characters of a template; published ones have up to 20,000."""
SECONDS = 3.0
"""Processor time of a rendering, and more for long conversations; what a step can take is bounded by the room."""
ROOM = 4_000_000
"""Characters that a rendering may make, counting each value that is made on the way, besides 100 for each character
of the conversation."""
STEPS = 200_000
"""Steps of a rendering, besides those for the turns of the conversation."""

_MAX_DEPTH = 100  # of lists in lists, as a template makes them
_MAX_WIDTH = 1_000  # of padding, precision and the like
_MAX_BITS = 10_000  # of an integer
_STR_METHODS = frozenset(
    re.findall(
        r"\w+",
        "capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha isascii "
        "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip "
        "partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines "
        "startswith strip swapcase title upper zfill",
    )
)
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    bytes: frozenset(),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    int: frozenset(),
    float: frozenset({"is_integer"}),
    type: frozenset(),
}
# for HTML pages, or not the same at each call
_REMOVED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
# whose time is a product of two lengths
_SLOW_METHODS = frozenset({"strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"})


class TemplateLimit(TemplateRuntimeError):
    """A template asks for more time or room than any conversation needs."""


class _Work:
    """What a rendering may still do."""

    def __init__(self, size: int, turns: int) -> None:
        self.room = ROOM + 100 * size
        self.steps = STEPS + 2 * size + 1_000 * turns + 10 * turns**2
        self.deadline = time.thread_time() + SECONDS + turns / 100

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TemplateLimit("it takes too many steps")
        if not self.steps % 16 and time.thread_time() > self.deadline:
            raise TemplateLimit("it takes too long")

    def spend(self, units: float) -> None:
        self.room -= units
        if self.room < 0:
            raise TemplateLimit("what it makes is too large")

    def afford(self, units: float) -> None:
        if units > self.room:
            raise TemplateLimit("what it makes is too large")


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


class _Namespace(Namespace):
    def __repr__(self) -> str:  # Jinja's writes out what is in it, which may have grown since it was measured
        return "<Namespace>"


class _Counting(CodeGenerator):
    """Has lists, tuples, mappings and slices measured where they are made."""

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self._measured(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self._measured(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx == "load":
            self._measured(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Any) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._measured(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _measured(self, visit: Callable[[Any, Any], None], node: nodes.Node, frame: Any) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up, within limits. Work outside `limited` has the limits of an empty conversation.

    Args:
        options: as of Jinja's environment.
    """

    code_generator_class = _Counting
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self.written, **options)
        self._local = threading.local()
        del self.globals["lipsum"]
        self.globals.update(namespace=_Namespace, raise_exception=_raise_exception)
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters.update(_FILTERS)
        self.filters = {name: self._counted(function) for name, function in self.filters.items()}
        self.tests = {name: self._counted(function) for name, function in self.tests.items()}

    @property
    def work(self) -> _Work:
        """That of this thread's rendering."""
        if not hasattr(self._local, "work"):
            self.begin(0, 0)
        return self._local.work

    def begin(self, size: int, turns: int) -> None:
        """Begin a rendering of a conversation of so many characters and turns."""
        self._local.work = _Work(size, turns)

    def step(self) -> bool:
        """Count a step; true, so that a condition can begin with it."""
        self.work.step()
        return True

    def made(self, value: Any) -> Any:
        """A value, after its room is taken."""
        self.work.spend(measure(value, self.work.room)[0])
        return value

    def written(self, value: Any) -> Any:
        """A value that is about to be written as text. Text itself is counted where it is joined."""
        return value if isinstance(value, str) else self.made(value)

    def concat(self, pieces: Iterable[str]) -> str:
        """Jinja's way to join what a macro, a block or a template wrote."""
        kept = []
        for piece in pieces:
            self.work.spend(len(piece))
            kept.append(piece)
        return "".join(kept)

    def str_join(self, values: Iterable[Any]) -> str:
        """The operator ~."""
        self.step()
        return self.concat(str(self.written(value)) for value in values)

    def markup_join(self, values: Iterable[Any]) -> str:
        """The operator ~ where text is escaped."""
        return self.made(runtime.markup_join([self.made(value) for value in values]))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """See Jinja."""
        self.step()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See Jinja."""
        self.step()
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """See Jinja."""
        self.step()
        self.work.afford(_binop_room(operator, left, right, self.work.room))
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """See Jinja."""
        self.step()
        function = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
        if kind is not None:
            if name not in _METHODS[kind]:
                raise TemplateRuntimeError(f"it calls {kind.__name__}.{name}, which no chat template needs")
            if kind is str:
                if name == "join" and args:
                    args = (list(args[0]), *args[1:])
                self.work.afford(_method_room(owner, name, args, kwargs, self.work.room))
        return self.made(super().call(context, obj, *args, **kwargs))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # also what Jinja has noted of its arguments
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return self.made(function(*args, **kwargs))

        return counted

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        for loop in source.find_all(nodes.For):
            count = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None, lineno=loop.lineno)
            loop.body.insert(0, nodes.ExprStmt(count, lineno=loop.lineno))
            if loop.test is not None:
                loop.test = nodes.And(count, loop.test, lineno=loop.lineno)
        source.set_environment(self)
        code = super()._generate(source, name, filename, defer_init)
        return f"{code}\nstr_join, markup_join = environment.str_join, environment.markup_join\n"


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _binop_room(operator: str, left: Any, right: Any, room: float) -> float:
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


def _method_room(text: str, name: str, args: Any, kwargs: Any, room: float) -> float:
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
def _indent(environment: LimitedEnvironment, s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    each = len(width) if isinstance(width, str) else _width(width)
    environment.work.afford(len(s) + each * (s.count("\n") + 2))
    return do_indent(s, width, first, blank)


@pass_environment
def _join(environment: LimitedEnvironment, value: Any, d: Any = "", attribute: Any = None) -> str:
    # without escaping, as templates of chats are rendered
    values = list(value)
    if attribute is not None:
        values = list(map(make_attrgetter(environment, attribute), values))
    environment.work.afford(_join_room(str(d), values, environment.work.room))
    return str(d).join(map(str, values))


@pass_environment
def _replace(environment: LimitedEnvironment, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    environment.work.afford(_replace_room(str(environment.written(s)), str(old), str(new)))
    return str(s).replace(str(old), str(new), -1 if count is None else count)


@pass_environment
def _format(environment: LimitedEnvironment, value: Any, *args: Any, **kwargs: Any) -> str:
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
def _sum(environment: LimitedEnvironment, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise TemplateLimit("it adds up what is not numbers")
    return sync_do_sum(environment, iterable, attribute, start)


def _trim(value: Any, chars: str | None = None) -> str:
    if isinstance(chars, str) and len(chars) > _MAX_WIDTH:
        raise TemplateLimit("it takes too long")
    return do_trim(value, chars)


@pass_environment
def _to_json(
    environment: LimitedEnvironment,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes it: Jinja's own escapes for HTML."""
    units, depth = measure(value, environment.work.room)
    each = len(indent) if isinstance(indent, str) else _width(indent)
    each = each * (depth + 1) + sum(map(len, separators or ()))
    environment.work.afford(units * 6 + units // 8 * each)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_FILTERS: dict[str, Callable[..., Any]] = {
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
