"""PPO and GRPO against a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lit_llm.config import PPOConfig, UserError
from lit_llm.data.conversations.prompts import PromptDataModule
from lit_llm.modules.ppo import PPOModule
from lit_llm.modules.rewards import is_function
from lit_llm.stages.loading import find_model
from lit_llm.stages.post_training import Built, open_data, open_model, run_on_rows

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.training.run import RunResult


def ppo(config: PPOConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Align a model with a reward; arguments and result are those of `lit_llm.stages.sft.sft`."""
    if config.replay is not None:
        raise UserError("a step of PPO depends on texts that were drawn, and cannot be replayed; leave replay out")
    return run_on_rows(config, build_ppo, callbacks)


def build_ppo(config: PPOConfig) -> Built:
    """Make module, data and tokenizer of the stage; see `lit_llm.stages.sft.build_sft`."""
    has_head = config.algorithm == "ppo" and config.learns_values_by == "head"
    config.rewards = [source if is_function(source) else str(find_model(source)) for source in config.rewards]
    if config.critic_from is not None:
        config.critic_from = str(find_model(config.critic_from))
    if config.reference_model is not None:
        config.reference_model = str(find_model(config.reference_model))
    folders = [source for source in config.rewards if not is_function(source)]
    others = [*folders, config.critic_from, config.reference_model]
    tokenizer = open_model(config, lambda model: replace(model, value_head=has_head), others)
    config.check_room()
    data = PromptDataModule(config.data, tokenizer, config.seed, config.max_new_tokens)
    open_data(config, data)
    return PPOModule(config, tokenizer), data, tokenizer
