"""The command line: options from dataclasses, expected errors in one line."""

from lit_llm.cli.parsing import main, parse

__all__ = ["main", "parse"]
