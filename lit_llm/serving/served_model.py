"""The served model as requests see it, and the translation of requests into tokens to write."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lit_llm.config import BeginToken, SamplingConfig, UserError, sample_seed
from lit_llm.serving.errors import ApiError
from lit_llm.serving.protocol import ChatRequest, CompletionRequest
from lit_llm.serving.worker import Text
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer, conversation_ids, prompt_ids, read_as_letters

_LOG = logging.getLogger(__name__)

TOO_LONG = "context_length_exceeded"
# Characters that are encoded at a time to count them, and how many tokens the cuts around them may add.
_PIECE = 16_384
_OF_CUTS = 64


class Served:
    """The name, the tokenizer and the limits of the served model.

    Its methods may be called from any thread.

    Args:
        name: what requests call it.
        tokenizer: its tokenizer.
        vocab_size: width of its logits.
        context_length: tokens that a prompt and its answer may have together.
        stop_tokens: ids that end a text.
        default_max_tokens: tokens to write at most where a request does not say.
        begin_token: whether texts begin with the begin token; see `lit_llm.tokenizer.begin_ids`.
        quantize: how its weights are rounded; None: they are not.
        parent: name of the model that this is an adapter of; None: it is a model of its own.
        width: of its hidden states.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        vocab_size: int,
        context_length: int,
        stop_tokens: Iterable[int],
        *,
        default_max_tokens: int = 512,
        begin_token: BeginToken = "auto",
        quantize: str | None = None,
        parent: str | None = None,
        width: int = 0,
    ) -> None:
        self.width = width
        self.name, self.tokenizer, self.quantize, self.parent = name, tokenizer, quantize, parent
        self.context_length = context_length
        self.vocab_size, self._stop_tokens = vocab_size, tuple(stop_tokens)
        self._default_max_tokens, self._begin_token = default_max_tokens, begin_token
        self._longest_token = int(tokenizer.byte_lengths().max(initial=1))
        self._longest_name = max((len(name) for name in tokenizer.special_ids), default=1)
        self._told_of_letters = False
        self._created = int(time.time())
        self._chat: ChatFormat | None = None
        try:
            self._chat = ChatFormat(tokenizer)
        except UserError as error:
            self._why_no_chat = str(error)

    @property
    def adapter(self) -> str | None:
        """Name of the adapter that its texts are written by; None where it is a model of its own."""
        return None if self.parent is None else self.name

    def description(self) -> dict[str, Any]:
        """The model's entry in GET /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "lit_llm",
            "context_length": self.context_length,
            "chat": self._chat is not None,
            "quantize": self.quantize,
            "parent": self.parent,
        }

    def texts_of_chat(self, body: ChatRequest) -> list[Text]:
        """Return the texts that a conversation asks for, which are `n` answers.

        Raises:
            ApiError: the model has no form for conversations, the template refuses this one, or it is too long.
        """
        if self._chat is None:
            raise ApiError(f"{self.name} cannot chat ({self._why_no_chat}); ask /v1/completions instead", param="model")
        if len(body.messages) >= self.context_length:
            message = f"{len(body.messages)} messages are more than the context of {self.context_length} tokens"
            raise ApiError(message, param="messages", code=TOO_LONG)
        self._check_length([turn.content for turn in body.messages], "messages")
        try:
            prompt = self._chat.render_prompt([Message(turn.role, turn.content) for turn in body.messages])
            prompt = conversation_ids(self.tokenizer, prompt, self._begin_token)
        except UserError as error:
            raise ApiError(str(error), param="messages") from None
        self._tell_of_letters([turn.content for turn in body.messages], "a message")
        ends = tuple(dict.fromkeys((*self._stop_tokens, *self._chat.stop_ids)))
        return self._texts(body, [prompt], ends, "messages")

    def texts_of_completion(self, body: CompletionRequest) -> list[Text]:
        """Return the texts that prompts ask for: `n` for each prompt, one prompt after the other.

        Raises:
            ApiError: a prompt is too long, empty, or has an id that is not in the vocabulary.
        """
        prompts = []
        for prompt in body.prompt:
            if isinstance(prompt, str):
                self._check_length([prompt], "prompt", body.special_tokens)
            try:
                prompts.append(self._prompt_ids(prompt, body.special_tokens) if isinstance(prompt, str) else prompt)
            except UserError as error:
                raise ApiError(str(error), param="prompt") from None
        if not body.special_tokens:
            self._tell_of_letters([prompt for prompt in body.prompt if isinstance(prompt, str)], "a prompt")
        return self._texts(body, prompts, self._stop_tokens, "prompt")

    def ids_to_embed(self, inputs: Sequence[str | list[int]]) -> list[list[int]]:
        """Return the tokens of texts that are read and not continued; names of special tokens in them are letters.

        Raises:
            ApiError: a text is too long, empty, or has an id that is not in the vocabulary.
        """
        found = []
        for text in inputs:
            if isinstance(text, str):
                self._check_length([text], "input")
                try:
                    text = self._prompt_ids(text, special_tokens=False)
                except UserError as error:
                    raise ApiError(str(error), param="input") from None
            self._check_prompt(text, "input", room=0)
            found.append(text)
        self._tell_of_letters([text for text in inputs if isinstance(text, str)], "a text")
        return found

    def _prompt_ids(self, prompt: str, special_tokens: bool) -> list[int]:
        return prompt_ids(self.tokenizer, prompt, self._begin_token, special_tokens=special_tokens)

    def _tell_of_letters(self, texts: Iterable[str], what: str) -> None:
        """Log the first time that a text holds the name of a special token and is read as letters."""
        notes = () if self._told_of_letters else (read_as_letters(self.tokenizer, text, what) for text in texts)
        note = next(filter(None, notes), None)
        if note is not None:
            self._told_of_letters = True
            _LOG.warning("%s; it is not said again for others", note)

    def _texts(
        self, body: ChatRequest | CompletionRequest, prompts: Sequence[list[int]], ends: tuple[int, ...], param: str
    ) -> list[Text]:
        for prompt in prompts:
            self._check_prompt(prompt, param)
        bias = {int(token): value for token, value in body.logit_bias.items()}
        self._check_ids(bias, "logit_bias")
        # each prompt draws as if it had been sent alone
        seed = secrets.randbits(62) if body.seed is None else body.seed
        try:
            sampling = SamplingConfig(
                max_new_tokens=body.token_limit or self._default_max_tokens,
                temperature=body.temperature,
                top_k=body.top_k,
                top_p=body.top_p,
                min_p=body.min_p,
                repetition_penalty=body.repetition_penalty,
                presence_penalty=body.presence_penalty,
                frequency_penalty=body.frequency_penalty,
                logit_bias=bias,
                stop_strings=body.stop,
                context_full="stop",
            )
        except UserError as error:
            raise ApiError(str(error), param=str(error).partition(" ")[0]) from None
        samplings = [replace(sampling, seed=sample_seed(seed, sample)) for sample in range(body.n)]
        own: dict[str, Any] = {"adapter": self.adapter, "tokenizer": self.tokenizer}
        return [Text(prompt, sampling, ends, body.alternatives, **own) for prompt in prompts for sampling in samplings]

    def _check_prompt(self, prompt: Sequence[int], param: str, room: int = 1) -> None:
        if not prompt:
            raise ApiError(f"{param} has no tokens; give it at least one", param=param)
        if len(prompt) + room > self.context_length:
            more = " must have room for one more" if room else " cannot hold them"
            raise ApiError(
                f"the prompt has {len(prompt)} tokens, and the context of {self.context_length} tokens{more}; "
                "shorten it",
                param=param,
                code=TOO_LONG,
            )
        self._check_ids(prompt, param)

    def _check_length(self, texts: Sequence[str], param: str, special_tokens: bool = False) -> None:
        """Refuse what is too long before the whole of it is encoded, which takes a second or more for a megabyte.

        No token has more bytes than the longest. What may fit by that is counted piece by piece until it is too much:
        a cut adds a few tokens to a piece, as letters of a special token's name, and makes none of them disappear.
        """
        size = sum(len(text) for text in texts)  # of bytes there are at least as many
        longest = max(self._longest_token, self._longest_name if special_tokens else 1)
        most = self.context_length * longest
        if size > most:
            raise ApiError(
                f"the prompt has {size} characters; the context of {self.context_length} tokens, of at most "
                f"{longest} bytes each, has room for {most}; shorten it",
                param=param,
                code=TOO_LONG,
            )
        if size <= _PIECE:
            return
        tokens = 0
        for text in texts:
            for begin in range(0, len(text), _PIECE):
                piece = text[begin : begin + _PIECE]
                try:
                    tokens += max(0, len(self.tokenizer.encode(piece, allow_special=special_tokens)) - _OF_CUTS)
                except UserError as error:
                    raise ApiError(str(error), param=param) from None
                if tokens >= self.context_length:
                    raise ApiError(
                        f"the prompt has {size} characters, which are more tokens than the context of "
                        f"{self.context_length} has room for; shorten it",
                        param=param,
                        code=TOO_LONG,
                    )

    def _check_ids(self, ids: Iterable[int], param: str) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                message = f"{param} has the token id {token}, which is not in the vocabulary of {self.vocab_size}"
                raise ApiError(message, param=param)
