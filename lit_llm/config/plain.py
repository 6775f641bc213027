"""Dataclasses to plain dicts and back, for files and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lit_llm.config.errors import UserError

T = TypeVar("T")


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested dicts, lists, numbers and strings, fit for YAML, JSON and a checkpoint."""
    return dataclasses.asdict(config)


def from_plain(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass `kind` from a plain dict.

    Raises:
        UserError: the dict has a key that `kind` has not, or a number that is not finite.
    """
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - names)
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
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                off = "; null turns it off" if field.name == "gradient_clip_val" else ""
                raise UserError(f"{name} is {value}; it must be a finite number{off}")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _convert(hint: Any, value: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return from_plain(option, value)
    return value
