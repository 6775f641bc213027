"""This file chooses tokens from logits, for all rows of a batch at once.

What a row draws depends on its own logits, options and random stream alone. Filters keep every token that ties with
the last one kept, so the order in which equals happen to be sorted decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_llm.config import SamplingConfig

# The nucleus is looked for among this many of the likeliest tokens before all of them are sorted.
NUCLEUS_CANDIDATES = 256

NO_TOKEN = -1
"""The result for a row whose logits are not finite."""
# The smallest number that a division in float32 does not treat as 0.
_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny
_MOST_K = 2**31 - 1  # larger than any vocabulary
_UNITS = 2.0**60


class Filters:
    """Temperature, top-k, top-p and min-p of each row, as columns [b, 1]; None where no row has one.

    Made of one configuration, they hold for any number of rows.
    """

    def __init__(self, configs: Sequence[SamplingConfig], device: torch.device) -> None:
        def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

        # a greedy row is computed with the others, and its draw is not used
        self.temperature = column([max(config.temperature or 1.0, _LEAST_TEMPERATURE) for config in configs])
        self.top_k = self.top_p = self.min_p = None
        top_k = [min(config.top_k or 0, _MOST_K) for config in configs]
        self.largest_k = max(top_k, default=0)
        if self.largest_k:
            self.top_k = column(top_k, torch.long)
        if any(config.top_p is not None and config.top_p < 1.0 for config in configs):
            self.top_p = column([config.top_p or 1.0 for config in configs], torch.float64)
        if any(config.min_p for config in configs):
            self.min_p = column([config.min_p or 0.0 for config in configs])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Give the probabilities that each row keeps after temperature, top-k, top-p and min-p, in that order.

        Args:
            logits: [b, vocab].

        Returns:
            Float32 [b, vocab], not normalised again after top-p and min-p; tokens filtered out have 0.
        """
        logits = logits.float()
        # the likeliest logit becomes 0, so that no temperature makes it infinite
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        vocabulary = logits.size(-1)
        if self.top_k is not None:
            largest = logits.topk(min(self.largest_k, vocabulary), dim=-1).values
            place = self.top_k.clamp(1, largest.size(-1)) - 1
            last_kept = largest.gather(-1, place.expand(logits.size(0), -1))
            unfiltered = (self.top_k == 0) | (self.top_k >= vocabulary)
            logits = logits.masked_fill((logits < last_kept) & ~unfiltered, float("-inf"))
        probabilities = logits.softmax(-1)
        if self.top_p is not None:
            probabilities = probabilities.masked_fill(probabilities < _nucleus_edge(probabilities, self.top_p), 0.0)
        if self.min_p is not None:
            edge = self.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < edge, 0.0)
        return probabilities


