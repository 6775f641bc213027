"""Questions as ids, by the rules of lm-evaluation-harness's model for Hugging Face folders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lit_llm.config import BeginToken, UserError
from lit_llm.config.battery import BatteryTask
from lit_llm.evaluation.battery.questions import Question
from lit_llm.evaluation.battery.scoring import Encoded
from lit_llm.tokenizer import Tokenizer, begin_ids, conversation_ids, first_token_source
from lit_llm.tokenizer.chat import ChatFormat


@dataclass
class QuestionReader:
    """Encodes questions with one tokenizer.

    Args:
        tokenizer: of the model.
        begin_token: whether texts begin with the begin token; see `lit_llm.tokenizer.begin_ids`.
        chat: put questions as conversations, whatever their task says.
    """

    tokenizer: Tokenizer
    begin_token: BeginToken = "auto"
    chat: bool = False

    @cached_property
    def chat_format(self) -> ChatFormat:
        """The form of conversations.

        Raises:
            UserError: the tokenizer has none.
        """
        return ChatFormat(self.tokenizer)

    def is_chat(self, task: BatteryTask) -> bool:
        """Whether the task's questions become conversations."""
        return self.chat or task.chat

    def choices(self, question: Question, task: BatteryTask) -> Encoded:
        """Encode a question with its choices.

        Raises:
            UserError: a choice has no token of its own, or nothing stands before it that it could be predicted from.
        """
        if self.is_chat(task):
            context = self._conversation(question)
            found = [self.tokenizer.encode_further(choice) for choice in question.choices]
            return Encoded(context, self._checked(question, found), question.row.where)
        text = question.context(task)
        if not text:
            found = [self.tokenizer.encode(f"{task.delimiter}{choice}") for choice in question.choices]
            return Encoded([self._first_token()], self._checked(question, found), question.row.where)
        # white space at the end belongs to the choice, as words have theirs at the front
        before = text.rstrip()
        moved = text[len(before) :] + task.delimiter
        context = self._encode(before)
        found = [self._encode(f"{before}{moved}{choice}")[len(context) :] for choice in question.choices]
        return Encoded(context or [self._first_token()], self._checked(question, found), question.row.where)

    def prompt(self, question: Question, task: BatteryTask) -> list[int]:
        """Encode what an answer is to follow."""
        if self.is_chat(task):
            return self._conversation(question)
        return self._encode(question.context(task)) or [self._first_token()]

    def _conversation(self, question: Question) -> list[int]:
        ids = self.chat_format.render_prompt(question.turns())
        return conversation_ids(self.tokenizer, ids, self.begin_token)

    def _encode(self, text: str) -> list[int]:
        return [*begin_ids(self.tokenizer, self.begin_token), *self.tokenizer.encode(text)]

    def _first_token(self) -> int:
        found = first_token_source(self.tokenizer)
        if found is None:
            raise UserError(
                "a task asks for the probability of a text's first token, and the tokenizer has no token that begins a "
                "text; give the task a prompt"
            )
        return found

    def _checked(self, question: Question, choices: list[list[int]]) -> list[list[int]]:
        for choice, ids in zip(question.choices, choices, strict=True):
            if not ids:
                raise UserError(
                    f"{question.row.where}: the choice {choice!r:.60} has no token of its own after the prompt, and so "
                    "no probability; let delimiter be a space, or correct the choice"
                )
        return choices
