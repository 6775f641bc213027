"""In continuous batching texts join and leave a running batch, each with its own options and random stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lit_llm.config import SamplingConfig, UserError
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation.beginnings import broken_prompts, shared_with_rows
from lit_llm.generation.compiled import CompiledStep, compiled, roomy
from lit_llm.generation.inference import cache_for, inference, not_finite
from lit_llm.generation.prefix_cache import PrefixCache
from lit_llm.generation.request import (
    AllowedTokens,
    Completion,
    Event,
    Request,
    fitted_prompt,
    log_probs_of,
    new_stream,
)
from lit_llm.generation.samplers import NO_TOKEN, BatchSampler, SamplingRow
from lit_llm.generation.stopping import StoppingText
from lit_llm.model import Decoder
from lit_llm.model.adapters import RowAdapters
from lit_llm.tokenizer import Tokenizer


class Engine:
    """Writes texts with one model, up to `max_batch` at a time.

    A step reads one chunk of the prompts that are new, and one token of every text that runs; a text that has ended
    costs nothing. A prompt that begins like one already in the batch takes that part from it instead of reading it, and
    with a prefix cache from texts that have ended as well.
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
            each; see `lit_llm.generation.compiled`. Takes a minute or so, but none for a later engine of the same
            model, and on the CPU little for later models of the same form.
        prefix_cache: keeps what is read and written for later texts, also of later engines; made for this model, and
            used by no other engine until `close`. None: what has ended is forgotten.

    Raises:
        UserError: `max_length` is more than the model's context, or `compile` is asked for and there is no compiler.
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
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        context = model.config.max_position_embeddings
        self.max_length = context if max_length is None else max_length
        if self.max_length > context:
            raise UserError(f"max_length {self.max_length} is more than the model's context of {context} tokens")
        if prefix_cache is not None and prefix_cache.model is not model:
            raise ValueError("the prefix cache was made for another model")
        self.model = model
        self.prefix_cache = prefix_cache
        self.adapters = adapters or RowAdapters(model, {})
        self.max_batch = max_batch
        self.tokenizer = tokenizer
        self.prefill_chunk = prefill_chunk or self.max_length
        self.device = model.embedding.weight.device
        self._sharded = is_sharded(model)
        with inference(model, self._sharded):
            form = compiled(model) if compile else None
            length = self.max_length if form is None else roomy(self.max_length)
            self.cache = cache_for(model, max_batch, length, 0 if prefix_cache is None else prefix_cache.spare)
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
        namespace: Hashable = None,
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
            namespace: the text takes its beginning only from texts with the same one.
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
                namespace=(adapter, namespace),
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
        # once for all steps: a small model changes its mode more slowly than it writes a token
        with inference(self.model, self._sharded):
            while self.busy:
                for event in self.step():
                    done.setdefault(event.request, Completion()).add(event)
                    if on_event is not None:
                        on_event(event)
        for completion in done.values():
            if completion.error is not None:
                raise completion.error
        return done

    def close(self) -> None:
        """Let go of the pages of texts that have not ended, so that another engine can use the prefix cache."""
        for request in self._running:
            self._release(request)

    def _release(self, request: Request) -> None:
        if self.prefix_cache is not None:
            self.prefix_cache.release(request.pages)

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
            if not self._begin(request, len(self._running)):
                postponed.append(request)
        self._waiting.extendleft(reversed(postponed))

    def _begin(self, request: Request, row: int) -> bool:
        """Give a text a free row with what is held of its beginning; False if it had better wait for more of it."""
        source, shared, coming = shared_with_rows(request, self._running, self.cache)
        pages, paged = [], 0
        if self.prefix_cache is not None:
            pages = self.prefix_cache.find(request.namespace, request.context, request.shareable)
            paged = len(pages) * self.prefix_cache.page_tokens
        held = max(shared, paged)
        if coming > held:
            return False
        last_token = request.context[held - 1]
        if held == 0:
            self.cache.truncate(row, 0)
        elif self.prefix_cache is None or shared >= paged:
            self.cache.copy_row(source, row, shared, last_token)
        else:
            self.prefix_cache.load(pages, self.cache, row, last_token)
        if self.prefix_cache is not None:
            self.prefix_cache.use(pages)
            self.prefix_cache.count(len(request.context), held)
        request.read = request.cached_tokens = held
        request.pages = pages
        self._running.append(request)
        return True

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
        pieces = [request.context[request.read : self._reach(request, chunk)] for request in requests]
        counts = [len(piece) for piece in pieces]
        width = max(counts)
        tokens = torch.tensor([piece + [0] * (width - len(piece)) for piece in pieces], device=self.device)
        at_end = [row for row, request in enumerate(requests) if counts[row] == request.unread]
        broken: list[Event] = []

        def last_logits(hidden: Tensor, head: torch.nn.Linear) -> Tensor | None:
            if len(at_end) < len(requests):
                broken.extend(broken_prompts(requests, counts, at_end, hidden))
            if not at_end:
                return None
            if width == 1:
                return self.model.logits(hidden[:, -1])
            last = torch.tensor([counts[row] - 1 for row in at_end], device=self.device)
            return self.model.logits(hidden[torch.tensor(at_end, device=self.device), last])

        adapters = [request.adapter for request in requests]
        every = width == 1 and rows.start == 0 and len(at_end) == len(rows)
        if self._one_token is not None and every and self._one_token.takes(len(rows)):
            logits = self._one_token(tokens, adapters)
        else:
            with self.adapters.rows(adapters):
                logits = self.model(tokens, cache=self.cache.step(width, rows, counts), head=last_logits)
        self.tokens_read += sum(counts)
        for request, count in zip(requests, counts, strict=True):
            request.read += count
        events = broken
        if at_end:
            events += self._write([requests[row] for row in at_end], logits)
        self._keep(rows, {event.request for event in events if event.error is not None})
        return events

    def _reach(self, request: Request, chunk: int) -> int:
        """How far one pass may read a text: a ring must not forget a page before it can be kept."""
        reach = request.read + chunk
        if self.prefix_cache is None:
            return reach
        return min(reach, self.prefix_cache.reach(request.read, self.cache))

    def _keep(self, rows: range, failed: Collection[int]) -> None:
        """Keep pages of what was read in `rows`, but for texts that failed."""
        for row in rows:
            request = self._running[row]
            if request.read == 0:  # the context is full: the text goes on with the newer half of it
                self.cache.truncate(row, 0)
                self._release(request)
            elif self.prefix_cache is not None and request.id not in failed:
                self.prefix_cache.keep(request.pages, request.namespace, request.context, self.cache, row)

    def _write(self, requests: list[Request], logits: Tensor) -> list[Event]:
        """Choose the next token of each request from its logits [b, vocab]."""
        errors: dict[int, Exception] = {}
        allowed, stuck = self._allowed(requests, logits, errors)
        chosen = self._agree(self._choose(requests, logits, allowed, errors))
        log_probs = log_probs_of(requests, logits, chosen)
        events = []
        for number, (request, token) in enumerate(zip(requests, chosen.tolist(), strict=True)):
            if number in errors or token == NO_TOKEN:
                events.append(request.end("error", error=errors.get(number) or not_finite()))
            elif number in stuck:
                events.append(request.end("stop"))
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
                self._release(self._running[row])
                if self._running[row].id in failed:
                    self.cache.wipe(row)
                last = self._running.pop()
                if row < len(self._running):
                    self.cache.move_row(len(self._running), row)
                    self._running[row] = last
