"""This file continues many prompts in one call; it is the simple front of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lit_llm.config import SamplingConfig, sample_seed
from lit_llm.generation.engine import Engine
from lit_llm.generation.request import Completion, Event, fitted_prompt
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer


def complete(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    tokenizer: Tokenizer | None = None,
    stop_tokens: Iterable[int] = (),
    max_batch: int | None = None,
    prefill_chunk: int | None = 512,
    compile: bool = False,
    on_event: Callable[[int, Event], None] | None = None,
) -> list[Completion]:
    """Continue each prompt.

    Args:
        model: the decoder; it is in evaluation mode for the call.
        prompts: token ids, at least one each.
        sampling: how tokens are chosen; prompt i draws with `sample_seed(sampling.seed, i)`.
        tokenizer: for the texts of the completions, and for stop strings.
        stop_tokens: ids that end a text, besides those of `sampling`.
        max_batch: most texts written at once; None means all of them.
        prefill_chunk: most tokens of each prompt read in one pass; None reads them whole.
        compile: write with compiled functions; see `Engine`.
        on_event: called with the number of the prompt and what was written.

    Returns:
        One completion for each prompt.

    Raises:
        UserError: a prompt is empty or too long, stop strings come without a tokenizer, or predictions are not finite.
    """
    if not prompts:
        return []
    limit = model.config.max_position_embeddings
    longest = max(len(fitted_prompt(list(prompt), sampling, limit)) for prompt in prompts)
    engine = Engine(
        model,
        len(prompts) if max_batch is None else min(max_batch, len(prompts)),
        min(limit, longest + sampling.max_new_tokens),
        tokenizer=tokenizer,
        prefill_chunk=prefill_chunk,
        compile=compile,
    )
    stop_tokens = tuple(stop_tokens)
    numbers = {}
    for number, prompt in enumerate(prompts):
        own = replace(sampling, seed=sample_seed(sampling.seed, number))
        numbers[engine.submit(prompt, own, stop_tokens=stop_tokens)] = number

    def tell(event: Event) -> None:
        if on_event is not None:
            on_event(numbers[event.request], event)

    done = engine.run(tell)
    return [done[request] for request in numbers]


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    eos_id: int | None,
    tokenizer: Tokenizer | None = None,
    compile: bool = False,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt and return the new token ids; see `complete`.

    Args:
        model: the decoder.
        prompts: token ids, at least one each.
        sampling: how tokens are chosen; row r draws with `sample_seed(sampling.seed, r)`.
        eos_id: token that ends a text (it is not returned), or None.
        tokenizer: needed for stop strings.
        compile: write with compiled functions; see `Engine`.
        on_token: called with the row and the id of every new token.
    """

    def tell(row: int, event: Event) -> None:
        if on_token is not None and event.token is not None:
            on_token(row, event.token)

    ends = () if eos_id is None else (eos_id,)
    done = complete(model, prompts, sampling, tokenizer=tokenizer, stop_tokens=ends, compile=compile, on_event=tell)
    return [completion.ids for completion in done]
