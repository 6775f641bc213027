"""What rows of files look like, and the conversations in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.json_text import parse_json
from lit_llm.tokenizer.chat import Message
from lit_llm.tokenizer.messages import THOUGHTS

Messages = tuple[Message, ...]

_ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ("system", "user", "assistant", "tool")}}
_LEARNED = ("weight", "train", "loss")
"""Keys of a message, and of a row, that say whether it is to be learned."""
_LIKE_LEARNED = ("masked", "mask", "training")
_CONTEXT = {
    "functions": "rename it to tools, if it lists them, or remove it",
    "documents": "put what they say into the system's message, or remove it",
    "chat_template_kwargs": "change the model's chat template to the same effect, or remove it",
}
"""Fields of a row that a chat template might read and is not given, with what to do about it."""
_TURN = ("role", "content", "from", "value", *_LEARNED)
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_KINDS = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True)
class RowPlace:
    """Where a row is.

    Attributes:
        file: Path, or the name of the data set.
        number: Line of a .jsonl file, else number of the row; from 1.
    """

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.number:,}"


class Row:
    """A row's fields, which say where they are when something is wrong with them.

    Args:
        place: Where the row is.
        value: What the file has there.

    Raises:
        UserError: the value is no object. Any method raises it where a field is not as it should be.
    """

    def __init__(self, place: RowPlace, value: Any) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise self.error(f"the row is {_kind(value)}, not an object with fields", "leave it out")
        self.fields: dict[str, Any] = value
        self._read: set[str] = set()

    @property
    def unread(self) -> list[str]:
        """The fields that hold something and have not been asked for."""
        return [str(name) for name, value in self.fields.items() if name not in self._read and value not in _NOTHING]

    def error(self, problem: str, fix: str) -> UserError:
        """What to raise, in the form `file, row N: problem; fix`."""
        return UserError(f"{self.place}: {problem}; {fix}")

    def has(self, *names: str) -> bool:
        """Whether all of the fields are there and not null."""
        return all(self.fields.get(name) is not None for name in names)

    def value(self, name: str) -> Any:
        """A field that has to be there."""
        self._read.add(name)
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
        if unknown := next((key for key in _LIKE_LEARNED if turn.get(key) is not None), None):
            raise self.error(
                f"{where} has {unknown!r}, which is not read",
                "say with weight 0 or 1, train or loss whether it is to be learned, or remove it",
            )
        others = {key: value for key, value in turn.items() if key not in _TURN and value not in _NOTHING}
        fields = {str(key): self._plain(value, f"{key!r} of {where}") for key, value in others.items()}
        if content is None and any(fields.get(key) for key in ("tool_calls", "function_call")):
            content = ""
        if content is None:
            raise self.error(f"the {content_key} of {where} is null", "fill it in, or leave the row out")
        text = self._checked_text(content, f"the {content_key} of {where}")
        return Message(_ROLES[role], text, fields, self._learned(turn, where))

    def is_learned(self) -> bool:
        """Whether the row is to be learned; its fields weight, train and loss may say that it is not."""
        self._read.update(_LEARNED)
        return self._learned(self.fields, "the row") is not False

    def check_context(self) -> None:
        """Refuses fields that belong to the conversation and would be left out of what is learned."""
        for name, fix in _CONTEXT.items():
            if self.fields.get(name) not in _NOTHING:
                raise self.error(f"the field {name!r} is not read", fix)

    def thoughts(self) -> dict[str, str]:
        """What was thought before the row's answer, by the name of its field."""
        return {name: self.text(name) for name in THOUGHTS if self.fields.get(name) not in _NOTHING}

    def _learned(self, turn: dict[str, Any], where: str) -> bool | None:
        """What a message or the row says of whether it is to be learned; None where it says nothing."""
        said = {key: turn[key] for key in _LEARNED if turn.get(key) is not None}
        for key, value in said.items():
            if value not in (0, 1):  # true and false, too
                fix = "it must be 0 or 1, or true or false; rename it if it means something else"
                raise self.error(f"the {key} of {where} is {_shown(value)}", fix)
        if len({bool(value) for value in said.values()}) > 1:
            raise self.error(f"{where} says both that it is to be learned and that it is not", "leave one of them")
        return next((bool(value) for value in said.values()), None)

    def tools(self) -> list[dict[str, Any]]:
        """The field "tools", a list of JSON schemas or the text of one; empty where it is not there."""
        if not self.has("tools"):
            return []
        value = self.value("tools")
        if isinstance(value, str):
            try:
                value = parse_json(value) if value.strip() else []
            except ValueError as error:
                raise self.error(
                    f"the field 'tools' is not JSON ({getattr(error, 'msg', error)})", "correct it"
                ) from None
        if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
            raise self.error("the field 'tools' is not a list of objects", "correct it")
        return self._plain(value, "the field 'tools'")

    def history(self) -> Messages:
        """The earlier turns in the field "history" of Alpaca's form: pairs of a request and its answer."""
        if not self.has("history"):
            return ()
        turns: list[Message] = []
        rounds = self.value("history")
        if not isinstance(rounds, list):
            raise self.error(f"the field 'history' is {_kind(rounds)}, not a list of pairs", "correct it")
        for number, pair in enumerate(rounds, start=1):
            where = f"round {number} of 'history'"
            if not isinstance(pair, list) or len(pair) != 2:
                raise self.error(f"{where} is not a pair of a request and its answer", "correct it")
            words = [self._checked_text(text, where) for text in pair]
            turns += (Message("user", words[0]), Message("assistant", words[1]))
        return tuple(turns)

    def _plain(self, value: Any, where: str) -> Any:
        """A value as a template may write it: with its texts checked, and without nulls that only fill a table."""
        if isinstance(value, str):
            return self._checked_text(value, where)
        if isinstance(value, dict):
            kept = value.items() if not self._of_table else ((k, v) for k, v in value.items() if v is not None)
            return {self._plain(key, where): self._plain(child, where) for key, child in kept}
        return [self._plain(child, where) for child in value] if isinstance(value, list) else value

    @property
    def _of_table(self) -> bool:
        return self.place.file.endswith(".parquet") or self.place.file.startswith("hf:")

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
        fields: The fields that a row of this form is known by.
        read: Reads the messages of a row.
    """

    fields: tuple[str, ...]
    read: Callable[[Row], Messages]


def asked(row: Row, name: str) -> Messages:
    """A field with what a user asks, or with messages; what is asked comes after the turns of the field history."""
    return (*row.history(), Message("user", row.text(name))) if isinstance(row.value(name), str) else row.messages(name)


def instruction_of(row: Row) -> Messages:
    """The prompt of a row in Alpaca's form: earlier turns, then instruction and, after a blank line, input."""
    parts = (row.text("instruction"), row.optional_text("input"))
    return (*row.history(), Message("user", "\n\n".join(part for part in parts if part)))


