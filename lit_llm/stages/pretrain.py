"""Pretraining a decoder on shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lit_llm.config import PretrainConfig, UserError
from lit_llm.data.corpus.remote_shards import load_tokenizer
from lit_llm.data.pretraining.data_module import TokenDataModule
from lit_llm.data.pretraining.shard_folder import require_shards
from lit_llm.interop import read_model_config
from lit_llm.modules import PretrainingModule
from lit_llm.stages.defaults import choose_rest, tell
from lit_llm.stages.loading import find_model
from lit_llm.stages.running import run_stage
from lit_llm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.training.run import RunResult


def pretrain(config: PretrainConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Pretrain a decoder; see `lit_llm.stages.running.run_stage`.

    Args:
        config: the run.
        callbacks: Lightning callbacks to run besides the package's own.
    """
    return run_stage(config, build_pretraining, callbacks)


def build_pretraining(config: PretrainConfig) -> tuple[PretrainingModule, TokenDataModule, Tokenizer]:
    """Make the module, data and tokenizer of a pretraining run; fills in what `config.model` takes from them.

    Raises:
        UserError: something is wrong with the shards, the tokenizer or the model folder.
    """
    folders = config.data.folders
    if not folders:
        raise UserError("data.paths is empty; give it a folder written by experiments/prepare_data.py")
    for path in folders:
        require_shards(path)
    tokenizer = load_tokenizer(folders[0], config.data.remote)
    if config.init_from is not None:
        config.init_from = str(find_model(config.init_from))
        config.model = read_model_config(Path(config.init_from))
    tell([config.fit_length()])
    fit_vocabulary(config, tokenizer)
    config.set_steps_of_tokens(float(config.data.length))
    data = TokenDataModule(config.data, tokenizer, config.seed, config.trainer.max_steps)
    data.setup("fit")  # what is wrong with the shards is said before there is a run folder
    tell([*data.mix.lines, *data.validation_lines()])
    choose_rest(config)
    return PretrainingModule(config, torch.tensor(tokenizer.byte_lengths())), data, tokenizer


def fit_vocabulary(config: PretrainConfig, tokenizer: Tokenizer) -> None:
    """Give the model the tokenizer's vocabulary.

    Raises:
        UserError: `model.vocab_size` was set, and is too small for the tokenizer.
    """
    size = tokenizer.vocab_size
    if config.model.vocab_size is None:
        config.model.vocab_size = size
    elif config.model.vocab_size < size:
        raise UserError(
            f"model.vocab_size {config.model.vocab_size} is smaller than the tokenizer's {size}; leave it out"
        )