def _nucleus_edge(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Find the smallest probability [b, 1] in the smallest set of likeliest tokens whose sum reaches `top_p` [b, 1]."""
    vocabulary = probabilities.size(-1)
    for candidates in (min(NUCLEUS_CANDIDATES, vocabulary), vocabulary):
        ordered = probabilities.topk(candidates, dim=-1).values
        reached, wanted = _running_sum(ordered), (top_p * _UNITS).ceil().long()
        if candidates == vocabulary or bool((reached[:, -1:] >= wanted).logical_or(top_p >= 1.0).all()):
            break
    last_kept = (reached < wanted).sum(-1, keepdim=True).clamp(max=candidates - 1)
    return torch.where(top_p >= 1.0, 0.0, ordered.gather(-1, last_kept))


def _running_sum(probabilities: Tensor) -> Tensor:
    """Compute running sums over the last dimension in units of 2^-60, as int64.

    Whole numbers add up to the same in any order. A running sum of floating-point numbers depends on it, and has no
    deterministic kernel on CUDA: with `torch.use_deterministic_algorithms` it is an error.
    """
    return (probabilities.double() * _UNITS).long().cumsum(-1)


def filtered_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Compute the probabilities of the next token after temperature, top-k, top-p and min-p, in that order.

    Args:
        logits: [b, vocab].
        config: the filters; temperature 0 leaves the likeliest token alone.

    Returns:
        Float32 probabilities [b, vocab]; tokens filtered out have 0. Where several tokens tie at the last place, all
        of them are kept.

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p, the smallest set that reaches the probability);
        Nguyen et al. 2024 (min-p).
    """
    if config.temperature == 0.0:
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = Filters([config], logits.device).probabilities(logits)
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token of each row, by one uniform number from the row's own stream.

    Args:
        probabilities: [b, vocab], of any sum up to 7.
        generators: one CPU generator for each row.

    Returns:
        Token ids [b] on the device of `probabilities`.
    """
    uniform = torch.cat([torch.rand(1, 1, dtype=torch.float64, generator=generator) for generator in generators])
    reached = _running_sum(probabilities)
    # the first token whose running sum exceeds the target: never one of probability 0
    target = (uniform.to(probabilities.device) * reached[:, -1:].double()).long()
    return torch.searchsorted(reached, target, right=True).squeeze(1)


def choose(logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a token for each row from its own random stream, so that a row's text does not depend on its neighbours.

    Args:
        logits: [b, vocab].
        config: temperature and filters; temperature 0 takes the likeliest token and draws nothing.
        generators: one CPU generator for each row.

    Returns:
        Token ids [b] on the CPU.
    """
    if config.temperature == 0.0:
        return logits.argmax(-1).cpu()
    return draw(Filters([config], logits.device).probabilities(logits), generators).cpu()


@dataclass
class SamplingRow:
    """What must be known of one text to choose its tokens."""

    config: SamplingConfig
    generator: torch.Generator
    """The text's own random stream, on the CPU."""
    prompt: Sequence[int] = ()
    """Ids of the prompt, which the repetition penalty counts."""
    written: list[int] = field(default_factory=list)
    """Ids chosen so far."""


class BatchSampler:
    """Chooses the next token of every row by the row's own options; a new one is made when rows come or go.

    Order: repetition penalty, presence and frequency penalties, bias, allowed tokens, temperature, filters, draw.

    Args:
        rows: the texts, with what they hold so far.
        vocab_size: width of the logits.
        device: where the logits are.

    Source: Keskar et al. 2019 (repetition penalty); OpenAI's API (presence and frequency penalties).
    """

    def __init__(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> None:
        configs = [row.config for row in rows]
        self._drawn = [number for number, config in enumerate(configs) if config.temperature > 0.0]
        self._generators = [rows[number].generator for number in self._drawn]
        self._all_drawn = len(self._drawn) == len(rows)
        self._drawn_index = torch.tensor(self._drawn, device=device)
        self._filters = Filters([configs[number] for number in self._drawn], device)
        self._penalties = _Penalties(rows, vocab_size, device) if any(c.penalizes for c in configs) else None
        self._bias = None
        if any(config.logit_bias for config in configs):
            bias = torch.zeros(len(rows), vocab_size)
            for number, config in enumerate(configs):
                for token, value in config.logit_bias.items():
                    bias[number, token] = value
            self._bias = bias.to(device)

    def choose(self, logits: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Choose the next token of each row, which counts as written in the next call.

        Args:
            logits: [b, vocab].
            allowed: tokens that may be chosen [b, vocab], or None for all.

        Returns:
            Token ids [b] on the device of the logits; `NO_TOKEN` where they are not finite, or none is allowed.
        """
        if self._penalties is not None:
            logits = self._penalties.apply(logits)
        if self._bias is not None:
            logits = logits + self._bias
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
        if self._all_drawn:
            chosen = draw(self._filters.probabilities(logits), self._generators)
        else:
            chosen = logits.argmax(-1)
            if self._drawn:
                drawn = draw(self._filters.probabilities(logits[self._drawn_index]), self._generators)
                chosen[self._drawn_index] = drawn
        # the largest of several numbers is NaN where one of them is NaN
        broken = ~logits.amax(-1).isfinite()
        if self._penalties is not None:
            self._penalties.count(chosen.masked_fill(broken, 0))
        return chosen.masked_fill(broken, NO_TOKEN)


class _Penalties:
    """Applies the three penalties, and keeps the counts that they need."""

    def __init__(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> None:
        def column(name: str) -> Tensor:
            return torch.tensor([[getattr(row.config, name)] for row in rows], device=device)

        self.repetition = column("repetition_penalty")
        self.presence = column("presence_penalty")
        self.frequency = column("frequency_penalty")
        counts = [torch.bincount(torch.tensor(row.written, dtype=torch.long), minlength=vocab_size) for row in rows]
        prompts = [torch.bincount(torch.tensor(row.prompt, dtype=torch.long), minlength=vocab_size) for row in rows]
        self.counts = torch.stack(counts).float().to(device)  # [b, vocab]
        self.in_prompt = (torch.stack(prompts) > 0).to(device)

    def apply(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        written = self.counts > 0
        penalized = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
        logits = torch.where(written | self.in_prompt, penalized, logits)
        return logits - self.frequency * self.counts - self.presence * written

    def count(self, chosen: Tensor) -> None:
        self.counts.scatter_add_(1, chosen.unsqueeze(1), torch.ones_like(self.counts[:, :1]))