FORMS: Mapping[str, Form] = {
    "messages": Form(("messages",), lambda row: row.messages("messages")),
    "sharegpt": Form(("conversations",), lambda row: row.messages("conversations")),
    "alpaca": Form(
        ("instruction", "output"), lambda row: (*instruction_of(row), Message("assistant", row.text("output")))
    ),
    "prompt_completion": Form(
        ("prompt", "completion"),
        lambda row: (*asked(row, "prompt"), *row.text_or_messages("completion", "assistant")),
    ),
    "gsm8k": Form(
        ("question", "answer"),
        lambda row: (*row.history(), Message("user", row.text("question")), Message("assistant", row.text("answer"))),
    ),
}
"""The known forms by name; a row with the fields of several has the first of them."""


def form_of(row: Row) -> str | None:
    """The name of a row's form, told by its fields that are not null, else by all (parquet has every column)."""
    filled = (name for name, form in FORMS.items() if row.has(*form.fields))
    named = (name for name, form in FORMS.items() if all(field in row.fields for field in form.fields))
    return next(filled, next(named, None))


def conversation_of(row: Row, form: str) -> Messages:
    """A row's messages, the system's first where there is one; no turn of a user in them is empty.

    Raises:
        UserError: the row is not of this form, or a field is not as it should be.
    """
    row.check_context()
    messages = FORMS[form].read(row)
    if thoughts := row.thoughts():
        *before, answer = messages
        of_messages = form in ("messages", "sharegpt") or answer.role != "assistant"
        if of_messages or any(name in answer.fields for name in THOUGHTS):
            raise row.error(
                f"the field {next(iter(thoughts))!r} is the row's, not an answer's",
                "put it into the message that it belongs to, or remove it",
            )
        messages = (*before, replace(answer, fields={**answer.fields, **thoughts}))
    return with_system(row, messages)


def prompt_of(row: Row) -> Messages | None:
    """What a row asks, without the answer that it may have; None where it has no field for that.

    Raises:
        UserError: a field is not as it should be.
    """
    if row.has("prompt"):
        return with_system(row, asked(row, "prompt"))
    if row.has("instruction"):
        return with_system(row, instruction_of(row))
    if row.has("question"):
        return with_system(row, (*row.history(), Message("user", row.text("question"))))
    name = next((name for name in ("messages", "conversations") if row.has(name)), None)
    if name is None:
        return None
    messages = row.messages(name)
    return with_system(row, messages[:-1] if messages[-1].role == "assistant" else messages)


def without_prompt(answer: str, prompt: str) -> str | None:
    """What follows the prompt in an answer that begins with it; None where it does not, or where nothing follows."""
    begin = prompt.strip()
    if not begin or not answer.lstrip().startswith(begin):
        return None
    rest = answer.lstrip().removeprefix(begin)
    if not rest.strip():  # the prompt may have asked to be repeated
        return None
    if prompt != prompt.rstrip():  # white space at the end of the prompt stands in the answer, too
        rest = rest.removeprefix(prompt[len(prompt.rstrip()) :])
    return rest[1:] if rest[:1] == " " and not rest[1:2].isspace() else rest


def with_system(row: Row, messages: Messages) -> Messages:
    """Adds what the row's fields "system" and "tools" say to its messages; a system's message among them stays."""
    for number, message in enumerate(messages, start=1):
        if message.role == "user" and not message.content.strip():
            raise row.error(f"message {number}, the user's, is empty", "fill it in, or leave the row out")
    if messages and messages[0].role != "system" and (system := row.optional_text("system")):
        messages = (Message("system", system), *messages)
    if messages and (tools := row.tools()):
        messages = (replace(messages[0], tools=tools), *messages[1:])
    return messages


def unknown_form(row: Row) -> UserError:
    """The error for a row that has no known form; it names the field that looks most like a missing one."""

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
