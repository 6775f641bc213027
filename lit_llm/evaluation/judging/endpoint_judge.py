"""A judge behind an endpoint with OpenAI's interface."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from lit_llm.config import JudgeSourceConfig, UserError
from lit_llm.evaluation.judging.endpoint import Endpoint, Refused, content_of, tokens_of
from lit_llm.evaluation.judging.judges import Reply
from lit_llm.evaluation.judging.wording import (
    Question,
    read_grade,
    read_verdict,
    reminder,
    request,
    schema,
)
from lit_llm.tokenizer.chat import Message

_ENOUGH_REFUSALS = 3


class EndpointJudge:
    """Puts questions to an endpoint; a reply without a verdict is asked for once more, with a reminder.

    Args:
        config: the endpoint, and what its replies are like.
        rubric: what makes an answer good; None: the built-in criterion.

    Attributes:
        name: model and address.
        minds_order: that of `Judge`.
    """

    minds_order = True

    def __init__(self, config: JudgeSourceConfig, rubric: str | None) -> None:
        self.config, self.rubric = config, rubric
        self.endpoint = Endpoint(str(config.url), config.model, config, "judge.url")
        self.name = f"{self.endpoint.find_model()} at {self.endpoint.address}"

    def check(self) -> None:
        """Put a short question, so that what no question could get past is known before answers are written for hours.

        Raises:
            UserError: the endpoint is down, wants another key, or has no such address or model.
        """
        question = Question((Message("user", "Say good morning."),), "Good morning.", "Good evening.")
        with contextlib.suppress(Refused):  # which another question need not be
            self._ask(question, request(question, self.rubric, as_json=self.config.json_verdict))

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """See `Judge`.

        Raises:
            UserError: the endpoint is down, wants another key, or refuses every question.
        """
        refused: list[tuple[int, Reply]] = []
        answered = False
        for number, reply in self.endpoint.each(questions, self._unless_all_are_refused(len(questions))):
            if reply.text or answered:
                answered = True
                yield number, reply
            else:
                refused.append((number, reply))
        yield from refused

    def _unless_all_are_refused(self, questions: int) -> Callable[[Question], Reply]:
        # counted where questions are asked: who reads the replies may lag behind, while more are asked for nothing
        lock = threading.Lock()
        refusals, answered = 0, False

        def ask(question: Question) -> Reply:
            nonlocal refusals, answered
            reply = self._reply(question)
            with lock:
                answered = answered or bool(reply.text)
                refusals += not reply.text
                if not answered and refusals >= min(_ENOUGH_REFUSALS, questions):
                    raise UserError(f"judge.url {self.endpoint.address} refuses every question: {reply.problem}")
            return reply

        return ask

    def _reply(self, question: Question) -> Reply:
        messages = request(question, self.rubric, as_json=self.config.json_verdict)
        try:
            reply = self._ask(question, messages)
            if not reply.problem:
                return reply
            answer = Message("assistant", reply.text or "(nothing)")
            again = self._ask(question, [*messages, answer, reminder(question, self.config.json_verdict)])
        except Refused as error:
            return Reply(problem=str(error))
        return replace(
            again,
            reminded=True,
            prompt_tokens=reply.prompt_tokens + again.prompt_tokens,
            completion_tokens=reply.completion_tokens + again.completion_tokens,
        )

    def _ask(self, question: Question, messages: Sequence[Message]) -> Reply:
        given = self.endpoint.chat(self._body(question, messages))
        text = content_of(given)
        tokens = tokens_of(given)
        if question.second is None:
            grade = read_grade(text)
            return Reply(None, grade, text, "" if grade is not None else "no grade in its reply", False, *tokens)
        verdict = read_verdict(text)
        return Reply(verdict, None, text, "" if verdict is not None else "no verdict in its reply", False, *tokens)

    def _body(self, question: Question, messages: Sequence[Message]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            self.config.tokens_field: self.config.max_tokens,
        }
        if self.config.temperature is not None:
            body["temperature"] = self.config.temperature
        if self.config.json_verdict:
            form = {"name": "verdict", "strict": True, "schema": schema(question)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body
