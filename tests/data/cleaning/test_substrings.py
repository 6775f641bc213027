"""The step `substrings`: which text has stood earlier in the corpus, against a definition by brute force."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.config import UserError
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.cleaning.registry import build_step, is_corpus_step
from lit_llm.data.cleaning.repeats import first_occurrences, joined, without_tokens
from lit_llm.data.cleaning.step import CorpusStep
from lit_llm.data.cleaning.substrings import RepeatedSubstrings
from lit_llm.data.sources.document import SourceDocument

TokenList = list[str]


def in_turn(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    for item in items:
        function(item)


def by_four(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(function, reversed(items)))


def run(
    parts: list[list[str]], folder: Path, memory_bytes: int = 2**30, parallel: Any = in_turn, **options: Any
) -> tuple[list[list[tuple[str, str | None]]], RepeatedSubstrings, dict[str, Any]]:
    """What the step makes of texts, which are in parts: each text, and why it is dropped."""
    recipe = RecipeConfig(steps=[{"substrings": {"min_characters": 0, **options}}])
    folder.mkdir(exist_ok=True)
    [(name, made)] = recipe.step_options()
    step = build_step(name, made)
    assert is_corpus_step(name) and isinstance(step, CorpusStep) and isinstance(step, RepeatedSubstrings)

    def documents(part: int) -> list[SourceDocument]:
        return [SourceDocument(str(place), "s", text, "") for place, text in enumerate(parts[part])]

    for part in reversed(range(len(parts))):
        step.index(iter(documents(part)), part, folder)
    facts = step.decide(len(parts), folder, memory_bytes, parallel)
    result = [
        [(document.text, why) for document, why in step.apply(iter(documents(p)), p, folder)] for p in range(len(parts))
    ]
    return result, step, facts


def left_by_definition(documents: list[TokenList], length: int, within: bool) -> list[TokenList]:
    """Tokens that are in no window which began earlier, in another document or without overlap in the same one."""
    seen: dict[tuple[str, ...], tuple[int, int]] = {}
    left = []
    for number, tokens in enumerate(documents):
        gone: set[int] = set()
        for place in range(len(tokens) - length + 1):
            other, first = seen.setdefault(tuple(tokens[place : place + length]), (number, place))
            if other != number or (within and place - first >= length):
                gone.update(range(place, place + length))
        left.append([token for place, token in enumerate(tokens) if place not in gone])
    return left


letters = st.lists(st.sampled_from("abc"), max_size=40)
periodic = st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.integers(1, 20)).map(
    lambda made: made[0] * made[1]
)
mixed = st.tuples(letters, periodic, letters).map(lambda lists: [*lists[0], *lists[1], *lists[2]])


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.lists(mixed, max_size=4), min_size=1, max_size=3),
    length=st.integers(2, 9),
    within=st.booleans(),
)
def test_what_is_left_is_as_defined(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[TokenList]], length: int, within: bool
) -> None:
    """Overlapping repetitions, repetitions within a document and periodic text among them."""
    texts = [[" ".join(tokens) for tokens in part] for part in parts]
    expected = left_by_definition([tokens for part in parts for tokens in part], length, within)
    folder = tmp_path_factory.getbasetemp() / "one step after another"
    for least, parallel in ((2**20, in_turn), (1024, by_four)):  # in 1 kB, a block is eight tokens
        with patch("lit_llm.data.cleaning.substrings._LEAST_MEMORY", least):
            result, _, facts = run(texts, folder, 1, parallel, length=length, within_documents=within)
        assert [text.split() for part in result for text, why in part] == expected
        assert not any(why for part in result for _, why in part)
        assert facts["tokens"] - facts["tokens repeated"] == sum(map(len, expected))


def words(number: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(['an', 'be', 'co', 'du'])}{draw.randrange(10**6)}" for _ in range(number))


def test_planted_substrings_are_found(tmp_path: Path) -> None:
    """Fifty tokens go, forty-nine stay, in the same part and in others, and with other white space."""
    fifty, fewer = words(50, 1), words(49, 2)
    first = f"{words(30, 3)} {fifty} {words(30, 4)}\n\n{fewer} {words(30, 5)}"
    second = f"{words(40, 6)}\n\n{fifty}\n\n{words(30, 7)} {fewer}"
    third = f"{words(20, 8)} " + fifty.replace(" ", "\n  ") + f" {words(20, 9)}"
    result, step, facts = run([[first, words(60, 10), second], [third]], tmp_path / "step")
    [[(one, _), (other, _), (two, _)], [(three, _)]] = result
    assert (one, other) == (first, words(60, 10))
    assert two == f"{words(40, 6)}\n\n{words(30, 7)} {fewer}"
    assert three == f"{words(20, 8)} {words(20, 9)}"
    removed = sum(len(text) for text in (first, second, third)) - len(one) - len(two) - len(three)
    assert step.counts == {"documents cut": 2, "cuts": 2, "bytes removed": removed}
    assert facts["tokens repeated"] == 100
    assert facts["tokens"] == sum(map(len, map(str.split, (first, words(60, 10), second, third))))


def test_a_part_in_several_batches_and_many_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus of 3,000 documents with forty planted repetitions; any memory and any workers give the same."""
    monkeypatch.setattr("lit_llm.data.cleaning.substrings._BATCH_TOKENS", 5000)
    monkeypatch.setattr("lit_llm.data.cleaning.substrings._LEAST_MEMORY", 2**14)
    draw = random.Random(0)
    texts = [words(draw.randrange(20, 60), seed) for seed in range(3000)]
    boilerplate = words(55, -1)
    for place in draw.sample(range(3000), 40):
        texts[place] += f" {boilerplate}"
    parts = [texts[:1000], [], texts[1000:2900], texts[2900:]]
    results = [
        run(parts, tmp_path / str(memory), memory, parallel)
        for memory, parallel in ((2**30, in_turn), (2**20, by_four), (1, by_four))
    ]
    for result, step, facts in results:
        assert (result, step.counts, facts) == (results[0][0], results[0][1].counts, results[0][2])
        assert step.counts["documents cut"] == 39 and facts["tokens repeated"] == 39 * 55
        flat = [text for part in result for text, _ in part]
        assert sum(boilerplate in text for text in flat) == 1
        assert [text.removesuffix(f" {boilerplate}") for text in flat] == [
            text.removesuffix(f" {boilerplate}") for text in texts
        ]
    assert len(list((tmp_path / "1").glob("repeated-*"))) > 4


