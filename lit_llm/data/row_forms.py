"""What rows of files look like, and the conversations in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lit_llm.config import UserError
from lit_llm.tokenizer.chat import Message

Messages = tuple[Message, ...]

_ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ("system", "user", "assistant", "tool")}}
_KINDS = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True)
class RowPlace:
    """Where a row is.

    Attributes:
        file: Path, or the name of the data set.
        row: Line of a .jsonl file, else number of the row; from 1.
    """

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row:,}"


class Row:
    """A row's fields, which say where they are when something is wrong with them.

    Args:
        place: Of the row.
        value: What the file has there.

    Raises:
        UserError: it is no object; from any method: a field is not as it should be.
    """

    def __init__(self, place: RowPlace, value: Any) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise self.error(f"the row is {_kind(value)}, not an object with fields", "leave it out")
        self.fields: dict[str, Any] = value

    def error(self, problem: str, fix: str) -> UserError:
        """What to raise, in the form `file, row N: problem; fix`."""
        return UserError(f"{self.place}: {problem}; {fix}")

    def has(self, *names: str) -> bool:
        """Whether all of the fields are there and not null."""
        return all(self.fields.get(name) is not None for name in names)

    def value(self, name: str) -> Any:
        """A field that has to be there."""
        if name not in self.fields:
            near = _nearest(name, self.fields)
            hint = f"rename {near!r}" if near else f"its fields are {', '.join(map(str, self.fields)) or 'none'}"
            raise self.error(f"no field {name!r}", hint)
        if self.fields[name] is None:
            raise self.error(f"the field {name!r} is null", "fill it in, or leave the row out")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A field that has to be text; may be empty."""
        return self._checked_text(self.value(name), f"the field {name!r}")

    def optional_text(self, name: str) -> str:
        """A field of text; empty where it is not there, or null."""
        return self.text(name) if self.has(name) else ""

    def number(self, name: str) -> float:
        """A field that has to be a finite number."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"the field {name!r} is {_shown(value)}, not a finite number", "correct it")
        return float(value)

    def messages(self, name: str) -> Messages:
        """A field that has to be a list of messages, or one: role and content, or from and value."""
        value = self.value(name)
        turns = [value] if isinstance(value, dict) else value
        if not isinstance(turns, list):
            raise self.error(f"the field {name!r} is {_kind(value)}, not a list of messages", "correct it")
        if not turns:
            raise self.error(f"the field {name!r} has no message", "leave the row out")
        return tuple(self._message(turn, f"message {number} of {name!r}") for number, turn in enumerate(turns, start=1))

    def text_or_messages(self, name: str, role: str) -> Messages:
        """A field that has to be the words of `role`, or messages."""
        return (Message(role, self.text(name)),) if isinstance(self.value(name), str) else self.messages(name)

    def _message(self, turn: Any, where: str) -> Message:
        if not isinstance(turn, dict):
            raise self.error(f"{where} is {_kind(turn)}, not an object with role and content", "correct it")
        role_key, content_key = ("from", "value") if turn.get("from") is not None else ("role", "content")
        for key in (role_key, content_key):
            if key not in turn:
                near = _nearest(key, turn)
                raise self.error(f"{where} has no {key!r}", f"rename {near!r}" if near else "add it")
        role, content = turn[role_key], turn[content_key]
        if not isinstance(role, str) or role not in _ROLES:
            raise self.error(f"{where} has the role {_shown(role)}", f"it must be one of {', '.join(_ROLES)}")
        if turn.get("tool_calls"):
            raise self.error(f"{where} has tool_calls, which are not read", "write the calls into its content")
        if content is None:
            raise self.error(f"the {content_key} of {where} is null", "fill it in, or leave the row out")
        return Message(_ROLES[role], self._checked_text(content, f"the {content_key} of {where}"))

    def _checked_text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise self.error(f"{where} is {_kind(value)}, not text", "correct it, or leave the row out")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(f"{where} has half of a surrogate pair, which is no character", "correct it")
        return value


@dataclass(frozen=True)
class Form:
    """How a row holds a conversation.

    Attributes:
        fields: Those that it is known by.
        read: Its messages.
    """

    fields: tuple[str, ...]
    read: Callable[[Row], Messages]


def instruction_of(row: Row) -> Messages:
    """The prompt of a row in Alpaca's form: instruction and, after a blank line, input."""
    parts = (row.text("instruction"), row.optional_text("input"))
    return (Message("user", "\n\n".join(part for part in parts if part)),)


