"""Printing the result of a finished stage: where its files are, and the few numbers that people look at first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lit_llm.config import (
    CanariesConfig,
    ClassifierConfig,
    CompareConfig,
    ContaminationConfig,
    EvaluateConfig,
    ExportConfig,
    FetchModelConfig,
    JudgeConfig,
    PrepareConfig,
    RecipeConfig,
    RunConfig,
    SafetyConfig,
    TokenizerEvaluationConfig,
    TokenizerTrainingConfig,
)
from lit_llm.config.notices import is_first_process, with_pictures

if TYPE_CHECKING:
    from lit_llm.data.corpus.manifest import Manifest
    from lit_llm.data.corpus.recipes.engine import CleanCorpus
    from lit_llm.stages.classifier import TrainedClassifier
    from lit_llm.stages.compare import Comparison
    from lit_llm.stages.contamination import Contamination
    from lit_llm.stages.evaluate import Evaluation
    from lit_llm.stages.evaluate_tokenizer import TokenizerEvaluation
    from lit_llm.stages.export import Exported
    from lit_llm.stages.fetch_model import FetchedModel
    from lit_llm.stages.judge import Judgement
    from lit_llm.stages.plant_canaries import PlantedCanaries
    from lit_llm.stages.safety import Safety
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


def show_corpus(config: RecipeConfig, corpus: CleanCorpus) -> None:
    """Print what each step of a recipe has let pass as a table, and where the corpus is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(
        *(Column(name, justify="right" if name in _NUMBERS else "left", overflow="fold") for name in _CORPUS_COLUMNS)
    )
    for source in corpus.report["sources"]:
        numbers = {reason: entry["number"] for reason, entry in source["skipped"].items()}
        most = max(numbers, key=numbers.__getitem__, default="")
        why = f"{sum(numbers.values()):,} skipped, {numbers[most]:,} as {most}" if numbers else ""
        came = (f"{source['documents']:,}", _megabytes(source["bytes"]))
        table.add_row(escape(source["name"]), *came, "", "", escape(why))
    for step in corpus.report["steps"]:
        dropped = step["documents_in"] - step["documents_out"]
        left = (f"{step['documents_out']:,}", _megabytes(step["bytes_out"]), f"{dropped:,}", f"{step['seconds']:.1f}")
        table.add_row(f"{step['number']} {step['name']}", *left, escape(next(iter(step["dropped"]), "")))
    Console().print(table)
    for source in corpus.report["sources"]:
        _print_lost_files(source["skipped"], f" of {source['name']}")
    contents, folder = corpus.report["corpus"], corpus.folder
    print(f"corpus  {contents['documents']:,} documents, {_megabytes(contents['bytes'])} MB in {folder / 'documents'}")
    print(f"report  {folder / 'data_report.html'} (and data_card.md, report.json)")


_CORPUS_COLUMNS = ("", "documents", "MB", "dropped", "seconds", "most often as")
_NUMBERS = _CORPUS_COLUMNS[1:5]
_NAMED_FILES = 5


def _print_lost_files(skipped: Mapping[str, Mapping[str, Any]], of: str) -> None:
    """Print which files could not be read, or not to their ends."""
    from lit_llm.data.corpus.recipes.tallies import skipped_place
    from lit_llm.data.sources.making import LOST_FILES

    for reason, entry in skipped.items():
        if reason in LOST_FILES:
            names, more = entry["examples"][:_NAMED_FILES], entry["number"] - _NAMED_FILES
            places = ", ".join(map(skipped_place, names)) + (f" and {more:,} more" if more > 0 else "")
            print(f"left out{of}  {reason} ({entry['number']:,}): {places}")


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f}"


def show_classifier(config: ClassifierConfig, trained: TrainedClassifier) -> None:
    """Print what a classifier of quality is worth on the documents that were held out, and where it is."""
    for split in ("training", "held-out"):
        positives, negatives = (trained.documents[f"{split} {kind}"] for kind in ("positives", "negatives"))
        print(
            f"{split:8}  {positives:,} documents of {config.positives.path}, {negatives:,} of {config.negatives.path}"
        )
    print(f"area under the curve, held out: {trained.area_under_curve:.4f}")
    print("threshold  precision  recall  negatives kept")
    for at in trained.measures:
        print(f"{at.threshold:9.2f}  {at.precision:9.4f}  {at.recall:6.4f}  {at.negatives_kept:14.4f}")
    print(f"classifier  {trained.folder}")


