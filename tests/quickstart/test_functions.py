"""Functions of a module as conversations, and what spoils them."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from lit_llm.config import ConversationDataConfig, CorpusConfig, PreferenceDataConfig, UserError
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.data.conversations.supervised import ConversationDataModule
from lit_llm.data.corpus.documents import Corpus
from lit_llm.quickstart.functions import (
    CORRUPTIONS,
    Function,
    conversation_row,
    corrupt,
    functions_in,
    functions_of,
    is_one_function,
    parses,
    preference_row,
    write_rows,
)
from lit_llm.tokenizer import Tokenizer

MODULE = '''
import os


class Reader:
    @property
    def size(self, unit=1,
             rounded=True):
        """Number of bytes,
        in units.

        Not in the request.
        """
        total = os.stat(self.path).st_size

        # whole units
        return total // unit if rounded else total / unit

    def read(self): "No def line of its own."; return 1

    def undocumented(self):
        return 2

    def only_documented(self):
        """There is nothing to write."""

    def abstract(self):
        """A subclass writes it."""
        raise NotImplementedError

    async def close(self):
        r"""Close it: \\d."""
        def inner():
            """Inside."""
            return 3
        return inner
'''


def test_what_is_taken_from_a_module() -> None:
    size, close, inner = functions_in(MODULE, "reader.py")
    assert size.request == "Number of bytes,\nin units.\n\ndef size(self, unit=1,\n         rounded=True):"
    assert size.source == (
        "def size(self, unit=1,\n         rounded=True):\n    total = os.stat(self.path).st_size\n"
        "    # whole units\n    return total // unit if rounded else total / unit"
    )
    assert (size.header, size.place) == (2, "reader.py:7")
    assert size.lines == (size.source.split("\n")[:2], size.source.split("\n")[2:])
    assert close.request == "Close it: \\d.\n\nasync def close(self):"
    assert close.source.startswith("async def close(self):\n    def inner():\n")
    assert inner.source == "def inner():\n    return 3"


def test_a_module_that_cannot_be_parsed_has_no_functions() -> None:
    assert list(functions_in(MODULE + "\ndef broken(:\n")) == []
    assert list(functions_in("\0")) == []


def test_lines_are_those_of_python_alone() -> None:
    """A form feed or a line separator ends no line of source."""
    text = (
        'def f():\n    """Do."""\n    a = "\u2028"\n\x0c\n    return a\r\ndef g():\r\n    """Go."""\r\n    return 1\r\n'
    )
    first, second = functions_in(text)
    assert first.source == 'def f():\n    a = "\u2028"\n    return a'
    assert second.source == "def g():\n    return 1"


def write_corpus(folder: Path, files: dict[str, str]) -> Corpus:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return Corpus(CorpusConfig(path=str(folder), split="hash", validation_fraction=0.5))


def documented(name: str, request: str, body: str = "return 1") -> str:
    return f'def {name}():\n    """{request}"""\n    {body}\n\n\n'


@pytest.fixture
def split(tmp_path: Path) -> dict[str, list[str]]:
    """Names of files by the split that a hash gives them."""
    folder = tmp_path / "probe"
    folder.mkdir()
    found: dict[str, list[str]] = {"train": [], "validation": []}
    for document in write_corpus(folder, {f"m{number}.py": "x = 1\n" for number in range(12)}).documents():
        found[document.split].append(document.key)
    return found


def test_functions_are_in_the_split_of_their_file_and_once(
    split: dict[str, list[str]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    common = documented("both", "In either split.")
    files = {
        split["train"][0]: documented("a", "First.") + common + documented("a", "First.", "return 2"),
        split["train"][1]: documented("long", "Too long.", "return [" + "1, " * 200 + "]"),
        split["validation"][0]: documented("b", "Second.") + common + documented("both", "Not so.") + "\n",
    }
    found = functions_of(write_corpus(folder, files), tokenizer, max_tokens=120, max_answer_tokens=40)
    names = {part: [function.request.partition("def ")[2] for function in found[part]] for part in found}
    # the second `both` of the validation file asks for something else, but its source has been trained on
    assert names == {"train": ["a():", "both():"], "validation": ["b():"]}
    for part, functions in found.items():
        assert all(function.place.partition(":")[0] in split[part] for function in functions)
    few = functions_of(write_corpus(folder, files), tokenizer, max_tokens=10_000, max_answer_tokens=10_000)
    assert [function.request.split("\n")[0] for function in few["train"]] == ["First.", "In either split.", "Too long."]


def test_a_corpus_without_functions_is_refused(
    split: dict[str, list[str]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    corpus = write_corpus(folder, {name: "Some prose.\n" for names in split.values() for name in names})
    with pytest.raises(UserError, match="no train file has a function with a docstring"):
        functions_of(corpus, tokenizer, 200, 100)


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    """Those of two modules of the standard library."""
    return [
        function
        for module in (json.decoder, ast)
        for function in functions_in(Path(module.__file__).read_text(encoding="utf-8"), module.__name__)
    ]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_corruption_makes_code_clearly_worse(kind: str, functions: list[Function]) -> None:
    spoiled = {
        function: text
        for index, function in enumerate(functions)
        for seed in range(5)
        if (text := CORRUPTIONS[kind](function, functions[index - 1], Random(seed))) is not None
    }
    assert len(spoiled) > len(functions) / 2
    for function, text in spoiled.items():
        header = "\n".join(function.lines[0])
        assert text != function.source
        if kind != "unbalanced":
            assert text.startswith(header)
        body, spoiled_body = (part.removeprefix(header) for part in (function.source, text))
        if kind in ("cut off", "unbalanced"):
            assert not parses(text)
        if kind == "cut off":
            assert function.source.startswith(text)
        if kind == "unindented":
            assert not is_one_function(text)
            assert [line.strip() for line in body.split("\n")] == [line.strip() for line in spoiled_body.split("\n")]
        if kind == "shuffled":
            assert sorted(body.split("\n")) == sorted(spoiled_body.split("\n"))
        if kind == "exchanged names":
            assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(function.source))
            assert parses(text)
        if kind == "unbalanced":
            both = (re.sub(r"[()\[\]{}]", "", each) for each in (text, function.source))
            assert len(set(both)) == 1


def test_names_are_exchanged_outside_strings_on_every_python() -> None:
    """The insides of f-strings are tokens in Python 3.12, and none in 3.11."""
    body = '    f = r + 1\n    d = f"{f!r:d} {d}"  # f\n    return f, d'
    function = Function("Do.\n\ndef g(r):", f"def g(r):\n{body}", 1, "m.py:1")
    text = CORRUPTIONS["exchanged names"](function, function, Random(0))
    assert text is not None and text.startswith("def g(r):\n") and parses(text)
    assert 'f"{f!r:d} {d}"  # f' in text
    assert text not in (function.source, None)
    outside = re.sub(r"[rdf]\b", "?", body.replace('f"{f!r:d} {d}"  # f', "S"))
    assert re.sub(r"[rdf]\b", "?", text[10:].replace('f"{f!r:d} {d}"  # f', "S")) == outside


def test_corruptions_come_from_the_seed_and_are_mixed(functions: list[Function]) -> None:
    first = corrupt(functions, seed=1)
    assert first == corrupt(functions, seed=1)
    assert first != corrupt(functions, seed=2)
    assert all(text != function.source for function, (text, _) in zip(functions, first, strict=True))
    counts = Counter(kind for _, kind in first)
    assert set(counts) == set(CORRUPTIONS)
    assert max(counts.values()) < 0.5 * len(functions)


def test_a_function_that_nothing_fits_loses_its_body() -> None:
    single = Function("Do.\n\ndef f():", "def f():\n    return", 1, "m.py:1")
    for seed in range(20):
        text, _ = corrupt([single], seed)[0]
        assert not parses(text) or text != single.source


def test_the_stages_read_the_rows(functions: list[Function], tokenizer: Tokenizer, tmp_path: Path) -> None:
    short = [function for function in functions if len(function.source) < 300]
    spoiled = corrupt(short, 0)
    write_rows(tmp_path / "a" / "pairs.jsonl", [conversation_row(function) for function in short])
    rows = [
        preference_row(function.request, function.source, text, corruption=kind)
        for function, (text, kind) in zip(short, spoiled, strict=True)
    ]
    write_rows(tmp_path / "a" / "preferences.jsonl", rows)
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["pairs.jsonl", "preferences.jsonl"]
    common = {"sequence_length": 512, "validation_fraction": 0.2}
    conversations = ConversationDataModule(
        ConversationDataConfig(paths=[str(tmp_path / "a" / "pairs.jsonl")], **common), tokenizer, 0
    )
    ((_, ids, supervised),) = conversations.example()
    learned = tokenizer.decode([index for index, answer in zip(ids, supervised, strict=True) if answer])
    assert learned.removesuffix("<|im_end|>") in {function.source for function in short}
    pairs = PreferenceDataModule(
        PreferenceDataConfig(paths=[str(tmp_path / "a" / "preferences.jsonl")], **common), tokenizer, 0
    )
    assert pairs.num_rows + len(pairs.items("validation")) == len(short)
    assert json.loads((tmp_path / "a" / "preferences.jsonl").read_text().split("\n")[0])["corruption"] in CORRUPTIONS
