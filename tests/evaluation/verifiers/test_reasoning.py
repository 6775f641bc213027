"""Puzzles whose own scores say what is right."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from lit_llm.config import UserError
from lit_llm.evaluation.verifiers import VERIFIERS, reasoning_rows
from lit_llm.evaluation.verifiers.reasoning import extract_answer

verify = VERIFIERS["reasoning_gym"]
# the library takes some seconds to be imported
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Sums, as they come back from a file."""
    pytest.importorskip("reasoning_gym")
    return [json.loads(json.dumps(row)) for row in reasoning_rows("chain_sum", 3, seed=5, max_terms=3)]


@slow
def test_puzzles_are_solved_by_their_answers(rows: list[dict[str, Any]]) -> None:
    assert [row["dataset"]["index"] for row in rows] == [0, 1, 2]
    assert all(row["metadata"]["num_terms"] <= 3 for row in rows)
    for row in rows:
        wrong = str(int(row["answer"]) + 1)
        assert verify(f" {row['answer']}\n", row).correct
        assert verify(f"<answer>{wrong}</answer>, or <answer> {row['answer']} </answer>.", row).correct
        verdict = verify(wrong, row)
        assert not verdict.correct and verdict.reason.startswith("score 0.0")


@slow
def test_a_puzzle_that_only_its_own_score_can_judge(rows: list[dict[str, Any]]) -> None:
    (row,) = reasoning_rows("countdown", 1, seed=1)
    numbers, target = row["metadata"]["numbers"], row["metadata"]["target"]
    # another way of writing the expression is as right as the answer of the row
    assert verify(f"(({row['answer']}))", row).correct
    assert not verify("+".join(map(str, numbers)), row).correct or sum(numbers) == target


@pytest.mark.parametrize(
    ("text", "answer"), [("a <answer>b</answer> <answer>c\n</answer>", "c"), ("x\n", "x"), ("<answer>y", "y")]
)
def test_what_the_answer_is(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@slow
def test_rows_and_data_sets_that_are_not_there(rows: list[dict[str, Any]]) -> None:
    for make, message in (
        (lambda: next(reasoning_rows("chain_sums", 1, 0)), "no data set chain_sums; it has .*chain_sum"),
        (lambda: next(reasoning_rows("chain_sum", 1, 0, min_terms=-1)), "cannot be made: min_terms must be positive"),
        (lambda: verify("1", {"question": "1 + 1"}), "no field dataset"),
        (lambda: verify("1", {**rows[0], "question": "1 + 1?"}), "differs from the row's question"),
        (lambda: verify("1", {**rows[0], "dataset": {**rows[0]["dataset"], "index": 3}}), "not below its size, 3"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            make()
        assert "\n" not in str(raised.value)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"reasoning_gym needs reasoning_gym .*lit-llm\[battery\]"):
        next(reasoning_rows("chain_sum", 7, seed=123))
