"""A decoder as lm-evaluation-harness asks models: log-probabilities of continuations, and texts.

Importing this module needs the package lm-eval; `lit_llm.evaluation.harness` imports it when it is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from lit_llm.config import BeginToken, SamplingConfig, UserError, sample_seed
from lit_llm.config.progress import progress
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation import Engine, Event
from lit_llm.generation.inference import inference
from lit_llm.model import Decoder, TokenLogProbs, hidden_log_probs
from lit_llm.tokenizer import CHATML_TEMPLATE, Tokenizer, begin_ids, conversation_ids, first_token_source
from lit_llm.tokenizer.chat import ChatFormat, Message

MAX_NEW_TOKENS = 256
"""Most tokens of a text where the task does not say (the harness's own default)."""

# What a task may say about how tokens are chosen, besides do_sample, temperature, until and its length.
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")

Pair = tuple[Any, list[int], list[int]]
"""A request (or None), the ids of its context, and the ids of its continuation."""


class RenderedPrompt(str):
    """A conversation as text, which the harness hands back to the model, and as ids.

    From the text alone nobody could tell the special tokens of the template from their names in a message.
    """

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int]) -> RenderedPrompt:
        prompt = super().__new__(cls, text)
        prompt.ids = list(ids)
        return prompt


class HarnessModel(TemplateLM):
    """A decoder and its tokenizer, for `lm_eval.evaluator.evaluate` and `lm_eval.simple_evaluate`.

    Contexts begin with the begin token where `begin_token` says so; by default as with the harness's own model for
    Hugging Face folders, where the tokenizer adds one by its own rule, and for tokenizers trained here, as in training.
    A text that is too long for the context is cut at its left.

    Args:
        model: a language model; it is in evaluation mode during each pass.
        tokenizer: its own.
        stop_tokens: ids that end a text, besides the tokenizer's end of text and, after a chat prompt, the end of turn.
        batch_size: rows of a pass, and texts written at once.
        begin_token: see `lit_llm.tokenizer.begin_ids`.
        seed: text i is drawn with `sample_seed(seed, i)` where a task draws texts.

    Raises:
        UserError: it is a reward model, or `batch_size` is less than 1.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        stop_tokens: Sequence[int] = (),
        batch_size: int = 8,
        begin_token: BeginToken = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        model.config.check_gives_text("the model")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        self._model = model
        self._tokenizer = tokenizer
        ends = (*stop_tokens, tokenizer.eot_id)
        self._stop_tokens = [token for token in dict.fromkeys(ends) if token is not None]
        self._batch_size, self._begin_token = batch_size, begin_token
        self._seed = seed
        self._device = model.embedding.weight.device
        self.requests = 0
        """Number of requests that were answered."""
        self.cut = 0
        """Number of the answered requests that were cut at their left to fit the context."""

    @property
    def eot_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        return self._tokenizer.eot_id

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is predicted from: what is named the begin token, or else the end token, as
        the harness has it.

        Raises:
            UserError: the tokenizer has no such token.
        """
        found = first_token_source(self._tokenizer)
        if found is None:
            raise UserError(
                "a task asks for the probability of a text's first token, and the tokenizer has no token that begins a "
                "text; leave that task out"
            )
        return found

    @property
    def max_length(self) -> int:
        """Number of tokens in the model's context."""
        return self._model.config.max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        """A name that identifies the tokenizer."""
        return self._tokenizer.digest

    @cached_property
    def chat_format(self) -> ChatFormat:
        """The form in which conversations are rendered.

        Raises:
            UserError: the tokenizer has no form for them.
        """
        return ChatFormat(self._tokenizer)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The Jinja template of conversations, for records; None where none is asked for.

        Raises:
            UserError: a template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise UserError(f"the chat template {chat_template!r} is asked for; only the tokenizer's default is used")
        return (self._tokenizer.chat_template or CHATML_TEMPLATE) if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> RenderedPrompt:
        """A conversation up to where the assistant's words begin, or, without `add_generation_prompt`, go on.

        Raises:
            UserError: the tokenizer has no chat template, or it refuses the conversation.
        """
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        begun = [] if add_generation_prompt else [messages.pop().content]
        ids = self.chat_format.render_prompt(messages)
        for words in begun:
            ids += self._tokenizer.encode_further(words)
        ids = conversation_ids(self._tokenizer, ids, self._begin_token)
        return RenderedPrompt(self._tokenizer.decode(ids), ids)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, with the begin token if it has one and `add_special_tokens` is not False; a rendered
        prompt has its own.

        Raises:
            UserError: the tokenizer cannot read the text.
        """
        if isinstance(string, RenderedPrompt):
            return list(string.ids)
        ids = self._tokenizer.encode(string)
        return ids if add_special_tokens is False else begin_ids(self._tokenizer, self._begin_token) + ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        # an assistant's words are encoded apart from the header before them, as in training
        if isinstance(context, RenderedPrompt):
            return list(context.ids), self._tokenizer.encode_further(continuation)
        return super()._encode_pair(context, continuation)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability, and whether it is the likeliest.

        Raises:
            UserError: a continuation has no token of its own, or is longer than the model's context.
        """
        pairs: list[Pair] = []
        for request in requests:
            context, continuation = request.args[:2]
            if context:
                before, after = self._encode_pair(context, continuation)
            else:
                before, after = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
            if not after:
                raise UserError(
                    f"task {request.task_name}: the answer {continuation!r} has no token of its own after "
                    f"{context[-20:]!r}, and so no probability; begin answers with a space"
                )
            pairs.append(((context, continuation), before or [self.prefix_token_id], after))
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, every token predicted once, in windows as long as the context.

        Unlike with the harness's own model for Hugging Face folders, a text has one begin token and not two where the
        tokenizer adds one.
        """
        windows: list[Pair] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            found = [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            ]
            windows += [(None, context, continuation) for context, continuation in found]
            counts.append(len(found))
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        return [sum((next(answers)[0] for _ in range(count)), 0.0) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, without the string that ends it.

        A context leaves room for as many tokens as the task allows; where these would fill the model's context, it
        keeps half of that, and the text ends where the context is full.

        Raises:
            UserError: a task asks for something that texts cannot be drawn with.
        """
        prompts = []
        for number, request in enumerate(requests):
            sampling = _sampling(request, sample_seed(self._seed, number))
            ids = self.tok_encode(request.args[0]) or [self.prefix_token_id]
            room = self.max_length - sampling.max_new_tokens
            kept = room if room > 0 else max(self.max_length // 2, 1)
            self.requests += 1
            self.cut += len(ids) > kept
            prompts.append((ids[-kept:], sampling))
        engine = Engine(
            self._model,
            min(self._batch_size, len(prompts)),
            min(max(len(ids) + sampling.max_new_tokens for ids, sampling in prompts), self.max_length),
            tokenizer=self._tokenizer,
        )
        submitted = []
        for (ids, sampling), request in zip(prompts, requests, strict=True):
            is_chat = isinstance(request.args[0], RenderedPrompt)
            ends = (*self._stop_tokens, *self.chat_format.stop_ids) if is_chat else self._stop_tokens
            submitted.append(engine.submit(ids, sampling, stop_tokens=ends))
        with progress("writing", len(prompts), "texts", shown=not disable_tqdm) as advance:

            def tell(event: Event) -> None:
                advance(event.finish_reason is not None)

            done = engine.run(tell)
        return [
            # what the engine's own text has of special tokens is left out
            postprocess_generated_text(
                self._tokenizer.decode(done[number].ids, skip_special=True), sampling.stop_strings, None
            )
            for number, (_, sampling) in zip(submitted, prompts, strict=True)
        ]

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        groups: dict[tuple[int, ...], list[int]] = {}  # requests that need the same pass, as answers of one token do
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise UserError(
                    f"an answer of {len(continuation)} tokens is longer than the model's context of {self.max_length}"
                )
            text = [*context, *continuation]
            self.requests += 1
            self.cut += len(text) > self.max_length + 1
            groups.setdefault(tuple(text[-self.max_length - 1 : -1]), []).append(number)
        texts = sorted(groups, key=len, reverse=True)
        answers: dict[int, tuple[float, bool]] = {}
        with progress("log-probabilities", len(requests), "requests", shown=not disable_tqdm) as advance:
            for start in range(0, len(texts), self._batch_size):
                batch = texts[start : start + self._batch_size]
                numbers = [number for text in batch for number in groups[text]]
                wanted = [[requests[number][2] for number in groups[text]] for text in batch]
                answers.update(zip(numbers, self._score(batch, wanted), strict=True))
                advance(len(numbers))
        return [answers[number] for number in range(len(requests))]

    def _score(
        self, texts: Sequence[Sequence[int]], wanted: Sequence[Sequence[Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """Score a batch of continuations in one forward pass.

        Args:
            texts: rows, each without the last token of its continuations; the first is the longest.
            wanted: the continuations of each row.

        Returns:
            For each continuation, row by row: its log-probability, and whether each of its tokens is the likeliest.
        """
        width = len(texts[0])
        tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=self._device)
        places = [
            (row, len(text) - len(ids) + offset, token)
            for row, text in enumerate(texts)
            for ids in wanted[row]
            for offset, token in enumerate(ids)
        ]
        rows, columns, targets = torch.tensor(places, device=self._device).unbind(1)

        def score(hidden: Tensor, head: torch.nn.Linear) -> TokenLogProbs:
            return hidden_log_probs(self._model, hidden[rows, columns], head, targets, with_likeliest=True)

        with inference(self._model, is_sharded(self._model)):
            log_probs, _, likeliest = self._model(tokens, head=score)
        lengths = [len(ids) for continuations in wanted for ids in continuations]
        pieces = zip(log_probs.cpu().split(lengths), likeliest.cpu().split(lengths), strict=True)
        return [(float(values.sum()), bool(are.all())) for values, are in pieces]


def _sampling(request: Instance, seed: int) -> SamplingConfig:
    """How a task wants its texts; likeliest tokens, unless it says `do_sample` or a temperature."""
    options = dict(normalize_gen_kwargs(request.args[1], MAX_NEW_TOKENS))
    is_drawn, temperature = options.pop("do_sample"), options.pop("temperature", 1.0)
    known = {name: options.pop(name) for name in _SAMPLING if name in options}
    until = [str(text) for text in options.pop("until") if text not in (None, "")]
    length = options.pop("max_gen_toks")
    if options.get("num_beams") == 1:
        del options["num_beams"]
    if options:
        names = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise UserError(
            f"task {request.task_name}: its generation_kwargs have {names}, which texts here cannot be drawn with; "
            f"known are until, max_gen_toks, do_sample, temperature, {', '.join(_SAMPLING)}"
        )
    try:
        return SamplingConfig(
            max_new_tokens=length,
            temperature=float(temperature) if is_drawn else 0.0,
            stop_strings=until,
            context_full="stop",
            seed=seed,
            **known,
        )
    except UserError as error:
        raise UserError(f"task {request.task_name}: {error}") from None
