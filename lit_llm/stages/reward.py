"""A reward model from pairs of a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_llm.config import ModelConfig, RewardConfig
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.modules import RewardModule
from lit_llm.stages.post_training import Built, open_data, open_model, run_on_rows

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.training.run import RunResult


def reward(config: RewardConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Train a reward model; arguments and result are those of `lit_llm.stages.sft.sft`."""
    return run_on_rows(config, build_reward, callbacks)


def build_reward(config: RewardConfig) -> Built:
    """Make module, data and tokenizer of the stage; see `lit_llm.stages.sft.build_sft`."""
    tokenizer = open_model(config, ModelConfig.as_score)
    margins, scale = config.use_margins, config.score_margin_scale
    data = PreferenceDataModule(config.data, tokenizer, config.seed, margins=margins, score_scale=scale)
    open_data(config, data)
    return RewardModule(config), data, tokenizer
