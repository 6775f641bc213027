"""Default rates and warm-up: pure functions of the stage and the size of the model."""

from __future__ import annotations

from typing import get_args

import pytest

from lit_llm.config import (
    OptimizerConfig,
    default_learning_rate,
    default_muon_learning_rate,
    default_warmup_steps,
)
from lit_llm.config.rates import LEARNING_RATES, WARMUP_SHARES, Stage


@pytest.mark.parametrize("stage", get_args(Stage))
def test_rates_fall_with_size_and_meet_their_anchors(stage: Stage) -> None:
    anchors = LEARNING_RATES[stage]
    for size, rate in anchors:
        assert default_learning_rate(stage, int(size)) == rate
    rates = [default_learning_rate(stage, int(size)) for size in (1e5, 1e6, 3e6, 1e7, 1e8, 1e9, 1e10, 1e12)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == anchors[0][1] and rates[-1] == anchors[-1][1]
    assert 0 < WARMUP_SHARES[stage] < 1


def test_between_anchors_the_rate_is_straight_over_logarithms() -> None:
    (low, before), (high, after) = LEARNING_RATES["reward"]
    middle = default_learning_rate("reward", round((low * high) ** 0.5))
    assert middle == pytest.approx((before * after) ** 0.5, rel=0.05)  # of two digits
    assert float(f"{middle:.1e}") == middle


@pytest.mark.parametrize("stage", get_args(Stage))
def test_adapters_and_muon_have_their_own(stage: Stage) -> None:
    whole = default_learning_rate(stage, 20_000_000)
    assert default_learning_rate(stage, 20_000_000, lora=True) == pytest.approx(min(10 * whole, 1e-2))
    beside_muon = default_learning_rate(stage, 20_000_000, muon=True)
    if stage == "pretrain":
        assert beside_muon == 4e-3 and default_muon_learning_rate(stage, 1.0) == 0.02
    else:
        assert beside_muon == whole and default_muon_learning_rate(stage, whole) == pytest.approx(5 * whole, rel=0.05)


def test_given_rates_stay() -> None:
    assert OptimizerConfig(learning_rate=0.5).with_rates("sft", 10**6) == OptimizerConfig(learning_rate=0.5)
    muon = OptimizerConfig(name="muon", muon_learning_rate=0.3).with_rates("sft", 10**6)
    assert (muon.learning_rate, muon.muon_learning_rate) == (default_learning_rate("sft", 10**6), 0.3)
    follows = OptimizerConfig(name="muon", learning_rate=2e-3).with_rates("dpo", 10**6)
    assert (follows.learning_rate, follows.muon_learning_rate) == (2e-3, 0.01)
    # a rate that nothing reads is not made up
    assert OptimizerConfig().with_rates("pretrain", 10**6).muon_learning_rate is None


def test_warm_up_is_a_share_of_the_run() -> None:
    assert [default_warmup_steps("pretrain", steps) for steps in (1, 20, 1000, 100_000)] == [1, 1, 20, 2000]
    assert [default_warmup_steps("dpo", steps) for steps in (1, 20, 1000)] == [1, 2, 100]
