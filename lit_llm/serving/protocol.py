"""The bodies of requests: which options there are, their types and ranges. Every other option is refused."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lit_llm.serving.errors import ApiError

MOST_SAMPLES = 128
MOST_TEXTS = 1024
MOST_ALTERNATIVES = 20
MOST_ELEMENTS = 2**20
"""Most entries in the list of a prompt, which are texts or token ids."""
MOST_MESSAGES = 8192
MOST_BIASES = 4096
MOST_METADATA = 64
# Names longer than this are not compared with ours.
_LONGEST_NAME = 64

# What OpenAI's API has, and asks something of the text that is not done here.
_REFUSED = frozenset(
    [
        "audio",
        "best_of",
        "function_call",
        "functions",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "suffix",
        "tool_choice",
        "tools",
        "verbosity",
        "web_search_options",
    ]
)


class Body(BaseModel):
    """An object without options that we do not know; null stands for an option that is left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_options(cls, given: Any) -> Any:
        if isinstance(given, bytes):
            raise ApiError("the body is not marked as JSON; send it with the header Content-Type: application/json")
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in given.items():
            if name in known or (name in _REFUSED and value is None):
                continue
            if name in _REFUSED:
                raise ApiError(f"{name} is not supported by this server; leave it out", param=name)
            near = difflib.get_close_matches(name, known, n=1) if len(name) <= _LONGEST_NAME else []
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ApiError(f"there is no option {name} here{hint}", param=name, code="unknown_parameter")
        return {name: value for name, value in given.items() if value is not None}


def _as_system(role: Any) -> Any:
    """Return a role by its older name: newer clients call the system's turns the developer's."""
    return "system" if role == "developer" else role


def _as_text(content: Any) -> Any:
    """Return content as text: the content itself, or its parts' texts joined."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError('content must be text, or a list of {"type": "text", "text": ...}', param="messages")
        if set(part) != {"type", "text"}:
            raise ApiError(f"a part of content has {', '.join(sorted(part))}; only type and text", param="messages")
    return "".join(part["text"] for part in content)


class ChatMessage(Body):
    """A turn of a conversation; what answers have besides role and content may come back, as null."""

    role: Annotated[Literal["system", "user", "assistant"], BeforeValidator(_as_system)]
    content: Annotated[str, BeforeValidator(_as_text)]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(Body):
    """The options of a stream: what it reports besides its text."""

    include_usage: bool = False


class JsonSchema(Body):
    """A JSON schema, which texts are always held to strictly."""

    name: str = ""
    description: str = ""
    strict: bool = True
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """The form that texts are held to."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def _stop_strings(given: Any) -> Any:
    strings = [given] if isinstance(given, str) else given
    if not isinstance(strings, list) or len(strings) > 4 or not all(isinstance(s, str) and s for s in strings):
        raise ApiError("stop must be a text, or a list of up to 4, and none of them empty", param="stop")
    return strings


def at_most(name: str, most: int) -> BeforeValidator:
    """Return a check that refuses a list with too many elements before any of them is looked at."""

    def check(given: Any) -> Any:
        if isinstance(given, list | dict) and len(given) > most:
            raise ApiError(f"{name} has {len(given)} elements; at most {most} are read", param=name)
        return given

    return BeforeValidator(check)


def _logit_bias(given: Any) -> Any:
    if isinstance(given, dict):
        for token in given:
            if not (token.isascii() and token.isdecimal() and len(token) <= 10):
                raise ApiError(f"logit_bias has {token!r}; its keys must be token ids", param="logit_bias")
    return given


class Request(Body):
    """The options that both kinds of request take."""

    model: str
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]],
        BeforeValidator(_logit_bias),
        at_most("logit_bias", MOST_BIASES),
    ] = Field(default_factory=dict)
    stop: Annotated[list[str], BeforeValidator(_stop_strings)] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    response_format: ResponseFormat | None = None
    # these ask nothing of the text
    user: str = ""
    metadata: Annotated[dict[str, str], at_most("metadata", MOST_METADATA)] = Field(default_factory=dict)
    store: Literal[False] = False

    @model_validator(mode="after")
    def _fit_together(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ApiError("stream_options needs stream to be true", param="stream_options")
        form = self.response_format
        if form is not None and form.type != "json_schema" and form.json_schema is not None:
            message = f"response_format of type {form.type} takes no json_schema; give it the type json_schema"
            raise ApiError(message, param="response_format")
        if self.schema_format and self.schema_format.json_schema is None:
            raise ApiError("response_format of type json_schema needs a json_schema", param="response_format")
        return self

    @property
    def schema_format(self) -> ResponseFormat | None:
        """The schema that texts are held to, or None where any text will do."""
        return self.response_format if self.response_format and self.response_format.type == "json_schema" else None

    @property
    def any_object(self) -> bool:
        """Whether texts are held to JSON objects of any kind."""
        return self.response_format is not None and self.response_format.type == "json_object"

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def token_limit(self) -> int | None:
        """Tokens to write at most, if the request says."""
        return self.max_tokens


class ChatRequest(Request):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1), at_most("messages", MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None

    @model_validator(mode="after")
    def _fit_together_in_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ApiError("max_tokens and max_completion_tokens mean the same; give one of them", param="max_tokens")
        return self

    @property
    def token_limit(self) -> int | None:
        """Tokens to write at most, if the request says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many of the likeliest tokens to tell for each place; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


def some_texts(name: str) -> BeforeValidator:
    """Return what reads an option in any of its four forms as a list of texts and lists of ids."""

    def read(given: Any) -> Any:
        if isinstance(given, list) and len(given) > MOST_ELEMENTS:
            raise ApiError(f"{name} has {len(given)} elements; at most {MOST_ELEMENTS} are read", param=name)
        texts = [given] if isinstance(given, str) or _is_ids(given) else given
        if isinstance(texts, list) and len(texts) > MOST_TEXTS:
            raise ApiError(f"{len(texts)} {name}s are more than {MOST_TEXTS} texts; send several requests", param=name)
        if not isinstance(texts, list) or not texts or not all(isinstance(p, str) or _is_ids(p) for p in texts):
            raise ApiError(
                f"{name} must be a text, a list of texts, a list of token ids, or a list of those", param=name
            )
        return texts

    return BeforeValidator(read)


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(token) is int for token in given)


class CompletionRequest(Request):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], some_texts("prompt")]
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: Literal[False] = False
    # ours: whether the names of special tokens in prompts are read as these tokens, or as letters
    special_tokens: bool = True

    @model_validator(mode="after")
    def _not_too_many(self) -> CompletionRequest:
        if len(self.prompt) * self.n > MOST_TEXTS:
            raise ApiError(
                f"{len(self.prompt)} prompts with n {self.n} are more than {MOST_TEXTS} texts; send several requests",
                param="prompt",
            )
        return self

    @property
    def alternatives(self) -> int | None:
        """See `ChatRequest`."""
        return self.logprobs
