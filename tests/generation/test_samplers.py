"""Probabilities after the filters, by hand, and what is drawn from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import choose, filtered_probabilities


def filtered(probabilities: list[float], **options: Any) -> list[float]:
    """The probabilities left of a row whose own ones are given."""
    config = SamplingConfig(**{"temperature": 1.0, **options})
    return filtered_probabilities(torch.tensor([probabilities]).log(), config)[0].tolist()


ROW = [0.125, 0.5, 0.0625, 0.25, 0.0625]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ROW),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3, 0]),
        # the 4th place is shared by two tokens
        ({"top_k": 4}, ROW),
        ({"top_k": 5}, ROW),
        ({"top_k": 50}, ROW),
        ({"top_p": 1.0}, ROW),
        ({"top_p": 1e-6}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.49}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.5}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3, 0]),
        ({"top_p": 0.8}, [1 / 7, 4 / 7, 0, 2 / 7, 0]),
        # of what top-k leaves, 2/3 and 1/3, the first reaches 0.6
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.7}, [0, 2 / 3, 0, 1 / 3, 0]),
        # temperature first: squared and renormalised, 64 / 86 for the likeliest
        ({"temperature": 0.5}, [4 / 86, 64 / 86, 1 / 86, 16 / 86, 1 / 86]),
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0, 0]),
    ],
)
def test_filters_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    assert filtered(ROW, **options) == pytest.approx(expected, abs=1e-6)


def test_rows_are_filtered_each_by_itself_and_logits_stay_as_they_were() -> None:
    logits = torch.tensor([ROW, [0.9, 0.025, 0.025, 0.025, 0.025]]).log()
    before = logits.clone()
    config = SamplingConfig(temperature=1.0, top_k=4, top_p=0.8)
    both = filtered_probabilities(logits, config)
    assert torch.equal(logits, before)
    for row in range(2):
        assert torch.equal(both[row : row + 1], filtered_probabilities(logits[row : row + 1], config))
    assert both[1].tolist() == [1, 0, 0, 0, 0]


def test_bfloat16_logits_give_float32_probabilities() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    probabilities = filtered_probabilities(logits, SamplingConfig(temperature=1.0, top_p=0.9))
    assert probabilities.dtype == torch.float32
    assert probabilities.sum(-1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_temperature_zero_takes_the_likeliest_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 1.0]])
    chosen = choose(logits, SamplingConfig(temperature=0.0, top_k=2), [generator, generator])
    assert chosen.tolist() == [1, 0]
    assert torch.equal(before, generator.get_state())


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    draws = 4000
    config = SamplingConfig(temperature=0.7, top_k=6, top_p=0.95)
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(3))
    expected = filtered_probabilities(logits, config)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits.expand(draws, -1), config, [generator] * draws)
    counts = torch.bincount(drawn, minlength=9)
    kept = expected > 0
    assert 2 < kept.sum() < 7
    assert not counts[~kept].any()
    chi_squared = ((counts - draws * expected)[kept] ** 2 / (draws * expected[kept])).sum()
    # with 5 degrees of freedom or fewer, 1 in 10,000 is beyond
    assert chi_squared < 25.7
    # the same counts are impossible under the unfiltered distribution, so the check can fail
    plain = logits.softmax(-1)[0]
    assert ((counts - draws * plain) ** 2 / (draws * plain)).sum() > 500


def test_each_row_draws_from_its_own_stream() -> None:
    config = SamplingConfig(temperature=1.0)
    logits = torch.zeros(1, 1000)

    def draw(*seeds: int) -> list[int]:
        return choose(logits.expand(len(seeds), -1), config, [torch.Generator().manual_seed(s) for s in seeds]).tolist()

    together = draw(1, 2, 3)
    assert together == draw(1) + draw(2) + draw(3)
    assert len(set(together)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_impossible_sampling_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig(**options)
