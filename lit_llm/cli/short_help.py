"""The text of --help: the options that people change, under headings, and a command to begin with."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from jsonargparse import ArgumentParser, DefaultHelpFormatter


@dataclass(frozen=True)
class ShortHelp:
    """What --help shows of a command.

    Attributes:
        options: their dotted keys; none: all that the command has.
        example: the arguments of a command that can be run, which may go over several lines.
    """

    options: tuple[str, ...]
    example: str

    def show(self, parser: ArgumentParser) -> None:
        """Print the help and end the process.

        Args:
            parser: the command's; it can be used for nothing else afterwards.
        """
        kept = {"help", "help_all", "config", *self.options}
        for action in parser._actions:
            if action.dest == "print_config" or (self.options and action.dest not in kept):
                action.help = argparse.SUPPRESS
                continue
            # --NAME+, which adds to a list, is left out
            action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
            if action.help:
                action.help = _first_sentence(action.help)
            if action.dest == "help":
                action.help = "Show these options and exit."
        parser.formatter_class = _WithoutTypes
        parser.usage = "%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]"
        parser.print_help()
        if self.example:
            program = f"python experiments/{parser.prog}" if parser.prog.endswith(".py") else parser.prog
            print(f"\nexample:\n  {program} {self.example}")
        raise SystemExit(0)


class _WithoutTypes(DefaultHelpFormatter):
    """A format of the help that shows the default of an option, where it has one, but not its type."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if default is None or default in ("", [], argparse.SUPPRESS):
            return action.help or ""
        return f"{action.help} (default: {str(default).lower() if isinstance(default, bool) else default})"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]
