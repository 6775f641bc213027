"""Probabilities after the filters, by hand, and what is drawn from them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import choose, filtered_probabilities
from lit_llm.generation.samplers import NO_TOKEN, BatchSampler, SamplingRow, draw


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
        # the two of 1/16 tie for the last place
        ({"top_p": 0.9}, ROW),
        ({"min_p": 0.0}, ROW),
        ({"min_p": 0.25}, [1 / 7, 4 / 7, 0, 2 / 7, 0]),
        ({"min_p": 0.26}, [0, 2 / 3, 0, 1 / 3, 0]),
        ({"min_p": 1.0}, [0, 1, 0, 0, 0]),
        # after the temperature, 1/4 is no more than a quarter of 1/2
        ({"min_p": 0.26, "temperature": 0.5}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
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
        ({"temperature": math.inf}, "temperature is inf; it must be from 0 to 1,000,000"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty is 1e-45; it must be from 0.001 to 1,000"),
        ({"repetition_penalty": math.nan}, "repetition_penalty is nan"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf; it must be from -1,000,000 to 1,000,000"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
        ({"logit_bias": {5: -math.inf}}, "logit_bias of token 5 is -inf"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be from"),
        ({"stop_strings": ["a", ""]}, "stop_strings has an empty text"),
        ({"context_full": "wrap"}, "context_full is 'wrap'"),
    ],
)
def test_impossible_sampling_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig(**options)


LEGAL_EXTREMES: list[dict[str, Any]] = [
    *({"temperature": 10.0**-power} for power in (3, 37, 38, 41, 45)),
    {"temperature": 1e-45, "logit_bias": {4: 1e6, 2: -1e6}, "top_p": 0.5},
    {"temperature": 1e-40, "repetition_penalty": 0.001, "top_k": 2**63, "min_p": 1.0},
    {"temperature": 1e-300, "presence_penalty": 1e6, "frequency_penalty": -1e6},
]


@pytest.mark.parametrize("options", LEGAL_EXTREMES, ids=str)
def test_near_zero_a_temperature_takes_the_likeliest(options: dict[str, Any]) -> None:
    """What is divided by it overflows float32, and the least of them are 0 there."""
    logits = 30 * torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    rows = [
        sampling_row(prompt=(1,), written=[0, 2], **{**options, "temperature": t})
        for t in (0.0, options["temperature"])
    ]
    greedy, cold = (int(batch(row, vocabulary=50).choose(logits)) for row in rows)
    assert greedy == cold
    beside = batch(rows[1], sampling_row(temperature=1e6, top_k=2**70), vocabulary=50).choose(logits.expand(2, -1))
    assert int(beside[0]) == cold and 0 <= int(beside[1]) < 50


def test_logits_that_are_no_numbers_choose_nothing() -> None:
    logits = torch.zeros(5, 9)
    logits[0, 3], logits[1, 4], logits[2] = math.nan, math.inf, -math.inf
    logits[3, :8] = -math.inf
    for temperature in (0.0, 1.0):
        rows = [sampling_row(temperature=temperature, presence_penalty=0.1) for _ in range(5)]
        chosen = batch(*rows, vocabulary=9).choose(logits).tolist()
        assert chosen[:4] == [NO_TOKEN, NO_TOKEN, NO_TOKEN, 8] and chosen[4] >= 0


# several rows, each with options of its own


def sampling_row(
    seed: int = 0, prompt: tuple[int, ...] = (), written: list[int] | None = None, **options: Any
) -> SamplingRow:
    return SamplingRow(SamplingConfig(**options), torch.Generator().manual_seed(seed), prompt, written or [])


def batch(*rows: SamplingRow, vocabulary: int) -> BatchSampler:
    return BatchSampler(rows, vocabulary, torch.device("cpu"))


MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.1, "top_k": 300},
    {"temperature": 1.0, "top_k": 10_000, "top_p": 0.999},
    {"temperature": 1.0, "frequency_penalty": 0.5, "logit_bias": {3: 2.0}},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.2},
]


def test_a_row_chooses_what_it_would_choose_alone() -> None:
    vocabulary = 700  # more than the nucleus is first looked for among
    logits = 0.5 * torch.randn(20, len(MIXED), vocabulary, generator=torch.Generator().manual_seed(0))
    together = batch(*(sampling_row(row, **options) for row, options in enumerate(MIXED)), vocabulary=vocabulary)
    alone = [batch(sampling_row(row, **options), vocabulary=vocabulary) for row, options in enumerate(MIXED)]
    for step in logits:
        expected = [int(sampler.choose(step[row : row + 1])) for row, sampler in enumerate(alone)]
        assert together.choose(step).tolist() == expected


def test_the_nucleus_may_be_wider_than_the_first_candidates() -> None:
    config = SamplingConfig(temperature=1.0, top_p=0.9)
    logits = 0.1 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    logits[1, :3] += 20.0  # a row whose nucleus is small shares the batch
    kept = filtered_probabilities(logits, config) > 0
    for row, mask in zip(logits.softmax(-1).double(), kept, strict=True):
        inside = float(row[mask].sum())
        assert inside >= 0.9 - 1e-6
        assert inside - float(row[mask].min()) < 0.9
        assert row[mask].min() > row[~mask].max()
    assert kept.sum(-1)[0] > 800 and kept.sum(-1)[1] <= 3


def test_penalties_and_bias_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])

    def after(**options: Any) -> list[float]:
        row = sampling_row(prompt=(1,), written=[0, 2, 2], **options)
        found: list[torch.Tensor] = []
        sampler = batch(row, vocabulary=4)
        sampler._filters.probabilities = lambda given: found.append(given) or given.softmax(-1)  # type: ignore
        sampler.choose(logits)
        return found[0][0].tolist()

    # the repetition penalty counts the prompt, the two others what was written alone
    assert after(repetition_penalty=2.0) == [1.0, -4.0, 0.5, 0.5]
    assert after(presence_penalty=0.5) == [1.5, -2.0, 0.5, 0.5]
    assert after(frequency_penalty=0.5) == [1.5, -2.0, 0.0, 0.5]
    assert after(logit_bias={3: 4.0, 1: -1.0}) == [2.0, -3.0, 1.0, 4.5]
    assert after(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={0: 1.0}) == [
        1.25,
        -4.0,
        -0.5,
        0.5,
    ]


def test_what_is_chosen_is_penalized_from_then_on() -> None:
    sampler = batch(sampling_row(temperature=0.0, frequency_penalty=1.0), vocabulary=3)
    logits = torch.tensor([[2.5, 2.0, 0.0]])
    assert [int(sampler.choose(logits)) for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    assert logits.tolist() == [[2.5, 2.0, 0.0]]


def test_only_allowed_tokens_are_chosen() -> None:
    rows = [sampling_row(temperature=0.0, logit_bias={0: 100.0}), sampling_row(temperature=1.0)]
    allowed = torch.tensor([[False, True, True], [False, False, True]])
    assert batch(*rows, vocabulary=3).choose(torch.tensor([[9.0, 1.0, 2.0]] * 2), allowed).tolist() == [2, 2]


class NoRunningSumOfFloats(TorchDispatchMode):
    """Refuses what has no deterministic kernel on CUDA, as torch does there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the dtype that is summed in."""
        if func is torch.ops.aten.cumsum.default:
            dtype = (kwargs or {}).get("dtype") or args[0].dtype
            assert not dtype.is_floating_point, "cumsum_cuda_kernel does not have a deterministic implementation"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("vocabulary", [40, 3000])
def test_what_is_drawn_needs_no_running_sum_of_floats(vocabulary: int) -> None:
    """So that a run with only deterministic kernels can write samples, and PPO its answers."""
    config = SamplingConfig(temperature=1.3, top_p=0.97, top_k=2500)
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0))
    rows = [SamplingRow(config, torch.Generator().manual_seed(seed)) for seed in range(4)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    with NoRunningSumOfFloats():
        tokens = BatchSampler(rows, vocabulary, logits.device).choose(logits)
        assert torch.equal(choose(logits, config, generators), tokens)


def test_a_draw_is_the_first_token_whose_exact_running_sum_exceeds_the_uniform_number() -> None:
    """By fractions; whatever device adds up, and in whatever order."""
    probabilities = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    probabilities[:, ::7] = 0.0
    drawn = draw(probabilities, [torch.Generator().manual_seed(seed) for seed in range(20)])
    for seed, (row, token) in enumerate(zip(probabilities.double().tolist(), drawn.tolist(), strict=True)):
        uniform = torch.rand(1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).item()
        sums = list(itertools.accumulate(map(Fraction, row)))
        assert token == next(place for place, reached in enumerate(sums) if reached > Fraction(uniform) * sums[-1])


@pytest.mark.parametrize("total", [1.0, 1e-6, 5.0])
def test_the_largest_uniform_number_draws_the_last_token_that_can_be(
    total: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    probabilities = torch.tensor([[0.3, 0.7, 0.0, 0.0]]) * total
    most = torch.full((1, 1), 1 - 2**-53, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: most)
    assert draw(probabilities, [torch.Generator()]).tolist() == [1]
