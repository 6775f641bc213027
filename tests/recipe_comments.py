"""What the comment above a recipe says."""

from __future__ import annotations

import shlex
from pathlib import Path


def commands_above(recipe: Path) -> dict[str, list[str]]:
    """The scripts that the comment names, with their options."""
    text = "\n".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    commands = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.startswith("python ")]
    return {Path(words[1]).stem: words[2:] for words in commands}
