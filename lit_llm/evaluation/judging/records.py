"""The files of a comparison that is under way: lines that are added one by one, and what they depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.files import write_json
from lit_llm.config.json_text import parse_json

_MODEL_FILES = frozenset({".json", ".safetensors", ".jinja", ".gguf"})
_MOST_NAMED = 4


class LineFile:
    """A file of JSON lines that only grows. Half a line at its end, of a process that was killed, is taken off.

    Args:
        path: the file; its folder exists.

    Attributes:
        lines: the objects in it, in order.

    Raises:
        UserError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        data = path.read_bytes() if path.exists() else b""
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                value = parse_json(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise UserError(f"{path}:{number}: damaged; remove the line, and what it said is asked again")
            self.lines.append(value)
        self._file = path.open("ab")
        if whole < len(data):
            os.truncate(path, whole)

    def add(self, line: Mapping[str, Any]) -> None:
        """Write a line; a process that is killed after this has lost nothing."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self.lines.append(dict(line))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_setup(path: Path, setup: Mapping[str, str], matters: Callable[[str], bool]) -> None:
    """Keep what a comparison depends on, or compare it with what was kept.

    Args:
        path: the file; one that is there is of the comparison that is to go on.
        setup: what is what, as names and texts; a name that is new, as of one more model, is added.
        matters: whether something that has been kept already depends on the entry of a name.

    Raises:
        UserError: something has changed; it is named, with what it was and is.
    """
    before: dict[str, Any] = {}
    if path.exists():
        try:
            before = parse_json(path.read_bytes())
            changed = [name for name, value in setup.items() if matters(name) and before.get(name, value) != value]
        except (ValueError, AttributeError):
            raise UserError(f"{path} is damaged; give another --output, or begin anew with --overwrite true") from None
        if changed:
            told = [f"{name} (was {_short(before[name])}, is {_short(setup[name])})" for name in changed[:_MOST_NAMED]]
            raise UserError(
                f"{path.parent} has a comparison that differs in {', '.join(told)}; give another --output, or begin "
                "anew with --overwrite true"
            )
    write_json(path, {**before, **setup})


def digest_of_text(*texts: str) -> str:
    """A short digest of some texts."""
    digest = blake2b(digest_size=8)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def digest_of_model(path: Path) -> str:
    """A short digest of what a model folder, or a file with a model, says: weights, configuration and tokenizer."""
    digest = blake2b(digest_size=8)
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.suffix in _MODEL_FILES)
    for file in files:
        digest.update(file.name.encode() + b"\0")
        for part in _parts(file):
            digest.update(part)
    return digest.hexdigest()


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            yield part


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
