"""POST /v1/responses, OpenAI's newer form of a conversation: text in, text out, whole or as typed events.

Nothing is stored: who goes on sends the conversation so far.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lit_llm.generation import Completion
from lit_llm.serving.errors import ApiError
from lit_llm.serving.protocol import MOST_MESSAGES, MOST_METADATA, Body, ChatRequest, at_most
from lit_llm.serving.worker import Job

_KINDS = {"message", None}
_TEXTS = {"input_text", "output_text", "text"}


def _items(given: Any) -> Any:
    """Return the input in any of its forms as a list of objects."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _as_text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            raise ApiError('content must be text, or a list of {"type": "input_text", "text": ...}', param="input")
    return "".join(part["text"] for part in content)


def _message(given: Any) -> Any:
    """Return an item without what answers have besides role and content."""
    if not isinstance(given, dict):
        return given
    if given.get("type") not in _KINDS:
        raise ApiError(f"input has an item of type {given['type']!r}; only messages are read here", param="input")
    return {name: value for name, value in given.items() if name not in ("type", "id", "status")}


class _Item(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_as_text)]


class _Format(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    description: str = ""
    strict: bool = True
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class _TextOptions(Body):
    format: _Format = Field(default_factory=_Format)


def _not_kept(given: Any) -> Any:
    message = "previous_response_id: answers are not kept here; send the conversation so far as input"
    raise ApiError(message, param="previous_response_id")


def _no_tools(given: Any) -> Any:
    if given:
        raise ApiError("tools are not supported by this server; leave them out", param="tools")
    return given


class ResponseRequest(Body):
    """The body of POST /v1/responses."""

    model: str
    input: Annotated[
        list[Annotated[_Item, BeforeValidator(_message)]],
        BeforeValidator(_items),
        at_most("input", MOST_MESSAGES),
        Field(min_length=1),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stream: bool = False
    text: _TextOptions = Field(default_factory=_TextOptions)
    tools: Annotated[list[Any], BeforeValidator(_no_tools)] = Field(default_factory=list)
    previous_response_id: Annotated[None, BeforeValidator(_not_kept)] = None
    # these ask nothing of the text
    truncation: Literal["disabled"] = "disabled"
    user: str = ""
    metadata: Annotated[dict[str, str], at_most("metadata", MOST_METADATA)] = Field(default_factory=dict)
    store: Literal[False] = False

    @model_validator(mode="after")
    def _can_be_repeated(self) -> ResponseRequest:
        """Refuse what the answer, which repeats these, could not hold: it is written in UTF-8."""
        form = [self.text.format.name, self.text.format.json_schema]
        repeated = {"instructions": self.instructions, "text": form, "user": self.user, "metadata": self.metadata}
        for name, value in repeated.items():
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ApiError(f"{name} has half of a surrogate pair, which is no character", param=name) from None
            except RecursionError:
                raise ApiError(f"{name} is nested too deeply", param=name) from None
        return self

    def as_chat(self) -> ChatRequest:
        """Return the same request in the older form, the instructions first.

        Raises:
            ApiError: the form of the text is a schema, and there is none, or is not, and there is one.
        """
        turns = [{"role": "system", "content": self.instructions}] if self.instructions is not None else []
        roles = {"developer": "system"}
        turns += [{"role": roles.get(item.role, item.role), "content": item.content} for item in self.input]
        options: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "stream": self.stream}
        form = self.text.format
        if form.type != "json_schema" and form.json_schema is not None:
            raise ApiError(
                f"text.format of type {form.type} takes no schema; give it the type json_schema", param="text"
            )
        if form.type == "json_schema":
            if form.json_schema is None:
                raise ApiError("text.format of type json_schema needs a schema", param="text")
            schema = {"name": form.name, "schema": form.json_schema, "strict": form.strict}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form.type == "json_object":
            options["response_format"] = {"type": "json_object"}
        limit = {"max_completion_tokens": self.max_output_tokens} if self.max_output_tokens is not None else {}
        return ChatRequest.model_validate({"model": self.model, "messages": turns, **options, **limit})


class ResponseAnswer:
    """The answer of /v1/responses.

    Args:
        body: the request.
        model: the name that it was asked by.
        prompt_tokens: tokens of the conversation.
    """

    def __init__(self, body: ResponseRequest, model: str, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._item = f"msg_{uuid.uuid4().hex}"
        self._number = 0
        form: dict[str, Any] = {"type": body.text.format.type}
        if body.text.format.json_schema is not None:
            form |= {"name": body.text.format.name, "schema": body.text.format.json_schema, "strict": True}
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": form},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": body.truncation,
            "usage": None,
            "user": body.user or None,
            "metadata": body.metadata,
        }

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        return self._ended(completions[0])

    async def stream(self, job: Job) -> AsyncIterator[str]:
        """Yield the events of a stream; if the engine fails, the last one says so."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", None))
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        yield self._event("response.content_part.added", **place, part=_part(""))
        completion = Completion()
        try:
            async for _, event in job.events():
                completion.add(event)
                if event.text:
                    yield self._event("response.output_text.delta", **place, delta=event.text, logprobs=[])
        except ApiError as error:
            failed = {"code": "server_error", "message": error.body()["error"]["message"]}
            yield self._event("response.failed", response={**self._response, "status": "failed", "error": failed})
            return
        response = self._ended(completion)
        yield self._event("response.output_text.done", **place, text=completion.text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(completion.text))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def _ended(self, completion: Completion) -> dict[str, Any]:
        """Return the object once the text has ended: completed, or incomplete for want of room."""
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        written = len(completion.ids)
        return {
            **self._response,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self._message(status, completion.text)],
            "usage": {
                "input_tokens": self._prompt_tokens,
                "input_tokens_details": {"cached_tokens": completion.cached_tokens},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self._prompt_tokens + written,
            },
        }

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": content}

    def _event(self, kind: str, **values: Any) -> str:
        values = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(values, ensure_ascii=False, allow_nan=False)}\n\n"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
