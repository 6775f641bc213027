"""Whether what a model writes is Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_llm.quickstart.functions import parses

__all__ = ["parse_rate", "parse_reward", "parses"]


def parse_rate(texts: Sequence[str]) -> float:
    """Compute the share of the texts that parse.

    Args:
        texts: at least one.
    """
    return sum(map(parses, texts)) / len(texts)


def parse_reward(prompts: Sequence[Any], completions: Sequence[Any], **fields: Any) -> list[float]:
    """A reward function for PPO and GRPO: 1 for a completion that parses, 0 for any other.

    Args:
        prompts: what was asked.
        completions: answers, as texts or as lists of messages, whose contents are joined.
        fields: what else the rows have.

    Returns:
        A reward for each completion.
    """
    return [float(parses(_text(completion))) for completion in completions]


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(message["content"] if isinstance(message, dict) else message.content for message in completion)