FORMS: Mapping[str, Form] = {
    "messages": Form(("messages",), lambda row: row.messages("messages")),
    "sharegpt": Form(("conversations",), lambda row: row.messages("conversations")),
    "alpaca": Form(
        ("instruction", "output"), lambda row: (*instruction_of(row), Message("assistant", row.text("output")))
    ),
    "prompt_completion": Form(
        ("prompt", "completion"),
        lambda row: (*row.text_or_messages("prompt", "user"), *row.text_or_messages("completion", "assistant")),
    ),
    "gsm8k": Form(
        ("question", "answer"),
        lambda row: (Message("user", row.text("question")), Message("assistant", row.text("answer"))),
    ),
}
"""By name; where a row has the fields of several, it has the first of these forms."""


def form_of(row: Row) -> str | None:
    """The name of a row's form, told by its fields; by null ones (parquet has every column) only if by no other."""
    filled = (name for name, form in FORMS.items() if row.has(*form.fields))
    named = (name for name, form in FORMS.items() if all(field in row.fields for field in form.fields))
    return next(filled, next(named, None))


def conversation_of(row: Row, form: str) -> Messages:
    """A row's messages, its system's message first; a user has said something in each turn.

    Raises:
        UserError: the row is not of this form, or a field is not as it should be.
    """
    return with_system(row, FORMS[form].read(row))


def prompt_of(row: Row) -> Messages | None:
    """What a row asks, without the answer that it may have; None where it has no field for that.

    Raises:
        UserError: a field is not as it should be.
    """
    if row.has("prompt"):
        return with_system(row, row.text_or_messages("prompt", "user"))
    if row.has("instruction"):
        return with_system(row, instruction_of(row))
    if row.has("question"):
        return with_system(row, (Message("user", row.text("question")),))
    name = next((name for name in ("messages", "conversations") if row.has(name)), None)
    if name is None:
        return None
    messages = row.messages(name)
    return with_system(row, messages[:-1] if messages[-1].role == "assistant" else messages)


def with_system(row: Row, messages: Messages) -> Messages:
    """Messages with that of a field "system" before them, where none of a system is there."""
    for number, message in enumerate(messages, start=1):
        if message.role == "user" and not message.content.strip():
            raise row.error(f"message {number}, the user's, is empty", "fill it in, or leave the row out")
    system = row.optional_text("system")
    if not system or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", system), *messages)


def unknown_form(row: Row) -> UserError:
    """What to raise where no form is known by the fields of a row, with what is most like one."""

    def likeness(name: str) -> float:
        fields = FORMS[name].fields
        return sum(row.has(field) or _nearest(field, row.fields) is not None for field in fields) / len(fields)

    known = "; ".join(f"{name}: {', '.join(form.fields)}" for name, form in FORMS.items())
    best = max(FORMS, key=likeness)
    missing = [field for field in FORMS[best].fields if not row.has(field)]
    near = _nearest(missing[0], row.fields)
    hint = f"; {near!r} may be meant for {missing[0]!r}" if near is not None and near != missing[0] else ""
    fields = ", ".join(map(str, row.fields)) or "none"
    return row.error(f"its fields ({fields}) are those of no known form{hint}", f"known are {known}")


def _nearest(name: str, fields: Mapping[str, Any]) -> str | None:
    return next(iter(get_close_matches(name, list(map(str, fields)), n=1, cutoff=0.7)), None)


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float) and len(repr(value)) < 40 else _kind(value)
