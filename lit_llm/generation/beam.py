"""Beam search looks for the likeliest text, keeping a few candidates at each length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.config import SamplingConfig, UserError
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation.inference import cache_for, finite, inference, logits_of_last
from lit_llm.generation.request import fitted_prompt
from lit_llm.model import Decoder


@dataclass(frozen=True)
class Beam:
    """One text that the search has found."""

    ids: list[int]
    """The tokens written, without the stop token."""
    score: float
    """The log-probability of the tokens, a stop token included, divided by their number to the power of the length
    penalty."""
    ended: bool
    """Whether a stop token ended it."""


def beam_search(
    model: Decoder,
    prompt: Sequence[int],
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    stop_tokens: Iterable[int] = (),
    truncate_prompt: bool = False,
    prefill_chunk: int = 512,
) -> list[Beam]:
    """Find the best texts by keeping `num_beams` of them at every length; returns the best first.

    The search is over when no text that is still open can become better than the worst that is kept.

    Args:
        model: the decoder.
        prompt: token ids, at least one.
        num_beams: texts kept; with 1 and no length penalty the search is greedy.
        max_new_tokens: tokens written at most; texts end earlier where the context is full.
        length_penalty: power of the length that scores are divided by; 0 compares plain log-probabilities.
        stop_tokens: ids that end a text.
        truncate_prompt: cut a prompt that is too long at its left.
        prefill_chunk: most tokens of the prompt read in one pass.

    Returns:
        `num_beams` texts, or fewer where there are not so many.

    Raises:
        UserError: the prompt is empty or too long, a count is below 1, or predictions are not finite.

    Source: Wu et al. 2016, section 7, with the plain power of the length as penalty.
    """
    if num_beams < 1:
        raise UserError(f"num_beams is {num_beams}; it must be at least 1")
    limit = model.config.max_position_embeddings
    options = SamplingConfig(max_new_tokens=max_new_tokens, truncate_prompt=truncate_prompt)
    context = fitted_prompt(list(prompt), options, limit)
    # nothing follows the last token, so it is not read
    steps = min(max_new_tokens, limit + 1 - len(context))
    sharded = is_sharded(model)
    with inference(model, sharded):
        search = _Search(num_beams, steps, length_penalty, sorted(set(stop_tokens)))
        cache = cache_for(model, num_beams, len(context) + steps - 1)
        logits = logits_of_last(model, cache, 0, context, 1, prefill_chunk)
        for _ in range(steps):
            rows = search.extend(logits)
            if search.settled:
                break
            cache.select(rows)
            tokens = torch.tensor([[ids[-1]] for ids in search.texts], device=logits.device)
            if len(search.texts[0]) < steps:
                logits = finite(model(tokens, cache=cache.step(1, range(len(rows))))[:, -1])
        return search.best()


class _Search:
    """The open texts with their log-probabilities, and the best that have ended."""

    def __init__(self, num_beams: int, steps: int, length_penalty: float, stop_tokens: list[int]) -> None:
        self.num_beams = num_beams
        self.steps = steps
        self.length_penalty = length_penalty
        self.stop_tokens = stop_tokens
        self.texts: list[list[int]] = [[]]
        self.sums: list[float] = [0.0]
        self.ended: list[Beam] = []

    def score(self, total: float, length: int) -> float:
        return total / length**self.length_penalty

    def extend(self, logits: Tensor) -> list[int]:
        """Make every open text one token longer; returns the row of the text that each new one continues."""
        log_probs = logits.float().log_softmax(-1) + torch.tensor(self.sums, device=logits.device).unsqueeze(1)
        vocabulary = log_probs.size(-1)
        # enough candidates to fill the beam even if every text could end with each of the stop tokens
        wanted = min(self.num_beams * (1 + len(self.stop_tokens)), log_probs.numel())
        totals, places = log_probs.flatten().topk(wanted)
        texts, sums, rows = [], [], []
        for total, place in zip(totals.tolist(), places.tolist(), strict=True):
            row, token = divmod(place, vocabulary)
            ids = self.texts[row]
            if token in self.stop_tokens:
                self.ended.append(Beam(ids, self.score(total, len(ids) + 1), True))
            elif len(texts) < self.num_beams:
                texts.append([*ids, token])
                sums.append(total)
                rows.append(row)
        self.ended = sorted(self.ended, key=lambda beam: -beam.score)[: self.num_beams]
        self.texts, self.sums = texts, sums
        return rows

    @property
    def settled(self) -> bool:
        """Whether no open text can still become one of the best."""
        if not self.texts or len(self.ended) < self.num_beams:
            return not self.texts
        # a sum of log-probabilities only falls, so dividing it by the largest possible length (the smallest, for a
        # negative penalty) bounds the score of every continuation
        lengths = (len(self.texts[0]) + 1, self.steps)
        return max(self.score(self.sums[0], length) for length in lengths) <= self.ended[-1].score

    def best(self) -> list[Beam]:
        """List the best texts: the ended ones, and open ones of full length where they can still be among the best."""
        if self.settled:
            return self.ended
        still_open = [
            Beam(ids, self.score(total, len(ids)), False) for ids, total in zip(self.texts, self.sums, strict=True)
        ]
        return sorted([*self.ended, *still_open], key=lambda beam: -beam.score)[: self.num_beams]
