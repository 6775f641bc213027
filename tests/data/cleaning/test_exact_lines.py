"""The step exact_lines, against a plain search."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from corpus_steps import documents, in_parts, run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.config import UserError
from lit_llm.config.duplicates import ExactLinesConfig
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.step import CorpusStep

LINES = st.sampled_from(["", "ab", "one line", "  one line ", "another line", "änother", "third line\r"])


def plain(texts: list[str], options: ExactLinesConfig) -> list[tuple[str, bool]]:
    """What becomes of each text, and whether too little of it is left."""
    having: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        for line in {line.strip() for line in text.split("\n")}:
            if len(line) >= options.min_line_characters:
                having.setdefault(line, []).append(number)
    keepers = {
        line: numbers
        if len(numbers) <= options.max_documents
        else numbers[: options.max_documents * (options.keep == "first")]
        for line, numbers in having.items()
    }
    results = []
    for number, text in enumerate(texts):
        lines = text.split("\n")
        left = "\n".join(line for line in lines if number in keepers.get(line.strip(), [number]))
        results.append((left, left != text and len(left.strip()) < options.min_characters))
    return results


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(LINES, min_size=1, max_size=5).map("\n".join), min_size=1, max_size=8),
    st.builds(
        ExactLinesConfig,
        st.integers(1, 3),
        st.sampled_from(["first", "none"]),
        st.integers(2, 9),
        st.sampled_from([0, 9]),
    ),
    st.integers(1, 3),
    st.sampled_from([400, 2**30]),
)
def test_lines_of_too_many_documents_go(
    texts: list[str], options: ExactLinesConfig, size: int, memory_bytes: int
) -> None:
    step = build_step("exact_lines", options)
    assert isinstance(step, CorpusStep)
    with TemporaryDirectory() as folder:
        results, facts = run_step(step, in_parts(documents(*texts), size), Path(folder), memory_bytes)
    expected = plain(texts, options)
    assert [(text, reason is not None) for _, text, reason in results] == expected
    pairs = [(text, left) for text, (left, _) in zip(texts, expected, strict=True) if left != text]
    lines = sum(text.count("\n") - left.count("\n") + (not left and all_gone(text, options)) for text, left in pairs)
    assert step.counts["bytes of repeated lines removed"] == sum(len(a.encode()) - len(b.encode()) for a, b in pairs)
    assert step.counts["repeated lines removed"] == lines
    assert sum(facts["documents that have such a line"].values()) == facts["lines in too many documents"]
    assert bool(pairs) == bool(facts["lines in too many documents"])


def all_gone(text: str, options: ExactLinesConfig) -> bool:
    """Whether no line is left, rather than an empty one."""
    return all(len(line.strip()) >= options.min_line_characters for line in text.split("\n"))


@pytest.mark.parametrize(("keep", "left"), [("first", [1, 1, 0, 0, 0]), ("none", [0, 0, 0, 0, 0])])
def test_the_defaults_keep_the_first_and_drop_what_is_too_short(
    tmp_path: Path, keep: Literal["first", "none"], left: list[int]
) -> None:
    menu = "Home | About us | Contact | Imprint"
    own = [str(number) * 400 for number in range(4)]
    texts = [f"{menu}\n{text}\n{menu}" for text in own] + [f"{menu}\nshort"]
    step = build_step("exact_lines", ExactLinesConfig(max_documents=2, keep=keep))
    assert isinstance(step, CorpusStep)
    results, facts = run_step(step, in_parts(documents(*texts), 2), tmp_path)
    assert [text.count(menu) for _, text, _ in results] == [2 * number for number in left]
    assert [reason for *_, reason in results] == [None] * 4 + ["fewer than 300 characters without repeated lines"]
    assert facts["lines in too many documents"] == 1
    assert facts["documents that have such a line"] == {"5-8": 1}
    assert facts["most common lines"] == [{"documents": 5, "first in": {"source": "source", "id": "0"}}]
    assert facts["which keeps such a line"] == {"first": "the first 2", "none": "none"}[keep]


@pytest.mark.parametrize("options", [{"max_documents": 0}, {"min_line_characters": 0}, {"min_characters": -1}])
def test_impossible_options_are_named(options: dict[str, int]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; it must"):
        ExactLinesConfig(**options)  # type: ignore[arg-type]
