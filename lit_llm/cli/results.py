"""Printing the result of a finished stage: where its files are, and the few numbers that people look at first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.config import EvaluateConfig, ExportConfig, PrepareConfig, RunConfig, TokenizerTrainingConfig
from lit_llm.config.notices import is_first_process

if TYPE_CHECKING:
    from lit_llm.data.corpus.manifest import Manifest
    from lit_llm.stages.evaluate import Evaluation
    from lit_llm.stages.export import Exported
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
"""Curves whose last value is printed at the end of a run that has them."""


def show_tokenizer(config: TokenizerTrainingConfig, tokenizer: Tokenizer) -> None:
    """Print how large a trained tokenizer is, and where."""
    print(f"tokenizer of {tokenizer.vocab_size:,} tokens in {config.output}")


def show_shards(config: PrepareConfig, manifests: dict[str, Manifest]) -> None:
    """Print what each split holds, and where."""
    for split, manifest in manifests.items():
        print(
            f"{split}: {manifest.tokens:,} tokens of {manifest.documents:,} documents "
            f"({manifest.bytes / max(manifest.tokens, 1):.2f} bytes per token) in {Path(config.output) / split}"
        )


def show_run(config: RunConfig, result: RunResult | None) -> None:
    """Print the last value of each of `HEADLINES` and where the run's files are; print nothing if there was no run."""
    if result is None or not is_first_process():
        return
    for name in HEADLINES:
        if name in result.metrics:
            print(f"{name} {result.metrics[name]:.4f}")
    print(f"model folder  {result.model_folder}")
    print(f"curves        tensorboard --logdir {result.folder}")
    print(f"report        {result.folder / 'report.md'}")


def show_export(config: ExportConfig, exported: Exported) -> None:
    """Print where an exported model is and who can read it."""
    if exported.only_ours is not None:
        print(f"for this package alone: {exported.only_ours}")
    print(f"{exported.kind}  {exported.path} ({exported.source})")


def show_evaluation(config: EvaluateConfig, evaluation: Evaluation) -> None:
    """Print the tables of an evaluation, and where its files are."""
    print(evaluation.markdown)
    print(f"report   {evaluation.folder / 'evaluation.md'}\nnumbers  {evaluation.folder / 'evaluation.json'}")