def test_too_little_left_is_dropped(tmp_path: Path) -> None:
    text, short = words(60, 1), "short but alone"
    parts = [[text, f"a {text} b", short, text]]
    [result], step, _ = run(parts, tmp_path / "step", min_characters=4)
    reason = "fewer than 4 characters beside repeated text"
    assert result == [(text, None), (f"a {text} b", reason), (short, None), (text, reason)]
    [kept], _, _ = run(parts, tmp_path / "step", min_characters=3)
    assert kept[1] == ("a b", None)
    assert step.counts["documents cut"] == 2


@pytest.mark.parametrize(
    ("text", "cut", "left"),
    [
        ("one two three", (1, 2), "one three"),
        ("one two three", (0, 2), "three"),
        ("one two three ", (1, 3), "one"),
        ("one two three", (0, 3), ""),
        # words keep the punctuation and the letters that the other place does not have
        ("(one two three!", (1, 4), "(one three!"),
        ("it's one two.", (2, 4), "it's two."),
        ("(one!", (1, 2), "(one!"),
        # the white space with more line ends stays
        ("one\n\ntwo three\nfour", (1, 3), "one\n\nfour"),
        ("one two\n\nthree", (1, 2), "one\n\nthree"),
        # scripts without spaces are cut between characters
        ("\u6625\u7720\u4e0d\u89ba\u6681", (1, 3), "\u6625\u89ba\u6681"),
    ],
)
def test_cuts_go_through_no_word(text: str, cut: tuple[int, int], left: str) -> None:
    assert without_tokens(text, [cut]) == (left, int(left != text))


def test_several_cuts() -> None:
    text = "a b c\nd e\n\nf g"
    assert without_tokens(text, [(0, 1), (2, 4), (5, 6)]) == ("b e\n\ng", 3)


def test_first_occurrences_and_intervals() -> None:
    tokens = np.array([7, 8, 9, 7, 8, 9, 7, 8])
    windows, first = first_occurrences(tokens, np.arange(8) < 6, 2)
    assert sorted(zip(windows.tolist(), first.tolist(), strict=True)) == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 0),
        (4, 1),
        (5, 2),
    ]
    windows, first = first_occurrences(tokens, np.isin(np.arange(8), [1, 2, 4]), 2)
    assert sorted(zip(windows.tolist(), first.tolist(), strict=True)) == [(1, 1), (4, 1)]
    assert joined(np.array([[5, 7], [0, 2], [2, 3], [6, 6], [9, 10]])).tolist() == [[0, 3], [5, 7], [9, 10]]


@pytest.mark.parametrize("options", [{"length": 1}, {"min_characters": -1}])
def test_impossible_options(options: dict[str, Any]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(UserError, match=re.escape(f"substrings: {name} is {value}; it must be at least")):
        RecipeConfig(steps=[{"substrings": options}])
