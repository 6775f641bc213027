"""The seam between a comparison and whoever judges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lit_llm.evaluation.judging.wording import Question, Verdict


@dataclass(frozen=True)
class Reply:
    """What a judge says to a question.

    Attributes:
        verdict: which answer is better; None: there is none, or a grade was asked for.
        grade: of a single answer; None: there is none, or a verdict was asked for.
        text: its words; empty of a judge without any.
        problem: why there is no verdict; empty where there is one.
        reminded: whether it had to be reminded of the form.
        prompt_tokens: that it has read.
        completion_tokens: that it has written.
    """

    verdict: Verdict | None = None
    grade: float | None = None
    text: str = ""
    problem: str = ""
    reminded: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(Protocol):
    """Judges answers.

    Attributes:
        name: what it is called in the report.
        minds_order: whether its verdict may change with which answer comes first; if not, one order is asked.
    """

    name: str
    minds_order: bool

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Yield the number of each question and the reply to it, in any order, each as soon as it is there.

        Raises:
            UserError: the judge cannot be asked any more.
        """
        ...
