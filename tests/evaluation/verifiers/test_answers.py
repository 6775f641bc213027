"""Answers that are compared with the right one, and what several answers say together."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal
from typing import Any

import pytest

from lit_llm.config import UserError
from lit_llm.evaluation.verifiers import (
    ANSWERS,
    VERIFIERS,
    extract_choice,
    extract_number,
    majority,
    pass_at_k,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sold 48 in April and 24 in May.\n#### 72\n\nQuestion: 3 and 4?\n#### 7", "72"),
        ("#### -1,234.50", "-1234.5"),
        ("#### unknown\nThe total is 12.", "12"),
        ("It costs $5.00.", "5"),
        ("-$7", "-7"),
        ("$-7", "-7"),
        ("\u22127", "-7"),
        ("5-3", "3"),
        ("5 - 3 = 2", "2"),
        ("x=-3", "-3"),
        ("1,000,000 apples", "1000000"),
        ("1,2,3", "3"),
        (".5", "0.5"),
        ("**18**.", "18"),
        (r"\boxed{-18}", "-18"),
        ("no number at all", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    assert extract_number(text) == (None if number is None else Decimal(number))


CHOICES = ["red", "blue", "not blue", "a cat"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        (" (B) blue", 1),
        ("B. blue", 1),
        ("**B**", 1),
        ("First I thought the answer is A. But the answer is (C).", 2),
        ("Answer: B because of it", 1),
        (r"So \boxed{D}", 3),
        ("A cat", 3),
        ("The answer is a cat.", 3),
        ("Not  blue.", 2),
        ("It is blue", 1),
        ("red or blue", None),
        ("I choose (A)", 0),
        ("(A) or (B)", None),
        ("The answer is A dog", None),
        ("The answer is B or C.", None),
        ("Answer: B and C", None),
        ("The answer is (B), (C)", None),
        ("Answer: B/C", None),
        (r"\boxed{B or C}", None),
        ("The answer is B or C. So the answer is C.", 2),
        ("The answer is B, and I am sure.", 1),
        ("The answer is B and not red", 1),
        ("E", None),
    ],
)
def test_the_choice_of_an_answer(text: str, index: int | None) -> None:
    assert extract_choice(text, CHOICES) == index


@pytest.mark.parametrize(
    ("name", "text", "row", "correct"),
    [
        ("number", "That is 1,000.0", {"answer": "10 * 100 = <<10*100=1000>>1000\n#### 1000"}, True),
        ("number", "That is 1000.1", {"answer": 1000}, False),
        ("number", "I do not know", {"answer": 1000}, False),
        ("exact", " Ann  Lee\n", {"answer": "Ann Lee"}, True),
        ("exact", "ann lee", {"answer": "Ann Lee"}, False),
        ("exact", "ann lee", {"answer": ["Bob", "Ann Lee"], "ignore_case": True}, True),
        ("contains", "Ann met Bob", {"answer": ["Bob", "Ann"]}, True),
        ("contains", "Ann met nobody", {"answer": ["Bob", "Ann"]}, False),
        ("choice", "C", {"choices": CHOICES, "answer": 2}, True),
        ("choice", "C", {"choices": CHOICES, "answer": "c"}, True),
        ("choice", "B", {"choices": CHOICES, "answer": "not blue"}, False),
        ("choice", "well", {"choices": CHOICES, "answer": "not blue"}, False),
        ("regex", "x = 12;", {"pattern": r"x = \d+"}, True),
        ("regex", "x = 12;", {"pattern": r"x = (\d+)", "answer": "12"}, True),
        ("regex", "x = 12;", {"pattern": r"x = (\d+)", "answer": "x = 12"}, False),
        ("regex", "y", {"pattern": r"x"}, False),
    ],
)
def test_verdict(name: str, text: str, row: dict[str, Any], correct: bool) -> None:
    verdict = VERIFIERS[name](text, row)
    assert verdict.correct is correct
    # why, wherever it is wrong, in one line
    assert bool(verdict.reason) is not correct and "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("number", {"question": "?"}, "no field answer; it has question"),
        ("number", {"answer": "none"}, "no number"),
        ("number", {"answer": True}, "must be str or int or float, not bool"),
        ("exact", {"answer": []}, "a text or a list of texts"),
        ("exact", {"answer": "a", "ignore_case": 1}, "ignore_case of a row must be bool"),
        (
            "choice",
            {"choices": ["a", "b"], "answer": 2},
            "none of its 2 choices: an index from 0, a letter from A to B",
        ),
        ("choice", {"choices": ["a", "b"], "answer": -1}, "none of its 2 choices"),
        ("choice", {"choices": ["a", "b"], "answer": "C"}, "none of its 2 choices"),
        ("choice", {"choices": ["a"], "answer": 0}, "choices of a row must be 2 to 26 texts; number of texts here: 1"),
        ("regex", {"pattern": "("}, "no regular expression"),
        ("regex", {"pattern": r"(a|aa)+$"}, "more than 2 s"),
    ],
)
def test_rows_that_lack_something_are_refused(
    name: str, row: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "2 s" in message:
        monkeypatch.setattr("lit_llm.evaluation.verifiers.answers._PATTERN_SECONDS", 0.02)
        message = "more than 0.02 s"
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        VERIFIERS[name]("a" * 100 + "!", row)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 0, 2), (5, 2, 1), (5, 2, 3), (5, 4, 2), (6, 1, 6)])
def test_pass_at_k_is_the_mean_over_all_draws(samples: int, correct: int, k: int) -> None:
    draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_of_what_cannot_be(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="right answers among"):
        pass_at_k(samples, correct, k)


def test_majority_counts_what_was_answered() -> None:
    texts = ["No idea.", "#### 8", "It is 7.0", "So 7"]
    votes = [ANSWERS["number"](text, {}) for text in texts]
    assert majority(votes) == 7
    assert majority(ANSWERS["choice"](text, {"choices": CHOICES}) for text in ["A", "(B)", "blue."]) == 1
    row = {"answer": "x", "ignore_case": True}
    assert majority(ANSWERS["exact"](text, row) for text in ["b", "A  b", "a b"]) == "a b"
    seven, eight = extract_number("7.0"), extract_number("8")
    assert majority([eight, seven]) == 8
    assert majority([None, None]) is None
