"""Plain values as JSON, so that a program's answers are read without running anything of its own.

What crosses is data: None, booleans, numbers, texts, bytes and collections of them. A value of a derived class crosses
as its plain base, so that an overridden `__eq__` stays behind; every other object arrives as an `Opaque`, which
equals nothing but itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_EXACT_INTEGER = 2**53  # larger ones cross in hexadecimal, for which Python has no bound on digits


class Opaque:
    """An object that cannot cross, by the name of its type."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def pack(value: Any) -> Any:
    """A value in terms of JSON.

    Raises:
        RecursionError: it is nested too deeply, or contains itself.
    """
    if value is None or value is True or value is False:
        return value
    for kind, packed in _PACK:
        if isinstance(value, kind):
            return packed(value)
    return {"o": type(value).__name__[:60]}


def _items(name: str, kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {name: [pack(item) for item in kind(value)]}


_PACK: list[tuple[Any, Callable[[Any], Any]]] = [
    (int, lambda value: int(value) if abs(int(value)) < _EXACT_INTEGER else {"i": hex(int(value))}),
    (str, str.__str__),
    (float, lambda value: {"f": float.hex(value)}),
    (list, lambda value: [pack(item) for item in list(value)]),
    (tuple, _items("t", tuple)),
    (dict, lambda value: {"d": [[pack(key), pack(item)] for key, item in dict.items(value)]}),
    (frozenset, _items("z", frozenset)),
    (set, _items("s", set)),
    (deque, _items("q", deque)),
    ((bytes, bytearray), lambda value: {"b": bytes(value).hex()}),
    (complex, lambda value: {"c": [float.hex(value.real), float.hex(value.imag)]}),
    (range, lambda value: {"r": [pack(value.start), pack(value.stop), pack(value.step)]}),
    (Fraction, lambda value: {"n": [hex(value.numerator), hex(value.denominator)]}),
    (Decimal, lambda value: {"m": str(value)}),
]


def unpack(value: Any) -> Any:
    """The value that JSON stands for.

    Raises:
        ValueError: it is nothing that `pack` writes.
    """
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("an answer that cannot be read")
    ((name, content),) = value.items()
    try:
        return _UNPACK[name](content)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"an answer that cannot be read: {error}") from error


_UNPACK: dict[str, Callable[[Any], Any]] = {
    "i": lambda content: int(content, 16),
    "f": float.fromhex,
    "t": lambda content: tuple(map(unpack, content)),
    "d": lambda content: {unpack(key): unpack(item) for key, item in content},
    "z": lambda content: frozenset(map(unpack, content)),
    "s": lambda content: set(map(unpack, content)),
    "q": lambda content: deque(map(unpack, content)),
    "b": bytes.fromhex,
    "c": lambda content: complex(*map(float.fromhex, content)),
    "r": lambda content: range(*map(unpack, content)),
    "n": lambda content: Fraction(*(int(part, 16) for part in content)),
    "m": Decimal,
    "o": lambda content: Opaque(str(content)),
}
