"""This file describes a text that is being written, and what the engine reports about it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation.prefix_cache import Page
from lit_llm.generation.samplers import SamplingRow
from lit_llm.generation.stopping import StoppingText

FinishReason = Literal["stop", "length", "error"]
AllowedTokens = Callable[[list[int]], Tensor]
"""A function from the ids written so far to a boolean mask [vocab] of the ids that may come next; where none may, the
text ends."""


@dataclass(frozen=True)
class LogProbs:
    """Natural logarithms of the model's own probabilities of a token, before temperature, penalties and filters."""

    chosen: float
    """The log-probability of the token that was chosen."""
    alternatives: list[tuple[int, float]]
    """The likeliest tokens with their log-probabilities, best first."""


@dataclass(frozen=True)
class Event:
    """An event reports what one step did to one text."""

    request: int
    """The id that `Engine.submit` gave."""
    token: int | None
    """The token that was written, or None where the text ended without one."""
    text: str
    """Text that can now be shown, always whole characters; empty without a tokenizer."""
    finish_reason: FinishReason | None = None
    """None while the text goes on; "stop" for a stop token or string, "length" where there is no more room, "error"
    where it cannot go on."""
    log_probs: LogProbs | None = None
    """The log-probabilities of the token, where they were asked for."""
    error: Exception | None = None
    """Why a text that ends with "error" could not go on."""
    cached_tokens: int = 0
    """How many tokens of the prompt did not have to be read, as an earlier or a running text begins with them."""


@dataclass
class Completion:
    """A finished text."""

    ids: list[int] = field(default_factory=list)
    """The tokens written, without the stop token."""
    text: str = ""
    """The text of the tokens up to a stop string; empty without a tokenizer."""
    finish_reason: FinishReason | None = None
    """Why the text ended: "stop", "length" or "error", as in `Event`."""
    log_probs: list[LogProbs] = field(default_factory=list)
    """The log-probabilities of each token, where they were asked for."""
    error: Exception | None = None
    """Why the text could not go on, where it ended with "error"."""
    cached_tokens: int = 0
    """How many tokens of the prompt did not have to be read."""

    def add(self, event: Event) -> None:
        """Add the next event of this text."""
        if event.token is not None:
            self.ids.append(event.token)
            if event.log_probs is not None:
                self.log_probs.append(event.log_probs)
        self.text += event.text
        self.finish_reason, self.error = event.finish_reason, event.error
        self.cached_tokens = event.cached_tokens


@dataclass
class Request:
    """A text in the engine: `context` is what it reads, of which `read` tokens are in the cache."""

    id: int
    sampling: SamplingRow
    stop_tokens: frozenset[int]
    context: list[int]
    read: int = 0
    text: StoppingText | None = None
    allowed_tokens: AllowedTokens | None = None
    log_probs: int | None = None
    namespace: Hashable = None
    cached_tokens: int = 0
    pages: list[Page] = field(default_factory=list)
    """The pages of a prefix cache that hold its beginning and that it uses."""
    adapter: str | None = None

    @property
    def config(self) -> SamplingConfig:
        """The options by which the tokens of the text are chosen."""
        return self.sampling.config

    @property
    def unread(self) -> int:
        """Tokens that the model has not seen yet."""
        return len(self.context) - self.read

    @property
    def shareable(self) -> int:
        """Tokens that may be taken over from another text: the last one is read, because its logits are needed."""
        return len(self.context) - 1

    def event(self, token: int | None, text: str, reason: FinishReason | None, **details: Any) -> Event:
        """Make an event of this text; `details` are other fields of it."""
        return Event(self.id, token, text, reason, cached_tokens=self.cached_tokens, **details)

    def end(self, reason: FinishReason, **details: Any) -> Event:
        """Make the event of an end without a token."""
        return self.event(None, self.text.flush() if self.text else "", reason, **details)

    def write(self, token: int, limit: int, log_probs: LogProbs | None) -> Event:
        """Add the token that was chosen.

        Args:
            token: its id.
            limit: most tokens that the model can look at.
            log_probs: of the token, where they were asked for.
        """
        if token in self.stop_tokens:
            return self.end("stop")
        self.sampling.written.append(token)
        self.context.append(token)
        piece = self.text.push(token) if self.text else ""
        reason: FinishReason | None = None
        if self.text is not None and self.text.stopped:
            reason = "stop"
        elif len(self.sampling.written) == self.config.max_new_tokens:
            reason = "length"
        elif len(self.context) > limit:
            if self.config.context_full == "stop":
                reason = "length"
            else:
                self.context = self.context[-(limit // 2) :]
                self.read = 0
        if reason == "length" and self.text is not None:
            piece += self.text.flush()
            reason = "stop" if self.text.stopped else reason
        return self.event(token, piece, reason, log_probs=log_probs)


def fitted_prompt(prompt: list[int], sampling: SamplingConfig, limit: int) -> list[int]:
    """Give the prompt, cut at its left where it is too long and the options allow that.

    What is kept leaves room for `max_new_tokens`, but is at least half of what fits.

    Raises:
        UserError: the prompt is empty, or too long.
    """
    if not prompt:
        raise UserError("a prompt is empty; give it at least the end-of-text token")
    if len(prompt) < limit:
        return prompt
    if not sampling.truncate_prompt or limit < 2:
        raise UserError(
            f"a prompt of {len(prompt)} tokens leaves no room in the context of {limit} tokens; "
            "shorten it, or set truncate_prompt to cut it at its left"
        )
    return prompt[-max(limit - sampling.max_new_tokens, limit // 2) :]


def new_stream(seed: int) -> torch.Generator:
    """Make the random stream of one text."""
    return torch.Generator().manual_seed(seed)


def log_probs_of(requests: list[Request], logits: Tensor, chosen: Tensor) -> dict[int, LogProbs]:
    """Compute the log-probabilities of the requests that ask for them, by their place in the batch."""
    wanted = {number: request.log_probs for number, request in enumerate(requests) if request.log_probs is not None}
    if not wanted:
        return {}
    rows = logits[list(wanted)].float().log_softmax(-1)
    own = rows.gather(1, chosen[list(wanted)].clamp(min=0).unsqueeze(1)).squeeze(1).tolist()
    best = rows.topk(min(max(wanted.values()), rows.size(-1)), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return {
        number: LogProbs(own[place], list(zip(ids[place], values[place], strict=True))[:count])
        for place, (number, count) in enumerate(wanted.items())
    }
