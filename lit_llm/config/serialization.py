"""Dataclasses to plain dicts and back, for files and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lit_llm.config.errors import UserError

T = TypeVar("T")

_IN_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
_LISTS = {int: "a list of whole numbers", float: "a list of finite numbers", str: "a list of texts"}


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested dicts, lists, numbers and strings, fit for YAML, JSON and a checkpoint."""
    return dataclasses.asdict(config)


def from_plain(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass `kind` from a plain dict.

    Raises:
        UserError: the dict has a key that `kind` has not, or a number that is not finite.
    """
    hints = _hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(map(str, set(values) - names))
    if unknown:
        raise UserError(f"{kind.__name__} has no option {', '.join(unknown)}")
    config = kind(**{name: _convert(hints[name], value) for name, value in values.items()})
    check_finite(config)
    return config


def check_finite(config: Any, prefix: str = "") -> None:
    """Refuse infinite numbers and NaN, which pass comparisons with bounds, in a dataclass and those inside it.

    Raises:
        UserError: one is there.
    """
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_finite(value, f"{name}.")
        for key, number in _members(value):
            if dataclasses.is_dataclass(number):
                check_finite(number, f"{name}{key}.")
            if isinstance(number, float) and not math.isfinite(number):
                off = "; null turns it off" if field.name == "gradient_clip_val" else ""
                where, shown_value = (f"{name}{key}", number) if isinstance(value, dict) else (name, value)
                raise UserError(f"{where} is {shown_value}; it must be a finite number{off}")


def _members(value: Any) -> list[tuple[str, Any]]:
    """What is in a list or dict, each with how its place in it is written; of anything else, itself."""
    if isinstance(value, dict):
        return [(f".{key}", each) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{number}]", each) for number, each in enumerate(value)]
    return [] if dataclasses.is_dataclass(value) else [("", value)]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def check_types(config: Any, prefix: str) -> None:
    """Refuse values of a dataclass that are not of the types its fields declare.

    A whole number does where a number is wanted; true is no whole number, 4.0 is none, and a number is finite.

    Args:
        config: an instance whose fields are numbers, text, true or false, choices, lists of these, or dataclasses.
        prefix: what stands before a field's name in the message, as "model.".

    Raises:
        UserError: names the first such field, and what it must be.
    """
    check_values(
        type(config), {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, prefix
    )


def check_values(kind: type[Any], values: dict[str, Any], prefix: str) -> None:
    """Refuse, as `check_types` does, values by the names of fields of a dataclass that is yet to be made of them."""
    hints = _hints(kind)
    for name, value in values.items():
        options = _options(hints[name])
        if not any(_is(option, value) for option in options):
            words = " or ".join(_in_words(option) for option in options)
            raise UserError(f"{prefix}{name} is {shown(value)}; it must be {words}")


def shown(value: Any, most: int = 60) -> str:
    """A value from somebody else's file as one line for a message, cut after `most` characters."""
    text = ascii(value) if isinstance(value, str) else " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


# The type of each field of a dataclass, by name.
_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


@cache
def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is(option: Any, value: Any) -> bool:
    if option is float:
        return _is_finite(value)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(option, type):
        return isinstance(value, option)
    origin = get_origin(option)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(option))
    if origin is list:
        return isinstance(value, list) and all(_is(get_args(option)[0], each) for each in value)
    if origin is dict:
        return isinstance(value, dict)
    return isinstance(value, option)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can be
        return False


def _in_words(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(map(str, get_args(option)))
    if get_origin(option) is list:
        return _LISTS.get(get_args(option)[0], "a list")
    return _IN_WORDS.get(option, "a group of options")


def _convert(hint: Any, value: Any) -> Any:
    for option in _options(hint):
        if isinstance(option, type) and dataclasses.is_dataclass(option) and isinstance(value, dict):
            return from_plain(option, value)
        if get_origin(option) is dict and isinstance(value, dict):
            return {key: _convert(get_args(option)[1], each) for key, each in value.items()}
        if get_origin(option) is list and isinstance(value, list):
            return [_convert(get_args(option)[0], each) for each in value]
    return value
