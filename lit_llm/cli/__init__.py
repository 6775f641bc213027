"""The command line: options from dataclasses, expected errors in one line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_llm.cli.commands import run_command
    from lit_llm.cli.parsing import main, parse

__all__ = ["main", "parse", "run_command"]


def __getattr__(name: str) -> Any:
    """Import jsonargparse only where options are read: the stages run from Python without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_llm.cli import commands, parsing

    return commands.run_command if name == "run_command" else getattr(parsing, name)
