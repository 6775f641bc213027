"""Printing the result of a finished stage: where its files are, and the few numbers that people look at first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.config import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    PrepareConfig,
    RunConfig,
    TokenizerEvaluationConfig,
    TokenizerTrainingConfig,
)
from lit_llm.config.notices import is_first_process

if TYPE_CHECKING:
    from lit_llm.data.corpus.manifest import Manifest
    from lit_llm.stages.compare import Comparison
    from lit_llm.stages.evaluate import Evaluation
    from lit_llm.stages.evaluate_tokenizer import TokenizerEvaluation
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
    if "tensorboard" in config.trainer.loggers:
        print(f"curves        tensorboard --logdir {config.output_root}")
    print(f"report        {result.folder / 'report.html'} (and report.md)")


def show_export(config: ExportConfig, exported: Exported) -> None:
    """Print where an exported model is and who can read it."""
    if exported.note is not None:
        print(exported.note)
    print(f"{exported.kind}  {exported.path} ({exported.source})")
    if exported.page is not None:
        print(f"uploaded      {exported.page}")


def show_comparison(config: CompareConfig, comparison: Comparison) -> None:
    """Print the ends of the runs and their different options as tables, and where the page is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for title, rows in (("", comparison.ends), ("option", comparison.options)):
        table = Table(title, *map(escape, comparison.names))
        for row in rows:
            table.add_row(*map(escape, row))
        if rows:
            console.print(table)
    print(f"page  {comparison.page}")


def show_evaluation(config: EvaluateConfig, evaluation: Evaluation) -> None:
    """Print the tables of an evaluation, and where its files are."""
    print(evaluation.markdown)
    print(f"report   {evaluation.folder / 'evaluation.md'}\nnumbers  {evaluation.folder / 'evaluation.json'}")


def show_tokenizer_evaluation(config: TokenizerEvaluationConfig, evaluation: TokenizerEvaluation) -> None:
    """Print the table of an evaluation of tokenizers, what to know about it, and where its numbers are."""
    print("\n".join([evaluation.markdown, *evaluation.notes]))
    if config.output is not None:
        print(f"numbers  {config.output}")
