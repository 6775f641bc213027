"""Answers in the form of OpenAI's objects, whole or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from lit_llm.generation import Completion, Event, LogProbs
from lit_llm.serving.errors import ApiError
from lit_llm.serving.worker import Job
from lit_llm.tokenizer import Tokenizer

# JSON has no minus infinity; OpenAI writes this
_LEAST_LOG_PROB = -9999.0


class Answer(ABC):
    """The answer to one request.

    Args:
        model: the name that it was asked by.
        tokenizer: spells the tokens of log-probabilities.
        prompt_tokens: tokens of all prompts, each counted once for all of its samples.
        include_usage: end a stream with the number of tokens.
        samples: texts for each prompt, which stand one after the other.
    """

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(
        self, model: str, tokenizer: Tokenizer, prompt_tokens: int, include_usage: bool = False, samples: int = 1
    ) -> None:
        self._tokenizer, self._samples = tokenizer, samples
        self._prompt_tokens, self._include_usage = prompt_tokens, include_usage
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        choices = [self._choice(index, completion) for index, completion in enumerate(completions)]
        cached = [completion.cached_tokens for completion in completions]
        usage = self._usage(sum(len(completion.ids) for completion in completions), cached)
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage}

    async def stream(self, job: Job) -> AsyncIterator[str]:
        """Yield the events of a stream; if the engine fails, the last one is an error."""
        for index in range(len(job.texts)):
            for choice in self._first(index):
                yield self._chunk(choice)
        tokens, cached = 0, [0] * len(job.texts)
        try:
            async for index, event in job.events():
                tokens += event.token is not None
                cached[index] = event.cached_tokens
                if event.text or event.log_probs is not None:
                    yield self._chunk(self._piece(index, event))
                if event.finish_reason is not None:
                    yield self._chunk(self._last(index, event.finish_reason))
        except ApiError as error:
            yield _sent(error.body())
            return
        if self._include_usage:
            yield _sent({**self._head, "object": self.chunk_kind, "choices": [], "usage": self._usage(tokens, cached)})
        yield "data: [DONE]\n\n"

    def _chunk(self, choice: dict[str, Any]) -> str:
        usage = {"usage": None} if self._include_usage else {}
        return _sent({**self._head, "object": self.chunk_kind, "choices": [choice], **usage})

    def _usage(self, completion_tokens: int, cached_tokens: Sequence[int]) -> dict[str, Any]:
        """Return the numbers of tokens, given how many of each text's prompt were not read.

        A prompt counts once for all of its samples, so what was not read of it is what was read for none of them.
        """
        cached = sum(
            min(cached_tokens[first : first + self._samples]) for first in range(0, len(cached_tokens), self._samples)
        )
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    @abstractmethod
    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """Return the object of a whole text."""

    @abstractmethod
    def _first(self, index: int) -> list[dict[str, Any]]:
        """Return the objects that a stream begins with."""

    @abstractmethod
    def _piece(self, index: int, event: Event) -> dict[str, Any]:
        """Return the object for what an event adds to a text."""

    @abstractmethod
    def _last(self, index: int, finish_reason: str) -> dict[str, Any]:
        """Return the object that ends a text."""


class ChatAnswer(Answer):
    """The answer of /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        log_probs = self._log_probs(completion.ids, completion.log_probs)
        return {
            "index": index,
            "message": message,
            "logprobs": log_probs,
            "finish_reason": completion.finish_reason,
        }

    def _first(self, index: int) -> list[dict[str, Any]]:
        return [self._delta(index, {"role": "assistant", "content": ""})]

    def _piece(self, index: int, event: Event) -> dict[str, Any]:
        told = event.token is not None and event.log_probs is not None
        log_probs = self._log_probs([event.token], [event.log_probs]) if told else None
        return {**self._delta(index, {"content": event.text}), "logprobs": log_probs}

    def _last(self, index: int, finish_reason: str) -> dict[str, Any]:
        return {**self._delta(index, {}), "finish_reason": finish_reason}

    @staticmethod
    def _delta(index: int, delta: dict[str, str]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _log_probs(self, ids: Sequence[int], found: Sequence[LogProbs]) -> dict[str, Any] | None:
        if not found:
            return None

        def entry(token: int, value: float) -> dict[str, Any]:
            spelled = self._tokenizer.token_bytes(token)
            text = spelled.decode(errors="replace")
            return {"token": text, "logprob": max(value, _LEAST_LOG_PROB), "bytes": list(spelled)}

        content = [
            {
                **entry(token, place.chosen),
                "top_logprobs": [entry(other, value) for other, value in place.alternatives],
            }
            for token, place in zip(ids, found, strict=True)
        ]
        return {"content": content, "refusal": None}


class CompletionAnswer(Answer):
    """The answer of /v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(
        self, model: str, tokenizer: Tokenizer, prompt_tokens: int, include_usage: bool = False, samples: int = 1
    ) -> None:
        super().__init__(model, tokenizer, prompt_tokens, include_usage, samples)
        self._offsets: dict[int, int] = {}

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        log_probs = self._log_probs(index, completion.ids, completion.log_probs)
        return self._part(index, completion.text, log_probs, completion.finish_reason)

    def _first(self, index: int) -> list[dict[str, Any]]:
        return []

    def _piece(self, index: int, event: Event) -> dict[str, Any]:
        told = event.token is not None and event.log_probs is not None
        log_probs = self._log_probs(index, [event.token], [event.log_probs]) if told else None
        return self._part(index, event.text, log_probs, None)

    def _last(self, index: int, finish_reason: str) -> dict[str, Any]:
        return self._part(index, "", None, finish_reason)

    @staticmethod
    def _part(index: int, text: str, log_probs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": log_probs, "finish_reason": finish_reason}

    def _log_probs(self, index: int, ids: Sequence[int], found: Sequence[LogProbs]) -> dict[str, Any] | None:
        """OpenAI's four lists. Offsets count the characters of the text that begin before the token."""
        if not found:
            return None
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, place in zip(ids, found, strict=True):
            told["tokens"].append(self._spelled(token))
            told["token_logprobs"].append(max(place.chosen, _LEAST_LOG_PROB))
            likeliest = {self._spelled(other): max(value, _LEAST_LOG_PROB) for other, value in place.alternatives}
            told["top_logprobs"].append({self._spelled(token): told["token_logprobs"][-1], **likeliest})
            told["text_offset"].append(self._offsets.get(index, 0))
            self._offsets[index] = self._offsets.get(index, 0) + self._width(token)
        return told

    def _spelled(self, token: int) -> str:
        """Return the text of a token, or its bytes where it is no whole character."""
        spelled = self._tokenizer.token_bytes(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def _width(self, token: int) -> int:
        """Return how many characters begin in a token."""
        return sum(byte & 0xC0 != 0x80 for byte in self._tokenizer.token_bytes(token))


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"
