"""Programs that are right if they pass the tests of the task: HumanEval's form, and MBPP's.

HumanEval (Chen et al., 2021): a row has `prompt` (the beginning of a function, with its imports and helpers before it),
`entry_point` (its name) and `test`, which defines `check(candidate)`. MBPP (Austin et al., 2021): `test_list` of
assertions, and `test_setup_code` or `test_imports` where they need something. A row of either may say `together: true`,
for tests that look at classes of the program: they run in the program's process, where a program that is written to
deceive them can.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lit_llm.config import SandboxConfig, UserError
from lit_llm.evaluation.sandbox import Outcome, Program, run_program, run_programs
from lit_llm.evaluation.verifiers.verdict import Verdict, field, field_texts

STOP_SEQUENCES = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a completion of a function ends, as generation for HumanEval is stopped there."""
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_STATEMENT = re.compile(r"(?:async def|def|class|from|import)\b|@")
_MOST_ENDS = 64
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_END_OF_MBPP = "[DONE]"


def python(text: str, row: Mapping[str, Any], config: SandboxConfig | None = None) -> Verdict:
    """Whether a program that a model has written passes the row's tests, in a sandbox.

    Args:
        text: A completion of the row's prompt, or an answer with the whole function, in a fenced block or not.
        row: In one of the forms above.
        config: The sandbox; the proper one that this system has by default.

    Raises:
        UserError: the row lacks a field, its test is no Python, or this system has no sandbox as asked for.
    """
    return _verdict(run_program(program_of(text, row), config or SandboxConfig()))


def python_many(
    texts: Sequence[str], rows: Sequence[Mapping[str, Any]], config: SandboxConfig, num_workers: int
) -> list[Verdict]:
    """As `python`, with several programs at a time and their progress."""
    programs = [program_of(text, row) for text, row in zip(texts, rows, strict=True)]
    return [_verdict(outcome) for outcome in run_programs(programs, config, num_workers)]


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.passed:
        return Verdict(True)
    return Verdict(False, ": ".join(part for part in (outcome.outcome, outcome.reason) if part))


def program_of(text: str, row: Mapping[str, Any]) -> Program:
    """The program that a text stands for, with the tests of its row.

    Raises:
        UserError: the row lacks a field, or its test is no Python.
    """
    together = field({"together": False, **row}, "together", bool)
    if "test_list" in row:
        return _mbpp(text, row, together)
    prompt, name = field(row, "prompt"), field(row, "entry_point")
    test = f"{field(row, 'test')}\ncheck({name})\n"
    _parse(test)
    # what comes before the function, such as helpers that the tests use as well, is the task's and not the program's
    beginnings = (prompt, f"{prompt}\n    pass\n", "")  # a function without documentation has no body yet
    setup = "" if together else next(source for source in beginnings if _reads(source))
    return Program(complete(text, prompt, name), test, (name,), setup, together)


def complete(text: str, prompt: str, name: str) -> str:
    """The source of a whole program out of a prompt and what a model made of it.

    Args:
        text: If the function is defined in it (in a fenced block, or from some line on), that counts, after the
            prompt's imports and helpers; else it goes on where the prompt ends, up to the first of `STOP_SEQUENCES`.
        prompt: The beginning of a function, up to its documentation.
        name: The function's name.
    """
    definition = re.compile(rf"^(?:async )?def {re.escape(name)}\b", re.MULTILINE)
    blocks = _FENCE.findall(text)
    whole = next((block for block in map(textwrap.dedent, blocks) if definition.search(block)), None)
    if whole is None and not blocks and definition.search(text):
        whole = _from_first_statement(text)
    if whole is not None:
        # the prompt's function has its documentation alone, and is defined anew
        return f"{prompt}\n    pass\n\n{whole}" if definition.search(prompt) else f"{prompt}\n{whole}"
    if blocks:
        return prompt + textwrap.indent(textwrap.dedent(blocks[0]), "    ")
    ends = [end for stop in STOP_SEQUENCES if (end := text.find(stop)) >= 0]
    return prompt + text[: min(ends, default=len(text))]


def _from_first_statement(text: str) -> str:
    """The Python in an answer without fences: from its first definition or import, as far as it can be read."""
    lines = text.splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if _STATEMENT.match(line))
    ends = [index for index in range(first + 1, len(lines)) if not lines[index][:1].isspace()]
    for end in [len(lines), *reversed(ends[:_MOST_ENDS])]:
        source = "".join(lines[first:end])
        if _reads(source):
            return source
    return "".join(lines[first:])


def _reads(source: str) -> bool:
    try:
        ast.parse(source)
    except _UNREADABLE:
        return False
    return True


def _mbpp(text: str, row: Mapping[str, Any], together: bool) -> Program:
    test = "\n".join(field_texts(row, "test_list")) + "\n"
    imports = row.get("test_imports", [])
    setup = "\n".join([*(imports if isinstance(imports, list) else [imports]), str(row.get("test_setup_code") or "")])
    blocks = _FENCE.findall(text)
    source = textwrap.dedent(blocks[0]) if blocks else text.partition(_END_OF_MBPP)[0]
    used = {node.id for node in ast.walk(_parse(test)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    defined = _defined(_parse(setup)) | _defined(_parse(test))
    names = tuple(sorted(name for name in used - defined if not hasattr(builtins, name)))
    return Program(source, test, names, setup, together)


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except _UNREADABLE as error:
        raise UserError(f"the test of a row is no Python: {error}") from error


def _defined(tree: ast.Module) -> set[str]:
    """The names that a source gives values to, at any depth."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
    return found
