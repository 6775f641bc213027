"""Instructions that can be checked, as in IFEval: strictly and loosely, by answer and by instruction.

A row has `instruction_id_list`, names of `CHECKS`, and `kwargs`, a table of arguments for each, in which null is none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_llm.config import UserError
from lit_llm.evaluation.verifiers.instruction_checks import CHECKS
from lit_llm.evaluation.verifiers.verdict import Verdict, field


@dataclass(frozen=True)
class Followed:
    """Which instructions of a row a text follows."""

    names: tuple[str, ...]
    strict: tuple[bool, ...]
    """As the text is."""
    loose: tuple[bool, ...]
    """In one of the forms of the paper's section 2.2: also without its first line, its last, or both, and without
    stars, so that "Sure, here it is:" and Markdown do not count against it."""


def instructions(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a text follows all instructions of its row, strictly; the reason names those that it does not follow."""
    followed = follow(text, row)
    missed = [name for name, kept in zip(followed.names, followed.strict, strict=True) if not kept]
    return Verdict(not missed, f"not followed: {', '.join(missed)}" if missed else "")


def follow(text: str, row: Mapping[str, Any]) -> Followed:
    """Check each instruction of a row on a text.

    Raises:
        UserError: a field is missing, a name is unknown, or an instruction lacks an argument or has one too many.
    """
    names = field(row, "instruction_id_list", list)
    arguments = field(row, "kwargs", list)
    if len(names) != len(arguments) or not names:
        raise UserError(f"a row has {len(names)} instructions in instruction_id_list and {len(arguments)} kwargs")
    forms = _loose_forms(text)
    strict, loose = [], []
    for name, given in zip(names, arguments, strict=True):
        given = _checked_arguments(name, given)
        check = CHECKS[name]
        strict.append(bool(text.strip()) and check(text, **given))
        loose.append(any(form.strip() and check(form, **given) for form in forms))
    return Followed(tuple(names), tuple(strict), tuple(map(bool, loose)))


def _loose_forms(text: str) -> list[str]:
    lines = text.split("\n")
    forms = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys(form for text in forms for form in (text, text.replace("*", ""))))


def _checked_arguments(name: Any, given: Any) -> dict[str, Any]:
    if name not in CHECKS:
        raise UserError(f"there is no instruction {name!r:.60}; there are {', '.join(CHECKS)}")
    if not isinstance(given, Mapping):
        raise UserError(f"the kwargs of {name} must be a table, not {type(given).__name__}")
    given = {key: value for key, value in given.items() if value is not None}
    types = {key: value.annotation for key, value in list(inspect.signature(CHECKS[name]).parameters.items())[1:]}
    for key, value in given.items():
        kind = {"int": int, "str": str, "Sequence[str]": list}.get(types.get(key, ""))
        if kind is None:
            raise UserError(f"the instruction {name} has no argument {key}; it has {', '.join(types) or 'none'}")
        if kind is int and isinstance(value, float) and value.is_integer():
            given[key] = int(value)  # tables with nulls in a column come with floats
        elif not isinstance(value, kind) or (kind is list and not all(isinstance(each, str) for each in value)):
            raise UserError(f"the argument {key} of {name} must be {kind.__name__}: {value!r:.60}")
    if missing := types.keys() - given.keys():
        raise UserError(f"the instruction {name} needs {', '.join(sorted(missing))} in its kwargs")
    return given


def instruction_accuracies(results: Iterable[Followed]) -> dict[str, float]:
    """The four figures that papers report, from 0 to 1, under the names that lm-evaluation-harness gives them.

    `prompt_level` is the share of answers that follow all their instructions, `inst_level` that of all instructions.
    """
    results = list(results)
    if not results:
        raise ValueError("no answers")
    figures = {}
    for name, followed in (
        ("strict", [result.strict for result in results]),
        ("loose", [result.loose for result in results]),
    ):
        flat = [kept for each in followed for kept in each]
        figures[f"prompt_level_{name}_acc"] = sum(map(all, followed)) / len(followed)
        figures[f"inst_level_{name}_acc"] = sum(flat) / len(flat)
    return figures
