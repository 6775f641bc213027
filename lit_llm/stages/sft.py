"""Supervised fine-tuning on conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lit_llm.config import SFTConfig
from lit_llm.data.conversations.supervised import ConversationDataModule
from lit_llm.modules import SFTModule
from lit_llm.stages.post_training import Built, open_data, open_model, run_on_rows

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.training.run import RunResult


def sft(config: SFTConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Fine-tune a model on conversations.

    Args:
        config: the run.
        callbacks: Lightning callbacks to run besides the package's own.
    """
    return run_on_rows(config, build_sft, callbacks)


def build_sft(config: SFTConfig) -> Built:
    """Make module, data and tokenizer of the stage; fills in what `config` takes from the model folder and the data.

    Raises:
        UserError: something is wrong with the model folder, the tokenizer or the rows.
    """
    tokenizer = open_model(config)
    data = ConversationDataModule(config.data, tokenizer, config.seed)
    open_data(config, data)
    return SFTModule(config, torch.tensor(tokenizer.byte_lengths())), data, tokenizer
