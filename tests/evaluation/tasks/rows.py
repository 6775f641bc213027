"""The documents of the tasks in this folder."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

NAMES = ["client", "server", "header", "message", "parser", "cookie", "socket", "policy", "charset", "decoder"]


def _question(number: int) -> str:
    """Longer for each number, so that a batch has rows of many lengths and the last do not fit a small context."""
    names = [NAMES[(number + place) % len(NAMES)] for place in range(1 + number)]
    return f"def {'_'.join(names)}(self):"


def _text(count: int) -> str:
    return " ".join(_question(number) for number in range(count))


def choices(**_: Any) -> DatasetDict:
    """Questions with answers of several tokens."""
    rows = [
        {
            "question": _question(number),
            "answers": [f"return {NAMES[number]}", "raise ValueError", "pass"],
            "label": number % 3,
        }
        for number in range(9)
    ]
    return DatasetDict(train=Dataset.from_list(rows[:4]), test=Dataset.from_list(rows[3:]))


def letters(**_: Any) -> DatasetDict:
    """Questions with answers of one token."""
    rows = [{"question": _question(number), "answers": list("ABCD"), "label": number % 4} for number in range(5)]
    return DatasetDict(test=Dataset.from_list(rows))


def words(**_: Any) -> DatasetDict:
    """Texts whose last word is to be predicted."""
    rows = [{"text": _question(number), "last": NAMES[number]} for number in range(5)]
    return DatasetDict(test=Dataset.from_list(rows))


def writing(**_: Any) -> DatasetDict:
    """Questions with an answer to write."""
    rows = [{"question": _question(number % 5), "answer": f"return {NAMES[number]}"} for number in range(8)]
    return DatasetDict(train=Dataset.from_list(rows[:4]), test=Dataset.from_list(rows[4:]))


def texts(**_: Any) -> DatasetDict:
    """Texts of a few words up to several contexts of a small model."""
    return DatasetDict(test=Dataset.from_list([{"text": _text(count)} for count in (1, 2, 4, 7)]))


def short_texts(**_: Any) -> DatasetDict:
    """Texts that fit the context of a small model; one has characters of several bytes."""
    return DatasetDict(test=Dataset.from_list([{"text": text} for text in (_text(1), _text(2), "naïve café")]))


def verdicts(**_: Any) -> DatasetDict:
    """Eight questions, of which the answer "yes" is right for six."""
    rows = [
        {"question": f"{number}: is it so?", "answers": ["yes", "no"], "label": int(number >= 6)} for number in range(8)
    ]
    return DatasetDict(test=Dataset.from_list(rows))


def missing(**_: Any) -> DatasetDict:
    """A data set that is not there."""
    raise ConnectionError("no route to\nthe data")
