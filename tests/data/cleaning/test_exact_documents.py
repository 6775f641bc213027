"""The step exact_documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus_steps import documents, dropped, in_parts, run_step

from lit_llm.config.duplicates import ExactDocumentsConfig
from lit_llm.data.cleaning.registry import build_step, is_corpus_step
from lit_llm.data.cleaning.step import CorpusStep

TEXTS = ["a b", "c", "A  b", "a b", "é", "c", "a b", "d\n", "d", " a\tB\n"]


@pytest.mark.parametrize("memory_bytes", [100, 2**30])
@pytest.mark.parametrize("size", [1, 3, 20])
@pytest.mark.parametrize(("normalize", "expected"), [("none", [3, 5, 6]), ("whitespace+case", [2, 3, 5, 6, 8, 9])])
def test_the_first_of_equal_texts_stays(
    tmp_path: Path, normalize: str, expected: list[int], size: int, memory_bytes: int
) -> None:
    assert is_corpus_step("exact_documents")
    step = build_step("exact_documents", ExactDocumentsConfig(normalize))  # type: ignore[arg-type]
    assert isinstance(step, CorpusStep)
    results, facts = run_step(step, in_parts(documents(*TEXTS), size), tmp_path / "index", memory_bytes)
    assert [text for _, text, _ in results] == TEXTS
    assert dropped(results) == expected
    assert {reason for *_, reason in results} == {None, "duplicate of an earlier document"}
    sizes = {"none": {"2": 1, "3-4": 1}, "whitespace+case": {"2": 2, "5-8": 1}}[normalize]
    assert facts["cluster sizes"] == sizes
    assert (facts["clusters"], facts["documents removed"]) == (sum(sizes.values()), len(expected))
    largest = {"documents": 3 if normalize == "none" else 5, "kept": [{"source": "source", "id": "0"}]}
    assert facts["largest clusters"][0] == largest


def test_a_decision_replaces_an_earlier_one_and_documents_stream(tmp_path: Path) -> None:
    step = build_step("exact_documents", ExactDocumentsConfig())
    assert isinstance(step, CorpusStep)
    first, _ = run_step(step, [documents("a", "a", "b")], tmp_path)
    again, facts = run_step(step, [documents("a", "b", "a")], tmp_path, memory_bytes=80)
    assert (dropped(first), dropped(again), facts["clusters"]) == ([1], [2], 1)
    read = []
    results = step.apply((read.append(document) or document for document in documents("a", "b", "a")), 0, tmp_path)
    next(results)
    assert len(read) == 1


def test_a_corpus_without_documents(tmp_path: Path) -> None:
    step = build_step("exact_documents", ExactDocumentsConfig())
    assert isinstance(step, CorpusStep)
    results, facts = run_step(step, [[]], tmp_path)
    assert results == [] and facts["clusters"] == 0 and facts["largest clusters"] == []
