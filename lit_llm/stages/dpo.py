"""Direct preference optimization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_llm.config import DPOConfig
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.modules import DPOModule
from lit_llm.stages.loading import find_model
from lit_llm.stages.post_training import Built, open_data, open_model, run_on_rows

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.training.run import RunResult


def dpo(config: DPOConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Align a model with preferences directly; arguments and result are those of `lit_llm.stages.sft.sft`."""
    return run_on_rows(config, build_dpo, callbacks)


def build_dpo(config: DPOConfig) -> Built:
    """Make module, data and tokenizer of the stage; see `lit_llm.stages.sft.build_sft`."""
    if config.reference_model is not None:
        config.reference_model = str(find_model(config.reference_model))
    tokenizer = open_model(config, others=[config.reference_model])
    data = PreferenceDataModule(config.data, tokenizer, config.seed, margins=False)
    open_data(config, data)
    return DPOModule(config, data), data, tokenizer
