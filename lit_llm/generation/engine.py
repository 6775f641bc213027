"""In continuous batching texts join and leave a running batch, each with its own options and random stream."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lit_llm.config import SamplingConfig, UserError
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation.compiled import CompiledStep, compiled, roomy
from lit_llm.generation.inference import cache_for, inference, not_finite
from lit_llm.generation.request import (
    AllowedTokens,
    Completion,
    Event,
    LogProbs,
    Request,
    fitted_prompt,
    new_stream,
)
from lit_llm.generation.samplers import NO_TOKEN, BatchSampler, SamplingRow
from lit_llm.generation.stopping import StoppingText
from lit_llm.model import Decoder
from lit_llm.model.adapters import RowAdapters
from lit_llm.tokenizer import Tokenizer

# A shared beginning shorter than this is read again rather than waited for.
SHORTEST_SHARED_PREFIX = 16


class Engine:
    """Writes texts with one model, up to `max_batch` at a time.

    A step reads one chunk of the prompts that are new, and one token of every text that runs; a text that has ended
    costs nothing. A prompt that begins like one already in the batch takes that part from it instead of reading it.
    A text's draws come from its own seed, so what it says does not depend on what else is in the batch, up to the
    rounding of the logits: a matrix product over other rows may differ in its last bits. A text that cannot go on (its
    logits are not finite, or its options or `allowed_tokens` fail) ends with an error of its own, and the others go on.

    Not safe to use from several threads at once. With a sharded model every rank makes the same calls, and the first
    one's choices hold for all, so that all take the same steps.

    Args:
        model: the decoder; it is in evaluation mode during each step.
        max_batch: most texts that run at once.
        max_length: most tokens that a text may look at; None means the model's context.
        tokenizer: for text in the events, and for stop strings.
        prefill_chunk: most tokens of each prompt that one step reads; None reads them whole.
        adapters: low-rank adapters over the model, of which a text can name one; texts of different ones run together.
        compile: write with a function that is compiled for the model when it is first needed, for 1, 2, 4, ... rows
            each; see `lit_llm.generation.compiled`. Takes a minute or more each time, and none for a later engine of
            the same model.

    Raises:
        UserError: `max_length` is more than the model's context, or `compile` is asked for and there is no compiler, or
            together with adapters.
    """

    def __init__(
        self,
        model: Decoder,
        max_batch: int,
        max_length: int | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        prefill_chunk: int | None = 512,
        adapters: RowAdapters | None = None,
        compile: bool = False,
    ) -> None:
        context = model.config.max_position_embeddings
        self.max_length = context if max_length is None else max_length
        if self.max_length > context:
            raise UserError(f"max_length {self.max_length} is more than the model's context of {context} tokens")
        self.model = model
        self.adapters = adapters or RowAdapters(model, {})
        if self.adapters.names and compile:
            raise UserError("a model with adapters cannot be compiled; leave compile off, or merge the adapter")
        self.max_batch = max_batch
        self.tokenizer = tokenizer
        self.prefill_chunk = prefill_chunk or self.max_length
        self.device = model.embedding.weight.device
        self._sharded = is_sharded(model)
        with inference(model, self._sharded):
            form = compiled(model) if compile else None
            self.cache = cache_for(model, max_batch, self.max_length if form is None else roomy(self.max_length))
            self._one_token = None if form is None else CompiledStep(form, self.cache)
        self.tokens_read = 0
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # in the order of the cache's rows
        self._cancelled: set[int] = set()
        self._next_id = 0
        self._sampler: tuple[list[int], BatchSampler] | None = None

    @property
    def busy(self) -> bool:
        """Whether a text is running or waiting."""
        return bool(self._running or self._waiting)

    def submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig | None = None,
        *,
        stop_tokens: Iterable[int] = (),
        log_probs: int | None = None,
        allowed_tokens: AllowedTokens | None = None,
        adapter: str | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> int:
        """Ask for a text; it joins the batch at the next step that has room.

        Args:
            prompt: token ids, at least one.
            sampling: how tokens are chosen and when the text ends.
            stop_tokens: ids that end the text, besides those of `sampling`; they are not written.
            log_probs: report each token's log-probability, and those of so many likeliest tokens.
            allowed_tokens: restricts what may come next; called once for each token.
            adapter: the adapter by which the text is written; None: the model as it is.
            tokenizer: that of the adapter; None: the engine's.

        Returns:
            The id of the request.

        Raises:
            UserError: the prompt is empty or too long, an id is not in the vocabulary, there are stop strings and no
                tokenizer, or there is no such adapter.
        """
        self.adapters.check(adapter)
        tokenizer = tokenizer or self.tokenizer
        sampling = SamplingConfig() if sampling is None else sampling
        context = fitted_prompt(list(prompt), sampling, self.max_length)
        vocabulary = self.model.config.vocab_size or 0
        for token in (*context, *sampling.logit_bias):
            if not 0 <= token < vocabulary:
                raise UserError(f"token id {token} is not in the model's vocabulary of {vocabulary}")
        if sampling.stop_strings and tokenizer is None:
            raise UserError("stop_strings need a tokenizer, and the engine was given none")
        self._next_id += 1
        self._waiting.append(
            Request(
                self._next_id,
                SamplingRow(sampling, new_stream(sampling.seed), tuple(context)),
                frozenset((*stop_tokens, *sampling.stop_token_ids)),
                context,
                text=None if tokenizer is None else StoppingText(tokenizer, sampling.stop_strings),
                allowed_tokens=allowed_tokens,
                log_probs=log_probs,
                adapter=adapter,
            )
        )
        return self._next_id

    def cancel(self, request: int) -> None:
        """End a text without another event; its place is free at the next step. Unknown ids are ignored."""
        self._cancelled.add(request)

    def step(self) -> list[Event]:
        """Read what is to be read and write one token of every text that is ready.

        Returns:
            What happened, at most one event for each text.
        """
        with inference(self.model, self._sharded):
            self._drop_cancelled()
            self._admit()
            ready = self._put_ready_first()
            events = self._read(range(ready, len(self._running)), self.prefill_chunk)
            events += self._read(range(ready), 1)
            finished = {event.request for event in events if event.finish_reason is not None}
            self._leave(finished, failed={event.request for event in events if event.error is not None})
        return events

    def run(self, on_event: Callable[[Event], None] | None = None) -> dict[int, Completion]:
        """Step until every text has ended; returns them by the id of their request.

        Raises:
            Exception: what a text could not go on for, once the others have ended.
        """
        done: dict[int, Completion] = {}
        while self.busy:
            for event in self.step():
                done.setdefault(event.request, Completion()).add(event)
                if on_event is not None:
                    on_event(event)
        for completion in done.values():
            if completion.error is not None:
                raise completion.error
        return done

    def _drop_cancelled(self) -> None:
        if self._cancelled:
            self._waiting = deque(request for request in self._waiting if request.id not in self._cancelled)
            self._leave(self._cancelled)
            self._cancelled = set()

    def _admit(self) -> None:
        """Give free rows to waiting texts, in order; a text waits while another reads the beginning that they share."""
        postponed: list[Request] = []
        while self._waiting and len(self._running) < self.max_batch:
            request = self._waiting.popleft()
            source, shared, coming = self._shared_prefix(request)
            if coming > shared:
                postponed.append(request)
                continue
            row = len(self._running)
            if shared:
                self.cache.copy_row(source, row, shared, request.context[shared - 1])
            else:
                self.cache.truncate(row, 0)
            request.read = shared
            self._running.append(request)
        self._waiting.extendleft(reversed(postponed))

    def _shared_prefix(self, request: Request) -> tuple[int, int, int]:
        """Find the row that already holds most of the beginning of `request`.

        Returns:
            The row, how many tokens of the beginning it holds, and how many a row that is being read will hold soon.
        """
        source = shared = coming = 0
        most = len(request.context) - 1  # the last token is always read, because its logits are needed
        if most < SHORTEST_SHARED_PREFIX:
            return source, shared, coming
        for row, other in enumerate(self._running):
            if other.adapter != request.adapter:  # its keys and values are others
                continue
            common = min(common_prefix(request.context, other.context), most)
            held = min(common, other.read)
            if shared < held >= SHORTEST_SHARED_PREFIX and self.cache.holds_prefix(row, held):
                source, shared = row, held
            if other.unread > 1 and common >= SHORTEST_SHARED_PREFIX:
                coming = max(coming, common)
        return source, shared, coming

    def _put_ready_first(self) -> int:
        """Order the rows so that those with one unread token come first; returns how many there are."""
        ready = sum(request.unread == 1 for request in self._running)
        early = [row for row in range(ready) if self._running[row].unread != 1]
        late = [row for row in range(ready, len(self._running)) if self._running[row].unread == 1]
        if early:
            order = list(range(len(self._running)))
            for one, other in zip(early, late, strict=True):
                order[one], order[other] = order[other], order[one]
            self.cache.select(order)
            self._running = [self._running[row] for row in order]
        return ready

    def _read(self, rows: range, chunk: int) -> list[Event]:
        """Read up to `chunk` tokens of each of `rows`, and write a token of each text that is then read to its end."""
        if not rows:
            return []
        requests = self._running[rows.start : rows.stop]
        pieces = [request.context[request.read : request.read + chunk] for request in requests]
        counts = [len(piece) for piece in pieces]
        width = max(counts)
        tokens = torch.tensor([piece + [0] * (width - len(piece)) for piece in pieces], device=self.device)
        at_end = [row for row, request in enumerate(requests) if counts[row] == request.unread]
        broken: list[Event] = []

        def last_logits(hidden: Tensor, head: torch.nn.Linear) -> Tensor | None:
            if len(at_end) < len(requests):
                broken.extend(_broken_prompts(requests, counts, at_end, hidden))
            if not at_end:
                return None
            if width == 1:
                return self.model.logits(hidden[:, -1])
            last = torch.tensor([counts[row] - 1 for row in at_end], device=self.device)
            return self.model.logits(hidden[torch.tensor(at_end, device=self.device), last])

        if self._one_token is not None and width == 1 and rows.start == 0 and len(at_end) == len(rows):
            logits = self._one_token(tokens)
        else:
            with self.adapters.rows([request.adapter for request in requests]):
                logits = self.model(tokens, cache=self.cache.step(width, rows, counts), head=last_logits)
        self.tokens_read += sum(counts)
        for request, count in zip(requests, counts, strict=True):
            request.read += count
        if not at_end:
            return broken
        events = broken + self._write([requests[row] for row in at_end], logits)
        for row, request in zip(rows, requests, strict=True):
            if request.read == 0:  # the context is full: the text goes on with the newer half of it
                self.cache.truncate(row, 0)
        return events

    def _write(self, requests: list[Request], logits: Tensor) -> list[Event]:
        """Choose the next token of each request from its logits [b, vocab]."""
        errors: dict[int, Exception] = {}
        allowed, stuck = self._allowed(requests, logits, errors)
        chosen = self._agree(self._choose(requests, logits, allowed, errors))
        log_probs = _log_probs(requests, logits, chosen)
        events = []
        for number, (request, token) in enumerate(zip(requests, chosen.tolist(), strict=True)):
            if number in errors or token == NO_TOKEN:
                events.append(_failed(request, errors.get(number) or not_finite()))
            elif number in stuck:
                text = request.text.flush() if request.text else ""
                events.append(Event(request.id, None, text, "stop"))
            else:
                events.append(request.write(token, self.max_length, log_probs.get(number)))
        return events

    def _choose(
        self, requests: list[Request], logits: Tensor, allowed: Tensor | None, errors: dict[int, Exception]
    ) -> Tensor:
        """Choose the next token of each request [b]; where that fails, each is tried alone to find the one at fault."""
        ids = [request.id for request in requests]
        rows = [request.sampling for request in requests]
        try:
            if self._sampler is None or self._sampler[0] != ids:
                self._sampler = ids, BatchSampler(rows, logits.size(-1), logits.device)
            return self._sampler[1].choose(logits, allowed)
        except Exception:
            self._sampler = None
        chosen = torch.full((len(rows),), NO_TOKEN, device=logits.device)
        for number, row in enumerate(rows):
            part = slice(number, number + 1)
            try:
                sampler = BatchSampler([row], logits.size(-1), logits.device)
                chosen[part] = sampler.choose(logits[part], None if allowed is None else allowed[part])
            except Exception as error:
                errors.setdefault(number, error)
        return chosen

    def _allowed(
        self, requests: list[Request], logits: Tensor, errors: dict[int, Exception]
    ) -> tuple[Tensor | None, set[int]]:
        """Make the mask of the tokens that may come next [b, vocab], and list the requests for which none may."""
        if all(request.allowed_tokens is None for request in requests):
            return None, set()
        mask = torch.ones(logits.shape, dtype=torch.bool, device=logits.device)
        stuck = set()
        for number, request in enumerate(requests):
            if request.allowed_tokens is not None:
                try:
                    row = request.allowed_tokens(request.sampling.written).to(mask.device)
                    if bool(row.any()):
                        mask[number] = row
                    else:
                        stuck.add(number)
                except Exception as error:
                    errors[number] = error
        return mask, stuck

    def _agree(self, chosen: Tensor) -> Tensor:
        """Give every rank what the first one chose, where ranks share a model."""
        if self._sharded and dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast(chosen, 0)
        return chosen

    def _leave(self, finished: set[int], failed: Collection[int] = ()) -> None:
        """Take texts out of the batch and move the last row into each place that becomes free."""
        for row in reversed(range(len(self._running))):
            if self._running[row].id in finished:
                if self._running[row].id in failed:
                    self.cache.wipe(row)
                last = self._running.pop()
                if row < len(self._running):
                    self.cache.move_row(len(self._running), row)
                    self._running[row] = last


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens that two texts have in common at their beginning."""
    longest = min(len(one), len(other))
    # slices are compared at the speed of C
    return bisect_left(range(1, longest + 1), True, key=lambda length: one[:length] != other[:length])


def _failed(request: Request, error: Exception) -> Event:
    text = request.text.flush() if request.text else ""
    return Event(request.id, None, text, "error", error=error)


def _broken_prompts(requests: list[Request], counts: list[int], at_end: list[int], hidden: Tensor) -> Iterator[Event]:
    """End each text in whose prompt the states [b, t, width] that were just read are not finite.

    They must not stay among those that others begin with, or may be moved over.
    """
    finite = hidden.isfinite().all(-1).tolist()
    for row in sorted({*range(len(requests))} - {*at_end}):
        if not all(finite[row][: counts[row]]):
            yield _failed(requests[row], not_finite())


def _log_probs(requests: list[Request], logits: Tensor, chosen: Tensor) -> dict[int, LogProbs]:
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
