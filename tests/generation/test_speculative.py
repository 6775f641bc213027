"""A draft model changes how fast a text is written, not what is likely to be written."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from test_engine import ARCHITECTURES, plain_loop

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import filtered_probabilities, speculate
from lit_llm.model import Decoder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("guesses", [1, 3])
def test_greedy_text_is_that_of_the_model_alone(architecture: str, guesses: int) -> None:
    """Beyond the context, too."""
    name, fields = ARCHITECTURES[architecture]
    model = random_decoder(tiny_model(name, **fields))
    drafts = [random_decoder(tiny_model(name, **fields), seed=1), model]
    sampling = SamplingConfig(max_new_tokens=30, temperature=0.0)
    text = random_tokens(model.config, 11).tolist()
    expected = plain_loop(model, text, sampling)
    for draft in drafts:
        done = speculate(model, draft, text, sampling, draft_tokens=guesses, prefill_chunk=4)
        assert done.ids == expected and done.finish_reason == "length"
        if draft is model:
            assert done.kept == done.guessed > 0
        else:
            assert done.kept < done.guessed


def texts_of(model: Decoder, draft: Decoder, sampling: SamplingConfig, draws: int) -> Counter[tuple[int, ...]]:
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(draws):
        options = SamplingConfig(**{**vars(sampling), "seed": seed})
        counts[tuple(speculate(model, draft, [1], options, draft_tokens=2).ids)] += 1
    return counts


@torch.no_grad()
def distribution(model: Decoder, sampling: SamplingConfig) -> dict[tuple[int, ...], float]:
    """The probability of every text of `max_new_tokens` tokens."""
    texts = {(): 1.0}
    for _ in range(sampling.max_new_tokens):
        longer = {}
        for ids, probability in texts.items():
            row = filtered_probabilities(model(torch.tensor([[1, *ids]]))[:, -1], sampling)[0]
            longer.update({(*ids, token): probability * p for token, p in enumerate(row.tolist()) if p > 0})
        texts = longer
    return texts


def chi_squared(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    draws = sum(counts.values())
    return sum((counts[ids] - draws * p) ** 2 / (draws * p) for ids, p in expected.items())


@pytest.mark.parametrize("filters", [pytest.param({}, marks=pytest.mark.slow), {"top_k": 2, "temperature": 0.8}])
def test_the_distribution_is_that_of_the_model_alone(filters: dict[str, Any]) -> None:
    fields = {"vocab_size": 3, "num_layers": 1, "hidden_size": 16, "num_heads": 2}
    model = random_decoder(tiny_model(**fields), std=0.15)
    draft = random_decoder(tiny_model(**fields), seed=5, std=0.15)
    sampling = SamplingConfig(**{"max_new_tokens": 3, "temperature": 1.0, **filters})
    counts = texts_of(model, draft, sampling, 1500)
    expected = distribution(model, sampling)
    assert set(counts) <= set(expected)
    assert min(expected.values()) * 1500 > 3  # the test below supposes a few of each
    # 26 degrees of freedom without filters, 7 with: 1 in 10,000 is beyond
    limit = 61.7 if not filters else 29.9
    assert chi_squared(counts, expected) < limit
    # the draft's own distribution would be found out
    assert chi_squared(counts, distribution(draft, sampling)) > 3 * limit


def test_stop_tokens_length_and_mistakes() -> None:
    model, draft = random_decoder(tiny_model()), random_decoder(tiny_model(), seed=1)
    sampling = SamplingConfig(max_new_tokens=10, temperature=0.0)
    free = speculate(model, draft, [5], sampling).ids
    heard: list[int] = []
    done = speculate(model, draft, [5], sampling, stop_tokens=[free[4]], on_token=heard.append)
    assert done.ids == heard == free[: free.index(free[4])] and done.finish_reason == "stop"
    full = SamplingConfig(max_new_tokens=50, temperature=0.0, context_full="stop")
    assert len(speculate(model, draft, [5] * 30, full).ids) == 3
    with pytest.raises(UserError, match=r"vocabulary of 300 tokens and the model one of 400"):
        speculate(model, random_decoder(tiny_model(vocab_size=300)), [5], sampling)
    with pytest.raises(UserError, match="cannot be used together with penalties"):
        speculate(model, draft, [5], SamplingConfig(frequency_penalty=1.0))
