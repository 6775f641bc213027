"""What a comparison that is under way depends on, in a file beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.files import write_json
from lit_llm.config.json_text import parse_json

_MOST_NAMED = 4


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


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
