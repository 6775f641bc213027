"""Answers that are compared with the right one: numbers, choices and texts."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import regex

from lit_llm.config import UserError
from lit_llm.evaluation.verifiers.verdict import Verdict, field, field_texts

_NUMBER = re.compile(
    r"(?<![\w.)])(?:[-+\u2212]\s?)?[$€£¥]?[-\u2212]?(?:\d{1,3}(?:,\d{3}(?!\d))+|\d+)?(?:\.\d+|(?<=\d))"
)
_MARK = "####"
_LETTERS = string.ascii_uppercase
_ARTICLE = r"(?<!A(?= (?!because|since|as|and)[a-z]))"  # "the answer is A dog"
_PATTERN_SECONDS = 2.0


def extract_number(text: str) -> Decimal | None:
    """The number that a text gives as its answer: the one behind `####` (as in GSM8K), else the last one.

    Commas between groups of three digits, currency and signs are understood; 7.0 and 7 are the same number.
    """
    for part in text.split(_MARK)[1:]:
        if found := _NUMBER.search(part):
            return _decimal(found[0])
    numbers = _NUMBER.findall(text)
    return _decimal(numbers[-1]) if numbers else None


def _decimal(text: str) -> Decimal:
    return Decimal(re.sub(r"[,$€£¥+\s]", "", text.replace("\u2212", "-")).replace("--", "-"))


def number(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a text's number is the row's: `answer` is a number, or a text that ends with `#### 42`."""
    answer = field(row, "answer", (str, int, float))
    expected = extract_number(str(answer))
    if expected is None:
        raise UserError(f"the field answer of a row holds no number: {answer!r:.80}")
    found = extract_number(text)
    if found is None:
        return Verdict(False, "no number in the answer")
    return Verdict(found == expected, "" if found == expected else f"{_short(found)} instead of {_short(expected)}")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain_text(text: str, row: Mapping[str, Any]) -> str:
    """A text with single spaces, and without upper case where the row says `ignore_case`."""
    text = " ".join(text.split())
    return text.casefold() if field({"ignore_case": False, **row}, "ignore_case", bool) else text


def exact(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a text is the row's `answer`, or one of several, whatever the white space; `ignore_case` as well."""
    answers = field_texts(row, "answer")
    found = plain_text(text, row)
    correct = any(found == plain_text(answer, row) for answer in answers)
    return Verdict(correct, "" if correct else f"{_short(text)!r} instead of {_short(answers[0])!r}")


def contains(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a text has the row's `answer` in it, and each of them where it is a list; `ignore_case` as in `exact`."""
    found = plain_text(text, row)
    missing = [answer for answer in field_texts(row, "answer") if plain_text(answer, row) not in found]
    return Verdict(not missing, f"{_short(missing[0])!r} is not in the answer" if missing else "")


def right_choice(row: Mapping[str, Any]) -> int:
    """The index of the right one among the row's `choices`; `answer` is the index from 0, the letter, or the text.

    Raises:
        UserError: there are no choices, more than letters, or the answer is none of them.
    """
    choices = field_texts(row, "choices")
    if not 2 <= len(choices) <= len(_LETTERS):
        raise UserError(f"choices of a row must be 2 to {len(_LETTERS)} texts; number of texts here: {len(choices)}")
    answer = field(row, "answer", (int, str))
    if isinstance(answer, int):
        index = answer
    elif answer in choices:
        index = choices.index(answer)
    else:
        letter = answer.strip().upper()
        index = _LETTERS.find(letter) if len(letter) == 1 else -1
    if not 0 <= index < len(choices):
        raise UserError(
            f"the answer {answer!r:.60} of a row is none of its {len(choices)} choices: an index from 0, "
            f"a letter from A to {_LETTERS[len(choices) - 1]}, or the text of one"
        )
    return index


def extract_choice(text: str, choices: list[str]) -> int | None:
    """The index of the choice that a text names, None where it names none, or several.

    In this order: the text is a letter, or begins with one that a point, a colon or a bracket follows; "the answer is
    B" (the last one) or \\boxed{B}, but not "B or C"; the text of a single choice; a single letter in brackets.
    """
    any_letter = f"[{_LETTERS[: len(choices)]}]"
    letter = f"({any_letter})"
    stripped = text.strip().strip("*_")
    if found := re.match(rf"\(?{letter}(?:$|[.:;)*\n](?!\W*(?:or|and)\b))", stripped):
        return _LETTERS.index(found[1])
    alone = rf"(?!\W*(?:(?:or|and)\b|[,/&])\W*{any_letter}(?!\w|'\w))"  # "B or C", "(B), (C)" and "B/C" name several
    claim = rf"(?i:answer)\W+(?:(?i:is|would be|should be)\W+)?{letter}(?!\w|'\w){_ARTICLE}{alone}"
    claims = re.findall(claim, stripped)
    claims += re.findall(rf"\\boxed\{{\s*(?:\\text\{{)?\(?{letter}\b{alone}", stripped)
    if claims:
        return _LETTERS.index(claims[-1])
    low = " ".join(stripped.casefold().split())
    plain = [" ".join(choice.casefold().split()) for choice in choices]
    if low.rstrip(".") in plain:
        return plain.index(low.rstrip("."))
    named = [index for index, choice in enumerate(plain) if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", low)]
    # "not all" names "all" as well: the longest one counts that has all the others in it
    longest = max(named, key=lambda index: len(plain[index]), default=None)
    if longest is not None and all(plain[index] in plain[longest] for index in named):
        return longest
    bracketed = set(re.findall(rf"\({letter}\)", stripped))
    return _LETTERS.index(bracketed.pop()) if len(bracketed) == 1 else None


def choice(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a text names the right one of the row's `choices`, by its letter or in its words."""
    expected = right_choice(row)
    found = extract_choice(text, row["choices"])
    if found is None:
        return Verdict(False, "the answer names no choice, or several")
    return Verdict(found == expected, "" if found == expected else f"{_LETTERS[found]} instead of {_LETTERS[expected]}")


def check_pattern(row: Mapping[str, Any]) -> str:
    """The row's `pattern`.

    Raises:
        UserError: there is none, or it is no regular expression.
    """
    pattern: str = field(row, "pattern")
    try:
        regex.compile(pattern)  # kept by the library
    except regex.error as error:
        raise UserError(f"the pattern {pattern!r:.60} of a row is no regular expression: {error}") from error
    return pattern


def extract_match(text: str, row: Mapping[str, Any]) -> str | None:
    """What the row's `pattern` finds in a text first: its group where it has one, else all of it.

    Raises:
        UserError: see `check_pattern`; or the pattern takes longer than two seconds on a text.
    """
    pattern = check_pattern(row)
    try:
        found = regex.search(pattern, text, timeout=_PATTERN_SECONDS)
    except TimeoutError as error:
        raise UserError(
            f"the pattern {pattern!r:.60} of a row takes more than {_PATTERN_SECONDS:g} s on an answer of {len(text)} "
            "characters; write it without nested repetitions"
        ) from error
    return None if found is None else found[1] if found.re.groups and found[1] is not None else found[0]


def matches(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether the row's `pattern` is found in a text, and what it finds is the `answer`, where the row has one."""
    found = extract_match(text, row)
    if found is None:
        return Verdict(False, "the pattern is not in the answer")
    return exact(found, row) if "answer" in row else Verdict(True)
