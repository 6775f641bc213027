"""Which questions a comparison puts to its judge, and what its replies come to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lit_llm.config import derived_seed
from lit_llm.evaluation.judging.answers import Asked
from lit_llm.evaluation.judging.outcomes import Outcomes
from lit_llm.evaluation.judging.wording import Question

How = Literal["agreed", "disagreed", "once", "same", "empty", "unparsed"]
Line = Mapping[str, Any]
"""A line of judgements.jsonl: what was asked (`prompt`, `first`, `second`, `repeat`) and the fields of the reply."""
Key = tuple[str, str, str | None, int]
"""Prompt, the model whose answer is shown first, the other (None: there is none), and 1 where it is asked again."""


@dataclass(frozen=True)
class Match:
    """Two models' answers to a prompt.

    Attributes:
        asked: the prompt.
        one: name of the one model.
        other: name of the other.
        verdict: name of the better one, "tie", or None where there is no verdict.
        how: why: both orders "agreed" or "disagreed", it was asked "once" (or follows from grades), the answers are the
            "same", one is "empty", or a reply could not be read ("unparsed").
    """

    asked: Asked
    one: str
    other: str
    verdict: str | None
    how: How


class Plan:
    """Everything that is to be asked.

    Args:
        asked: the prompts.
        answers: of each model, to all prompts.
        baseline: the model that all others are compared with; None: each with each.
        graded: answers are graded one by one.
        both_orders: a pair is asked in both orders.
        repeat: share of the questions that are asked twice.
        seed: of which these are.

    Attributes:
        keys: of all questions, prompt by prompt.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        answers: Mapping[str, Sequence[str]],
        baseline: str | None,
        *,
        graded: bool,
        both_orders: bool,
        repeat: float,
        seed: int,
    ) -> None:
        self.asked, self.answers, self.graded, self.both_orders = asked, answers, graded, both_orders
        names = list(answers)
        others = [(name, baseline) for name in names if name != baseline]
        self.pairs: list[tuple[str, str]] = (
            list(itertools.combinations(names, 2)) if baseline is None else others  # type: ignore[assignment]
        )
        self._by_id = {each.id: each for each in asked}
        self.keys: list[Key] = []
        for each in asked:
            for key in self._keys(each):
                self.keys.append(key)
                if derived_seed(seed, "repeat", *map(str, key)) < repeat * 2**63:
                    self.keys.append((*key[:3], 1))

    def question(self, key: Key) -> Question:
        """What the judge is asked."""
        asked = self._by_id[key[0]]
        first, second = self.answers[key[1]][asked.number], key[2] and self.answers[key[2]][asked.number]
        return Question(asked.messages, first, second)

    def matches(self, lines: Mapping[Key, Line]) -> list[Match]:
        """What came out for each prompt and pair of models, from the replies."""
        judged = self._by_grades if self.graded else self._by_verdicts
        return [judged(each, *pair, lines) for each in self.asked for pair in self.pairs]

    def _keys(self, asked: Asked) -> Iterator[Key]:
        if self.graded:
            yield from ((asked.id, name, None, 0) for name in self.answers)
            return
        for one, other in self.pairs:
            if self._without_judge(asked, one, other) is None:
                yield asked.id, one, other, 0
                if self.both_orders:
                    yield asked.id, other, one, 0

    def _without_judge(self, asked: Asked, one: str, other: str) -> Match | None:
        """A match that needs no judge: the same answer twice is a tie, and an empty answer loses."""
        texts = [self.answers[name][asked.number].strip() for name in (one, other)]
        if texts[0] == texts[1]:
            return Match(asked, one, other, "tie", "same")
        if not all(texts):
            return Match(asked, one, other, one if texts[0] else other, "empty")
        return None

    def _by_verdicts(self, asked: Asked, one: str, other: str, lines: Mapping[Key, Line]) -> Match:
        known = self._without_judge(asked, one, other)
        if known is not None:
            return known
        orders = [(one, other), (other, one)][: 2 if self.both_orders else 1]
        said = [winner(lines[asked.id, *order, 0]) for order in orders]
        if None in said:
            return Match(asked, one, other, None, "unparsed")
        if len(said) == 1:
            return Match(asked, one, other, said[0], "once")
        return Match(asked, one, other, *((said[0], "agreed") if said[0] == said[1] else ("tie", "disagreed")))

    def _by_grades(self, asked: Asked, one: str, other: str, lines: Mapping[Key, Line]) -> Match:
        grades = [lines[asked.id, name, None, 0]["grade"] for name in (one, other)]
        if None in grades:
            return Match(asked, one, other, None, "unparsed")
        better = "tie" if grades[0] == grades[1] else one if grades[0] > grades[1] else other
        return Match(asked, one, other, better, "once")


def key_of(line: Line) -> Key:
    """What a line of judgements.jsonl is the reply to."""
    return str(line["prompt"]), str(line["first"]), line["second"], int(line["repeat"])


def winner(line: Line) -> str | None:
    """Name of the model that a reply finds better, "tie", or None where it has no verdict."""
    return {"first": line["first"], "second": line["second"], "tie": "tie"}.get(line["verdict"])


def outcomes_of(matches: Sequence[Match], names: Sequence[str], length: Callable[[str, int], int]) -> Outcomes:
    """The matches that have a verdict, as arrays.

    Args:
        matches: of models.
        names: of the models, which number them.
        length: characters of a model's answer to the prompt of a number.
    """
    decided = [match for match in matches if match.verdict is not None]
    scores = [0.5 if match.verdict == "tie" else float(match.verdict == match.one) for match in decided]
    longer = [length(match.one, match.asked.number) - length(match.other, match.asked.number) for match in decided]
    return Outcomes(
        np.array([match.asked.number for match in decided], np.int64),
        np.array([names.index(match.one) for match in decided], np.int64),
        np.array([names.index(match.other) for match in decided], np.int64),
        np.array(scores, np.float64),
        np.array(longer, np.float64),
    )
