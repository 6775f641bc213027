"""From logits to a token."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llm.config import SamplingConfig


def filtered_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities of the next token after temperature, top-k and top-p, in that order.

    Args:
        logits: [b, vocab].
        config: a temperature above 0, and the filters.

    Returns:
        Float32 probabilities [b, vocab]; tokens filtered out have 0. Where several tokens tie at the k-th place, all
        of them are kept.

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p, the smallest set that reaches the probability).
    """
    logits = logits.float() / config.temperature
    if config.top_k is not None and config.top_k < logits.size(-1):
        threshold = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    probabilities = logits.softmax(-1)
    if config.top_p is not None and config.top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        reached_before = ordered.cumsum(-1) - ordered
        dropped = torch.zeros_like(ordered, dtype=torch.bool).scatter(-1, order, reached_before >= config.top_p)
        probabilities = probabilities.masked_fill(dropped, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def choose(logits: Tensor, config: SamplingConfig, generators: list[torch.Generator]) -> Tensor:
    """Draw a token for each row from its own random stream, so that a row's text does not depend on its neighbours.

    Args:
        logits: [b, vocab].
        config: how to choose; temperature 0 takes the likeliest token and draws nothing.
        generators: one CPU generator for each row.

    Returns:
        Token ids [b] on the CPU.
    """
    if config.temperature == 0.0:
        return logits.argmax(-1).cpu()
    probabilities = filtered_probabilities(logits, config).cpu()
    drawn = [
        torch.multinomial(row, 1, generator=generator) for row, generator in zip(probabilities, generators, strict=True)
    ]
    return torch.cat(drawn)
