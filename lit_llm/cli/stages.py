"""What each script does, from its configuration. Heavy libraries are imported only once the options are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.cli.generate import generate as generate
from lit_llm.config import (
    PrepareConfig,
    PretrainConfig,
    TokenizerTrainingConfig,
    UserError,
)

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.data.datamodule import TokenDataModule
    from lit_llm.modules import PretrainingModule
    from lit_llm.tokenizer import Tokenizer
    from lit_llm.training.run import RunResult


HEADLINES = (
    "val/loss",
    "val/bits_per_byte",
    "val/token_accuracy",
    "val/accuracy",
    "val/accuracy_low",
    "val/accuracy_high",
    "val/rewards/accuracies",
    "val/rewards/margins",
    "val/reward",
)
"""Curves whose last value is printed at the end of a run, where it has them."""


def train_tokenizer(config: TokenizerTrainingConfig) -> None:
    """Train a tokenizer and say where it is."""
    from lit_llm.data.train_tokenizer import train_tokenizer as train

    tokenizer = train(config)
    print(f"tokenizer of {tokenizer.vocab_size:,} tokens in {config.output}")


def prepare_data(config: PrepareConfig) -> None:
    """Encode a corpus into shards and say what is in them."""
    from lit_llm.data.prepare import prepare

    for split, manifest in prepare(config).items():
        print(
            f"{split}: {manifest.tokens:,} tokens of {manifest.documents:,} documents "
            f"({manifest.bytes / max(manifest.tokens, 1):.2f} bytes per token) in {Path(config.output) / split}"
        )


def pretrain(config: PretrainConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Pretrain a decoder and say where everything is; or, with `config.replay`, look into one recorded step.

    Nothing is done, and None returned, where a run that is to go on is finished.

    Args:
        config: the run.
        callbacks: Lightning callbacks to run besides the package's own.
    """
    from lit_llm.evaluation.report import write_report
    from lit_llm.training.run import fit
    from lit_llm.training.run_folder import is_finished, is_first_process, run_folder

    if config.replay is not None:
        from lit_llm.training.replay import recorded_run, replay_step

        record, config = recorded_run(config)
        replay_step(record, config, *build_pretraining(config))
        return None
    module, data, tokenizer = build_pretraining(config)
    if is_finished(config):
        return None
    with run_folder(config):
        result = fit(config, module, data, tokenizer, callbacks)
        if is_first_process():
            write_report(config, result)
            print_result(result)
    return result


def build_pretraining(config: PretrainConfig) -> tuple[PretrainingModule, TokenDataModule, Tokenizer]:
    """The module, data and tokenizer of a pretraining run; fills in what `config.model` takes from them.

    Raises:
        UserError: something is wrong with the shards, the tokenizer or the model folder.
    """
    import torch

    from lit_llm.data.datamodule import TokenDataModule
    from lit_llm.interop import read_model_config
    from lit_llm.modules import PretrainingModule
    from lit_llm.tokenizer import Tokenizer

    if not config.data.paths:
        raise UserError("data.paths is empty; give it a folder written by experiments/prepare_data.py")
    tokenizer = Tokenizer.load(Path(config.data.paths[0]) / "tokenizer")
    if config.init_from is not None:
        config.model = read_model_config(Path(config.init_from))
        config.check_length()
    fit_vocabulary(config, tokenizer)
    data = TokenDataModule(config.data, tokenizer, config.seed)
    data.setup("fit")  # what is wrong with the shards is said before there is a run folder
    return PretrainingModule(config, torch.tensor(tokenizer.byte_lengths())), data, tokenizer


def fit_vocabulary(config: PretrainConfig, tokenizer: object) -> None:
    """Give the model the tokenizer's vocabulary.

    Raises:
        UserError: `model.vocab_size` was set, and is too small for the tokenizer.
    """
    size = tokenizer.vocab_size  # type: ignore[attr-defined]
    if config.model.vocab_size is None:
        config.model.vocab_size = size
    elif config.model.vocab_size < size:
        raise UserError(
            f"model.vocab_size {config.model.vocab_size} is smaller than the tokenizer's {size}; leave it out"
        )


def print_result(result: RunResult) -> None:
    """Where a finished run left what."""
    for name in HEADLINES:
        if name in result.metrics:
            print(f"{name} {result.metrics[name]:.4f}")
    print(f"model folder  {result.model_folder}")
    print(f"curves        tensorboard --logdir {result.folder}")
    print(f"report        {result.folder / 'report.md'}")
