"""A sandbox for chat templates from outside: they reach nothing, and their time and memory are bounded.

Jinja's own sandbox keeps a template from Python's internals. Here every loop's turn, call, filter, test and operator of
it counts as a step, every value that it makes takes from the room that it has, and what could make a large value at one
stroke is estimated before it is done.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError, nodes, runtime
from jinja2.compiler import CodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lit_llm.tokenizer.template_room import FILTERS, TemplateLimit, binop_room, measure, method_room

MAX_SOURCE = 100_000
"""Characters of a template; published ones have up to 20,000."""
SECONDS = 3.0
"""Processor time of a rendering, and more for long conversations; what a step can take is bounded by the room."""
ROOM = 4_000_000
"""Characters that a rendering may make, counting each value that is made on the way, besides 100 for each character
of the conversation."""
STEPS = 200_000
"""Steps of a rendering, besides those for the turns of the conversation."""

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


class _Work:
    """The steps, time and memory that one rendering has left."""

    def __init__(self, size: int, turns: int) -> None:
        self.room: float = ROOM + 100 * size
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


class _Namespace(Namespace):
    def __repr__(self) -> str:  # Jinja's writes out what is in it, which may have grown since it was measured
        return "<Namespace>"


class _Counting(CodeGenerator):
    """Generate code that measures lists, tuples, mappings and slices where a template makes them."""

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
        self.filters.update(FILTERS)
        self.filters = {name: self._counted(function) for name, function in self.filters.items()}
        self.tests = {name: self._counted(function) for name, function in self.tests.items()}

    @property
    def work(self) -> _Work:
        """What is left to the rendering of this thread."""
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
        """Take the room that a new value needs, and return the value."""
        self.work.spend(measure(value, self.work.room)[0])
        return value

    def written(self, value: Any) -> Any:
        """Take the room of a value that is about to be written; text itself is counted where it is joined."""
        return value if isinstance(value, str) else self.made(value)

    def concat(self, pieces: Iterable[str]) -> str:
        """Jinja's way to join what a macro, a block or a template wrote."""
        kept = []
        for piece in pieces:
            self.work.spend(len(piece))
            kept.append(piece)
        return "".join(kept)

    def str_join(self, values: Iterable[Any]) -> str:
        """Join values as the operator ~ does."""
        self.step()
        return self.concat(str(self.written(value)) for value in values)

    def markup_join(self, values: Iterable[Any]) -> str:
        """Join values as the operator ~ does where text is escaped."""
        return self.made(runtime.markup_join([self.made(value) for value in values]))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Read an item as Jinja does, and count a step."""
        self.step()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Read an attribute as Jinja does, and count a step."""
        self.step()
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator as Jinja does, if its result has room."""
        self.step()
        self.work.afford(binop_room(operator, left, right, self.work.room))
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function as Jinja does, if it is allowed and its result has room."""
        self.step()
        function = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
        if kind is not None:
            if name not in _METHODS[kind]:
                raise TemplateRuntimeError(f"it calls {kind.__name__}.{name}, which no chat template needs")
            if isinstance(owner, str):
                if name == "join" and args:
                    args = (list(args[0]), *args[1:])
                self.work.afford(method_room(owner, name, args, kwargs, self.work.room))
        return self.made(super().call(context, obj, *args, **kwargs))

    def _counted(self, function: Any) -> Callable[..., Any]:
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
