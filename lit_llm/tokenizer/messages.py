"""The turns of a conversation, and the tokens that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_llm.config import UserError

ROLES = ("system", "user", "assistant", "tool")

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a turn that say what was thought before its words."""

WORDS = (*THOUGHTS, "tool_calls", "function_call")
"""Fields of a turn that say what was thought or asked for in it: a form of conversations that does not write them
would leave out a part of the turn."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: Any valid Unicode.
        fields: What else a chat template may read of it, such as reasoning_content and tool_calls.
        learned: Whether its words are to be learned; None: as those of its role are.
        tools: What the assistant may call, as JSON schemas; only the first message of a conversation has any.

    Raises:
        UserError: the role is another.
    """

    role: str
    content: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    learned: bool | None = None
    tools: Sequence[Mapping[str, Any]] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"a message has the role {self.role!r}; it must be one of {', '.join(ROLES)}")


@dataclass(frozen=True)
class Part:
    """A part of a conversation as tokens.

    Attributes:
        ids: Token ids.
        speaker: The assistant's message whose words they are, with the token that ends them; None for all else.
    """

    ids: list[int]
    speaker: Message | None = None


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
        ids: Token ids.
        supervised: For each, whether it is an assistant's words, or the token that ends them, and may be learned.
        left_out: For each, whether it is of an assistant's turn that is not to be learned.
    """

    ids: list[int]
    supervised: list[bool]
    left_out: list[bool]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Rendered:
        """Join parts, one after the other."""
        ids = [index for part in parts for index in part.ids]
        spoken = [part.speaker for part in parts for _ in part.ids]
        return cls(
            ids,
            [speaker is not None and speaker.learned is not False for speaker in spoken],
            [speaker is not None and speaker.learned is False for speaker in spoken],
        )


def the_message(number: int, role: str) -> str:
    """The words by which an error names a message; `number` counts from 0."""
    return f"message {number + 1}, {'an' if role == 'assistant' else 'the'} {role}'s,"
