"""Python functions and what their docstrings ask for, as conversations; and what clearly spoils a function."""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import textwrap
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from lit_llm.config import UserError
from lit_llm.config.files import replace_file
from lit_llm.data.corpus.documents import Corpus
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import ChatFormat, Message

_TRIES = 8
_BRACKETS = "()[]{}"


@dataclass(frozen=True)
class Function:
    """A Python function and the request that asks for it.

    Attributes:
        request: the first paragraph of its docstring, and its def line.
        source: the function without its docstring; it parses.
        header: lines of `source` before its body.
        place: file of the corpus and line, as path:line.
    """

    request: str
    source: str
    header: int
    place: str

    @property
    def lines(self) -> tuple[list[str], list[str]]:
        """Split the function into the lines of its header and those of its body."""
        lines = self.source.split("\n")
        return lines[: self.header], lines[self.header :]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Write the user's turn, which asks for the function."""
        return (Message("user", self.request),)


def parses(text: str) -> bool:
    """Whether Python can parse `text`, and it is not blank."""
    return bool(text.strip()) and _parse(text) is not None


def _parse(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about "\d" and the like
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # also: NUL bytes, too deep
        return None


def functions_in(text: str, place: str = "") -> Iterator[Function]:
    """List the functions of a module that have a docstring and a body besides it, in the order of their lines.

    Args:
        text: source of the module; one that does not parse has none.
        place: its file.
    """
    # ast counts lines by these three ends alone, where str.splitlines knows more of them
    lines = re.split(r"\r\n|\r|\n", text)
    tree = _parse(text)
    for node in _definitions(tree.body if tree is not None else ()):
        function = _function(node, lines, place)
        if function is not None:
            yield function


def _definitions(statements: Sequence[ast.AST]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions that statements define, at any depth; expressions, most of a tree, are not looked into."""
    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement
        for part in ("body", "cases", "handlers", "orelse", "finalbody"):
            yield from _definitions(getattr(statement, part, ()))


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], place: str) -> Function | None:
    docstring = (ast.get_docstring(node) or "").partition("\n\n")[0].strip()
    first = node.body[0]
    if not docstring or all(map(_does_nothing, node.body[1:])) or first.lineno == node.lineno:
        return None
    header = lines[node.lineno - 1 : first.lineno - 1]
    body = [line.rstrip() for line in lines[first.end_lineno or 0 : node.end_lineno] if line.strip()]
    source = textwrap.dedent("\n".join([*header, *body]))
    signature = "\n".join(source.split("\n")[: len(header)])
    # not so: a comment after the def line, a statement beside the docstring, a string that reaches to the left margin
    if (
        not body
        or not signature.endswith(":")
        or not signature.startswith(("def ", "async def "))
        or not parses(source)
    ):
        return None
    return Function(f"{docstring}\n\n{signature}", source, len(header), f"{place}:{node.lineno}")


def _does_nothing(statement: ast.stmt) -> bool:
    """Tell whether a function only stands for what a subclass should do: pass, ... or raise NotImplementedError."""
    if isinstance(statement, ast.Raise) and statement.exc is not None:
        return "NotImplementedError" in ast.dump(statement.exc)
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def functions_of(
    corpus: Corpus, tokenizer: Tokenizer, max_tokens: int, max_answer_tokens: int
) -> dict[str, list[Function]]:
    """Collect the functions of a corpus that are short enough, each once, in the split of the file that they are in.

    A function of a validation file whose request or source is also in a training file is left out.

    Args:
        corpus: Python files; the split is the one that pretraining had, so that held-out requests stay unseen.
        tokenizer: has chat tokens.
        max_tokens: of the whole conversation.
        max_answer_tokens: of the function, with the end of its turn.

    Returns:
        Functions by split, "train" and "validation", in the order of the files.

    Raises:
        UserError: the corpus cannot be read, or a split has no such function.
    """
    chat = ChatFormat(tokenizer)
    found: dict[str, list[Function]] = {"train": [], "validation": []}
    for document in corpus.documents():
        if document.split in found:
            found[document.split] += functions_in(document.text, document.key)
    seen: set[str] = set()
    kept: dict[str, list[Function]] = {}
    for split, functions in found.items():
        kept[split] = []
        for function in functions:
            if function.request in seen or function.source in seen:
                continue
            seen.update((function.request, function.source))
            answer = len(tokenizer.encode_further(function.source)) + 1
            if answer <= max_answer_tokens and len(chat.render_prompt(function.prompt)) + answer <= max_tokens:
                kept[split].append(function)
        if not kept[split]:
            raise UserError(
                f"{corpus.description}: no {split} file has a function with a docstring that fits {max_tokens} tokens; "
                "use more source, or leave the stages after pretraining out"
            )
    return kept


# What spoils a function. Each returns None where it cannot, or where what comes out could still be right.

Corruption = Callable[[Function, Function, Random], "str | None"]


def shuffled(function: Function, other: Function, random: Random) -> str | None:
    """Put the lines of the body in another order."""
    header, body = function.lines
    if len(set(body)) < 3:
        return None
    lines = list(body)
    while lines == body:
        random.shuffle(lines)
    return "\n".join([*header, *lines])


def unindented(function: Function, other: Function, random: Random) -> str | None:
    """Let lines of the body begin at the left margin, from one of the first on."""
    header, body = function.lines
    start = random.randrange(min(2, len(body)))
    spoiled = "\n".join([*header, *body[:start], *(line.lstrip() for line in body[start:])])
    # below the function, code is still a module: it must not be what is asked for, which is one function
    return spoiled if not is_one_function(spoiled) else None


def foreign_body(function: Function, other: Function, random: Random) -> str | None:
    """Give the function the body of another one."""
    header, body = function.lines
    foreign = other.lines[1]
    return "\n".join([*header, *foreign]) if foreign != body else None


def exchanged_names(function: Function, other: Function, random: Random) -> str | None:
    """Exchange the names in the body, outside strings, so that each stands where another one should."""
    places = [name for name in _names(function.source) if name.start[0] > function.header]
    names = sorted({name.string for name in places})
    if len(names) < 3:
        return None
    random.shuffle(names)
    exchanged = dict(zip(names, names[1:] + names[:1], strict=True))
    lines = function.source.split("\n")
    for name in reversed(places):
        (row, start), (_, end) = name.start, name.end
        lines[row - 1] = lines[row - 1][:start] + exchanged[name.string] + lines[row - 1][end:]
    return "\n".join(lines)


def _names(text: str) -> Iterator[tokenize.TokenInfo]:
    """Find the names in a piece of source, up to where Python cannot read it."""
    strings = 0  # f-strings that are open: their insides are tokens from Python 3.12 on, and are left alone
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            kind = tokenize.tok_name[token.type]
            strings += kind.endswith("STRING_START") - kind.endswith("STRING_END")
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string) and not strings:
                yield token
    except (tokenize.TokenError, SyntaxError):
        return


def cut_off(function: Function, other: Function, random: Random) -> str | None:
    """Cut the function off somewhere in its body, where it cannot end."""
    start = len("\n".join(function.lines[0])) + 1
    for _ in range(_TRIES):
        spoiled = function.source[: random.randrange(start, max(start + 1, len(function.source) - 4))].rstrip()
        if not parses(spoiled):
            return spoiled
    return None


def unbalanced(function: Function, other: Function, random: Random) -> str | None:
    """Leave out, or double, a third of the brackets, at least one."""
    source = function.source
    places = [place for place, character in enumerate(source) if character in _BRACKETS]
    for _ in range(_TRIES):
        chosen = set(random.sample(places, -(-len(places) // 3)))
        copies = {place: random.choice((0, 2)) for place in sorted(chosen)}
        spoiled = "".join(character * copies.get(place, 1) for place, character in enumerate(source))
        if not parses(spoiled):
            return spoiled
    return None


CORRUPTIONS: dict[str, Corruption] = {
    "shuffled": shuffled,
    "unindented": unindented,
    "foreign body": foreign_body,
    "exchanged names": exchanged_names,
    "cut off": cut_off,
    "unbalanced": unbalanced,
}
"""The ways in which a function is spoiled, by name."""

# Only a model that understands requests can tell a foreign body: few of a small model's lessons should be about that.
_RARE = {"foreign body": 0.4}


def is_one_function(text: str) -> bool:
    """Whether `text` parses as a single function and nothing else."""
    tree = _parse(text)
    return (
        tree is not None and len(tree.body) == 1 and isinstance(tree.body[0], (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def corrupt(functions: Sequence[Function], seed: int) -> list[tuple[str, str]]:
    """For each function, a spoiled version of it and what was done: one of `CORRUPTIONS` that it allows, drawn.

    Args:
        functions: at least two, to take bodies from one another.
        seed: the same seed gives the same versions; each function's depends on the seed and its own place alone,
            besides the others' bodies.

    Returns:
        (spoiled source, name of the corruption) for each.
    """
    spoiled = []
    for function in functions:
        random = Random(f"{seed} {function.place} {function.request}")
        # drawn one after the other without replacement, each as likely as its weight (Efraimidis and Spirakis, 2006)
        kinds = sorted(CORRUPTIONS, key=lambda kind: -(random.random() ** (1 / _RARE.get(kind, 1.0))))
        other = random.choice(functions)
        found = next(
            ((text, kind) for kind in kinds if (text := CORRUPTIONS[kind](function, other, random)) is not None), None
        )
        # without a body there is nothing that could be right
        spoiled.append(found or ("\n".join(function.lines[0]), "cut off"))
    return spoiled


# Rows, in the forms that every stage reads.


def conversation_row(function: Function) -> dict[str, object]:
    """Make a row for SFT: the request and the function as messages, and where they are from."""
    messages = [{"role": "user", "content": function.request}, {"role": "assistant", "content": function.source}]
    return {"messages": messages, "place": function.place}


def preference_row(request: str, chosen: str, rejected: str, **fields: object) -> dict[str, object]:
    """Make a row for a reward model or DPO: a request with a better and a worse answer, and further fields."""
    return {
        "prompt": [{"role": "user", "content": request}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **fields,
    }


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write a .jsonl file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
