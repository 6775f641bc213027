"""The step near_duplicates: what it finds, what it leaves, what stays."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from corpus_steps import documents, dropped, in_parts, run_step

from lit_llm.config import UserError
from lit_llm.config.duplicates import NearDuplicatesConfig
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.step import CorpusStep


def step(**options: Any) -> CorpusStep:
    made = build_step("near_duplicates", NearDuplicatesConfig(**options))
    assert isinstance(made, CorpusStep)
    return made


def words(generator: random.Random, number: int) -> list[str]:
    return [f"{generator.randrange(16**6):x}" for _ in range(number)]


def edited(text: list[str], places: list[int]) -> str:
    """The text with other words at some places, and in other case and punctuation."""
    return ", ".join(f"new{place}" if place in places else word.upper() for place, word in enumerate(text)) + "."


@pytest.mark.parametrize("verify", [None, 0.7])
def test_planted_pairs_are_found_and_distinct_ones_stay(tmp_path: Path, verify: float | None) -> None:
    """Near-duplicates have 3 other words of 300 (Jaccard at least 0.90, found with P > 0.9997); distinct pairs have a
    quarter of their text in common (Jaccard 0.14, found with P < 3e-6)."""
    generator = random.Random(0)
    originals = [words(generator, 300) for _ in range(400)]
    texts = [" ".join(text) for text in originals]
    texts += [edited(text, generator.sample(range(300), 3)) for text in originals[:200]]
    texts += [" ".join(text[:75] + words(generator, 225)) for text in originals[200:]]
    order = generator.sample(range(800), 800)
    parts = in_parts(documents(*(texts[number] for number in order)), 150)
    results, facts = run_step(step(verify=verify, keep="first"), parts, tmp_path / "large")
    removed = [order[number] for number in dropped(results)]
    assert len(removed) >= 199 and len({number % 400 for number in removed}) == len(removed)
    assert all(number % 400 < 200 for number in removed)
    assert facts["cluster sizes"] == {"2": len(removed)} and facts["documents removed"] == len(removed)
    example = facts["largest clusters"][0]
    kept, gone = (order[int(example[name][0]["id"])] for name in ("kept", "removed"))
    assert kept % 400 == gone % 400 and order.index(kept) < order.index(gone)

    again, same = run_step(step(verify=verify, keep="first"), parts, tmp_path / "large", memory_bytes=20_000)
    assert (again, same) == (results, facts)


@pytest.mark.parametrize(("shared", "jaccard"), [(274, 0.818), (258, 0.735), (232, 0.613)])
def test_as_many_pairs_are_found_as_theory_says(tmp_path: Path, shared: int, jaccard: float) -> None:
    """Texts of 304 words that begin with the same `shared` ones; n-grams across the end of these are different."""
    pairs, generator = 400, random.Random(shared)
    texts = []
    for _ in range(pairs):
        common = words(generator, shared)
        texts += [" ".join(common + words(generator, 304 - shared)) for _ in range(2)]
    similarity = (shared - 4) / (600 - (shared - 4))
    assert similarity == pytest.approx(jaccard, abs=0.001)
    results, facts = run_step(step(), in_parts(documents(*texts), 333), tmp_path)
    expected = 1 - (1 - similarity**8) ** 14
    deviation = (expected * (1 - expected) / pairs) ** 0.5
    assert len(dropped(results)) / pairs == pytest.approx(expected, abs=4 * deviation)
    assert len(dropped(results)) == facts["clusters"]


@pytest.mark.parametrize(
    ("keep", "verify", "expected"),
    [("first", None, [1, 2, 3]), ("longest", None, [0, 2, 3]), ("first", 0.55, [1, 3]), ("longest", 0.55, [0, 2])],
)
def test_which_of_a_chain_stays(tmp_path: Path, keep: str, verify: float | None, expected: list[int]) -> None:
    """Each text has a similarity of 0.66 with the next, and of at most 0.43 with others; bands of one row join what has
    any hash in common. What is less similar than `verify` to the one that stays forms a group of its own."""
    text = words(random.Random(1), 2000)
    texts = [" ".join(text[start : start + 1000]) for start in (0, 200, 400, 600)]
    texts[1] += " and some more words"
    results, facts = run_step(step(bands=100, rows=1, keep=keep, verify=verify), [documents(*texts)], tmp_path)
    assert dropped(results) == expected
    assert facts["cluster sizes"] == {"3-4": 1} and facts["documents removed"] == len(expected)
    example = facts["largest clusters"][0]
    assert [int(name["id"]) for name in example["removed"]] == expected
    assert len(example["kept"]) == 4 - len(expected)


def test_short_texts_are_compared_as_a_whole(tmp_path: Path) -> None:
    texts = [
        "Yes.",
        "yes",
        "no",
        "yes no",
        "no yes",
        "",
        "***",
        "* * *",
        "***\n",
        "one two three four",
        "one two three",
    ]
    results, _ = run_step(step(keep="first"), in_parts(documents(*texts), 4), tmp_path)
    assert dropped(results) == [1, 8]
    longest, _ = run_step(step(), in_parts(documents(*texts), 4), tmp_path)
    assert dropped(longest) == [1, 6]
    assert {reason for *_, reason in results} == {None, "near-duplicate"}


def test_a_corpus_without_documents(tmp_path: Path) -> None:
    results, facts = run_step(step(verify=0.8), [[], []], tmp_path)
    assert results == [] and facts["clusters"] == 0 and facts["documents removed"] == 0


@pytest.mark.parametrize(
    "options", [{"bands": 0}, {"rows": 0}, {"ngram": 0}, {"verify": 0.0}, {"verify": 1.5}, {"seed": -1}]
)
def test_impossible_options_are_named(options: dict[str, Any]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; it must"):
        NearDuplicatesConfig(**options)