def show_contamination(config: ContaminationConfig, result: Contamination) -> None:
    """Print how many rows of each evaluation a corpus has, the first of them, and where the list of all is."""
    from lit_llm.data.sources.making import LOST_FILES
    from lit_llm.data.sources.source import Files

    print(f"corpus  {result.corpus}: {result.documents:,} documents, {_megabytes(result.bytes)} MB")
    _print_lost_files(result.skipped, "")
    for reason, entry in result.skipped.items():
        if reason not in LOST_FILES:
            print(f"left out  {reason} ({entry['number']:,})")
    if result.pages:
        print(f"read without their tags  {result.pages:,} pages of HTML")
    if result.replaced:
        files = Files(len(result.replaced), list(result.replaced))
        print(f"{sum(result.replaced.values()):,} bytes were not valid UTF-8 and became U+FFFD: {files}")
    print(f"looked for  {result.runs:,} runs of words ({_megabytes(result.index_bytes)} MB of memory)")
    for each in result.evaluations:
        print(
            f"{each.file}: {each.found:,} of {each.rows:,} rows in the corpus ({each.found / each.rows:.2%}), "
            f"{each.mostly:,} of them for at least {config.share:.0%}, in {each.documents:,} documents"
        )
        if each.looked_for < each.rows:
            print(f"    too short to be looked for: {each.rows - each.looked_for:,}")
        for row in each.found_rows[: config.examples]:
            print(f"    row {row.row}: {row.found} of {row.runs} runs, in {with_pictures(', '.join(row.documents))}")
        if len(each.found_rows) > config.examples:
            print(f"    and {len(each.found_rows) - config.examples:,} more")
    if config.output is not None:
        print(f"rows  {config.output}")


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
        word = shlex.quote(config.output_root)
        print(f"curves        tensorboard --logdir {word}, then open {curves_page(result.metrics)}")
    print(f"report        {result.folder / 'report.html'} (and report.md)")


def curves_page(metrics: Mapping[str, float]) -> str:
    """Return the address of TensorBoard's page on this machine with the losses of validation pinned to its top.

    Args:
        metrics: the last value of each curve.
    """
    losses = sorted(name for name in metrics if name.startswith("val/loss"))
    pins = json.dumps([{"plugin": "scalars", "tag": name} for name in losses], separators=(",", ":"))
    return "http://localhost:6006/" + (f"?pinnedCards={quote(pins, safe='')}#timeseries" if losses else "")


def show_export(config: ExportConfig, exported: Exported) -> None:
    """Print where an exported model is and who can read it."""
    if exported.note is not None:
        print(exported.note)
    print(f"{exported.kind}  {exported.path} ({exported.source})")
    if exported.page is not None:
        print(f"uploaded      {exported.page}")


def show_fetched(config: FetchModelConfig, fetched: FetchedModel) -> None:
    """Print where a model that was fetched is, under which license, and how to talk with it."""
    there = ", which was there" if fetched.was_there else ""
    print(f"model    {fetched.path} ({fetched.path.stat().st_size:,} bytes, {config.model.license}{there})")
    print(f"talk     python experiments/chat.py --model {shlex.quote(str(fetched.path))}")
    print(f"improve  python experiments/quickstart_chat.py --model {shlex.quote(str(fetched.path))}")


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
    if not is_first_process():
        return
    print(evaluation.markdown)
    print(f"report   {evaluation.folder / 'evaluation.md'}, .html\nnumbers  {evaluation.folder / 'evaluation.json'}")


def show_judgement(config: JudgeConfig, judgement: Judgement) -> None:
    """Print the tables of a comparison by a judge, and where its files are."""
    print(f"{judgement.tables}\n")
    for note in judgement.report["notes"]:
        print(note)
    print(f"report   {judgement.folder / 'judge.html'} (and judge.md)\nnumbers  {judgement.folder / 'judge.json'}")


def show_safety(config: SafetyConfig, safety: Safety) -> None:
    """Print the result of each check in a line, and where the report is."""
    for name, finding in safety.report.findings.items():
        print(f"{name:14}  {finding.summary}")
    print(f"report  {safety.folder / 'safety.html'} (and safety.md, safety.json)")
    if safety.card is not None:
        print(f"card    {safety.card}")


def show_canaries(config: CanariesConfig, planted: PlantedCanaries) -> None:
    """Print what was written, and what to do with it."""
    print(f"{planted.canaries:,} secrets, {planted.unplanted:,} of them not planted, {planted.documents:,} documents")
    print(f"to train on  {planted.documents_file}")
    print(f"to keep      {planted.key_file}, for safety --canaries")


def show_tokenizer_evaluation(config: TokenizerEvaluationConfig, evaluation: TokenizerEvaluation) -> None:
    """Print the table of an evaluation of tokenizers, what to know about it, and where its numbers are."""
    print("\n".join([evaluation.markdown, *evaluation.notes]))
    if config.output is not None:
        print(f"numbers  {config.output}")
