"""Measuring a trained model."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lit_llm.config import EvaluateConfig, UserError, to_plain
from lit_llm.config.files import replace_file, write_json
from lit_llm.config.post_training import REFERENCE_FREE_LOSSES, default_beta
from lit_llm.data.progress import byte_progress
from lit_llm.data.sources.files import find_files
from lit_llm.distributed.ranks import failing_together, rank
from lit_llm.evaluation.baselines import compressor_bits_per_byte
from lit_llm.evaluation.battery.run import AskedTask
from lit_llm.evaluation.evaluation_page import evaluation_page
from lit_llm.evaluation.evaluation_report import markdown
from lit_llm.evaluation.harness import run_tasks
from lit_llm.evaluation.held_out import answer_log_probs, preference_log_probs, preference_scores
from lit_llm.evaluation.perplexity import Scores, difference, score, summary
from lit_llm.evaluation.rankings import implicit_margins, load_reference, ranking
from lit_llm.evaluation.token_windows import ShardSource, TextSource, WindowOptions
from lit_llm.interop import read_model_config
from lit_llm.planning import count_parameters
from lit_llm.stages.battery import ask_battery, battery_report, open_battery
from lit_llm.stages.loading import LoadedModel, dtype_of, find_model, load, results_folder, run_of, tell_begin_token
from lit_llm.stages.processes import connected
from lit_llm.stages.quantization import MOST_TOKENS, QualityText
from lit_llm.tokenizer.chat import ChatFormat

FILES = ("evaluation.json", "evaluation.md", "evaluation.html")
_ASKED = ("texts", "shards", "answers", "preferences", "tasks", "battery")
_PACKAGES = ("lit-llm", "torch", "tokenizers", "numpy", "lm_eval")


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        folder: where evaluation.json, evaluation.md and evaluation.html are.
        report: the content of the first.
        markdown: the content of the second.
    """

    folder: Path
    report: dict[str, Any]
    markdown: str


@dataclass
class _Measured:
    """What came out for one model.

    Attributes:
        name: "full", or how it is quantized.
        ranks_by: what it ranks answers by: their log-probability, or a reward model's score.
        sources: scores of texts and shards, in their order.
        answers: scores of files of conversations, each of which counts as a document.
        preferences: log-probabilities, or a reward model's scores, of chosen and rejected answers [pairs, 2] of each
            file.
    """

    name: str
    ranks_by: str
    sources: list[Scores] = field(default_factory=list)
    answers: list[Scores] = field(default_factory=list)
    preferences: list[Tensor] = field(default_factory=list)


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Measure a model on what is asked for, and write evaluation.json, evaluation.md and evaluation.html.

    Several processes share the questions of a battery, and rank 0 writes the files.

    Raises:
        UserError: nothing is asked for, or something of it cannot be read or used.
    """
    if not any(getattr(config, name) for name in _ASKED):
        raise UserError(f"there is nothing to evaluate on; give at least one of {', '.join(_ASKED)}")
    output = output_folder(config)
    sources = _open_sources(config)
    _check_rows(config)
    battery = open_battery(config)
    model = find_model(config.model)
    if read_model_config(model).output == "score":
        config.check_reward_model(str(model))
    beta = None if config.reference is None else _beta(config)
    with connected(config):
        report = _evaluate(config, sources, battery, beta, output)
        text = _write(output, report) if rank() == 0 else markdown(report)
    return Evaluation(output, report, text)


def _evaluate(
    config: EvaluateConfig,
    sources: Sequence[TextSource | ShardSource],
    battery: Sequence[AskedTask],
    beta: float | None,
    output: Path,
) -> dict[str, Any]:
    """What goes into evaluation.json."""
    began = time.perf_counter()
    with failing_together():
        loaded = load(config, _beginnings(config, sources), reward_models=True)
    if config.texts or config.battery or config.tasks:
        tell_begin_token(config, loaded.tokenizer)
    options = _window_options(config, loaded)
    output.mkdir(parents=True, exist_ok=True)
    # first, as what is wrong with tasks should not be found after hours of something else
    tasks = _run_tasks(config, loaded)
    facts = _facts(config, loaded, options) | ({} if beta is None else {"reference": config.reference, "beta": beta})
    references = [] if beta is None else _reference_log_probs(config, loaded)
    answered = [ask_battery(config, loaded, battery, output)]
    measured = [_measure(config, loaded, sources, options)]
    if config.quantize != "none" and (sources or battery or config.answers or config.preferences):
        del loaded  # there may not be room for both models
        of_full = replace(config, quantize="none", quality_text=None)
        full = load(of_full)
        answered.insert(0, ask_battery(of_full, full, battery, output))
        measured.insert(0, _measure(of_full, full, sources, options))
    for source in sources:
        if source.kind == "texts":
            source.say_what_was_met()
    results = _results(config, sources, measured)
    results |= {"preferences": _rankings(config, measured, references, beta)}
    results |= {"battery": battery_report(config, battery, answered), "tasks": tasks}
    seconds = time.perf_counter() - began
    tokens = sum(scores.tokens for each in measured for scores in (*each.sources, *each.answers))
    pairs = sum(len(found) for each in measured for found in each.preferences)
    questions = sum(len(each.questions) for each in battery) * len(answered)
    numbers = ("tokens", tokens), ("pairs", pairs), ("questions", questions)
    counts = [f"{count:,} {name}" for name, count in numbers if count]
    print(f"{' and '.join(counts) or 'tasks'} scored in {seconds:.1f} s", file=sys.stderr)
    return {**facts, "seconds": round(seconds, 1), **results}


def output_folder(config: EvaluateConfig) -> Path:
    """Where the files go.

    Raises:
        UserError: an evaluation is there already.
    """
    if config.output is not None:
        folder = Path(config.output)
    else:
        folder = results_folder(config.model) / "evaluation"
    for name in FILES:
        if (folder / name).exists() and not config.overwrite:
            raise UserError(
                f"{folder / name} is there already; give another --output, or replace it with --overwrite true"
            )
    return folder


def _beta(config: EvaluateConfig) -> float:
    """The scale of implicit rewards: as given, or else that of the model's run.

    Raises:
        UserError: the run has none, as its loss takes no reference.
    """
    if config.beta is not None:
        return config.beta
    folder = run_of(config.model)
    run = {} if folder is None else yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(run, dict) or "beta" not in run or "loss" not in run:
        beta = default_beta("sigmoid")
        print(f"beta {beta:g}, as dpo.py has it; {config.model} is in no folder of a DPO run", file=sys.stderr)
        return beta
    if run["loss"] in REFERENCE_FREE_LOSSES:
        raise UserError(
            f"the run {folder} was trained with loss {run['loss']}, whose rewards have no reference; leave reference "
            "out, or give --beta as well"
        )
    return float(run["beta"])


def _open_sources(config: EvaluateConfig) -> list[TextSource | ShardSource]:
    begins = config.begin_token != "never"
    texts = [TextSource(path, config.text_field, config.end_of_text, begins) for path in config.texts]
    shards = [ShardSource(folder, config.split, config.mask_documents) for folder in config.shards]
    if config.verify and shards:
        total = sum(source.tokens.bytes_to_verify for source in shards)
        with byte_progress("checking shards", total) as advance:
            for source in shards:
                source.tokens.verify(on_bytes=advance)
    return [*texts, *shards]


def _beginnings(config: EvaluateConfig, sources: Sequence[TextSource | ShardSource]) -> QualityText | None:
    """The first text of the first texts, where quantization is measured."""
    texts = [source for source in sources if isinstance(source, TextSource)]
    if config.quantize == "none" or config.quality_text is not None or not texts:
        return None
    return QualityText(f"the beginning of {texts[0].name}", (texts[0].beginning(16 * MOST_TOKENS),))


def _check_rows(config: EvaluateConfig) -> None:
    """Refuse files of answers and preferences that are not there, before anything long begins."""
    for name in ("answers", "preferences"):
        for path in getattr(config, name):
            if not path.startswith("hf:"):
                find_files(path, name)


def _window_options(config: EvaluateConfig, loaded: LoadedModel) -> WindowOptions:
    """How texts and shards are cut into windows.

    Raises:
        UserError: the windows are longer than the model's context, or moved on by more than that.
    """
    longest = loaded.model.config.max_position_embeddings
    context = longest if config.context is None else config.context
    if context > longest:
        raise UserError(f"context {context} is more than the model's context of {longest} tokens; lower it")
    stride = max(1, context // 2) if config.stride is None else config.stride
    if stride > context:
        raise UserError(f"stride {stride} is more than the context of {context} tokens, which would leave tokens out")
    return WindowOptions(context, stride, config.max_documents, config.max_tokens)


def _run_tasks(config: EvaluateConfig, loaded: LoadedModel) -> dict[str, dict[str, float]]:
    if not config.tasks:
        return {}
    return run_tasks(
        loaded.model,
        loaded.tokenizer,
        config.tasks,
        stop_tokens=loaded.stop_tokens,
        tasks_folder=None if config.tasks_folder is None else Path(config.tasks_folder),
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        batch_size=config.batch_size,
        chat_template=config.chat_template,
        begin_token=config.begin_token,
        seed=config.seed,
    )


def _measure(
    config: EvaluateConfig, loaded: LoadedModel, sources: Sequence[TextSource | ShardSource], options: WindowOptions
) -> _Measured:
    """Everything but the tasks."""
    name = "full" if config.quantize == "none" else config.quantize
    measured = _Measured(name, "score" if loaded.model.config.output == "score" else "log-probability")
    for source in sources:
        total = source.total_bytes if options.reads_all else None
        with byte_progress(f"{source.name} ({measured.name})", total) as advance:
            found = score(loaded.model, loaded.tokenizer, source, options, config.batch_size, advance)
        measured.sources.append(found)
    if config.answers or config.preferences:
        _measure_rows(config, loaded, measured)
    return measured


def _reference_log_probs(config: EvaluateConfig, loaded: LoadedModel) -> list[Tensor]:
    """What the reference makes of each file of preferences [pairs, 2]."""
    folder = find_model(str(config.reference))
    reference = load_reference(folder, loaded.model, loaded.tokenizer, device=loaded.device, dtype=dtype_of(config))
    longest = loaded.model.config.max_position_embeddings
    with _told_of("preferences"):
        return [
            preference_log_probs(reference, loaded.tokenizer, path, config.batch_size, longest, tell=False)
            for path in config.preferences
        ]


@contextmanager
def _told_of(option: str) -> Iterator[None]:
    """Let errors of rows name the option that gave their files."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("data.paths", option)) from error


def _measure_rows(config: EvaluateConfig, loaded: LoadedModel, measured: _Measured) -> None:
    model, tokenizer = loaded.model, loaded.tokenizer
    of_pairs = preference_scores if model.config.output == "score" else preference_log_probs
    try:
        ChatFormat(tokenizer)
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(f"answers and preferences need a chat model, and {loaded.folder} is none: {reason}") from error
    with _told_of("answers"):
        for path in config.answers:
            log_probs, tokens = answer_log_probs(model, tokenizer, path, config.batch_size)
            measured.answers.append(Scores.of_rows(log_probs, tokens))
    with _told_of("preferences"):
        for path in config.preferences:
            measured.preferences.append(of_pairs(model, tokenizer, path, config.batch_size))


def _facts(config: EvaluateConfig, loaded: LoadedModel, options: WindowOptions) -> dict[str, Any]:
    """What was measured, and with what."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "model": str(loaded.folder),
        "output": loaded.model.config.output,
        "parameters": count_parameters(loaded.model.config),
        "quantize": config.quantize,
        "dtype": str(loaded.model.embedding.weight.dtype).removeprefix("torch."),
        "device": loaded.device,
        "context": options.context,
        "stride": options.stride,
        "versions": versions,
        "config": to_plain(config),
    }


def _results(
    config: EvaluateConfig, sources: Sequence[TextSource | ShardSource], measured: Sequence[_Measured]
) -> dict[str, Any]:
    """What was found on texts, shards and answers, for JSON."""
    seed = config.seed
    groups = [(source.kind, source.name, [[each.sources[i]] for each in measured]) for i, source in enumerate(sources)]
    if len(sources) > 1:
        groups.append(("all", "all of them", [each.sources for each in measured]))
    groups += [("answers", path, [[each.answers[i]] for each in measured]) for i, path in enumerate(config.answers)]
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for kind, name, found in groups:
        rows += [
            {"kind": kind, "source": name, "model": each.name, **summary(scores, seed)}
            for each, scores in zip(measured, found, strict=True)
        ]
        if len(found) == 2:
            differences.append({"kind": kind, "source": name, **difference(*found, seed)})
    return {
        "losses": rows,
        "differences": differences,
        "compressors": [_compressed(source) for source in sources if source.kind == "texts"],
    }


def _compressed(source: Any) -> dict[str, Any]:
    return {"source": source.name, "bytes": len(source.sample), **compressor_bits_per_byte(bytes(source.sample))}


def _rankings(
    config: EvaluateConfig, measured: Sequence[_Measured], references: Sequence[Tensor], beta: float | None
) -> list[dict[str, Any]]:
    """How each model ranks the pairs of each file: a row for each measure that it ranks by."""
    rows = []
    for index, path in enumerate(config.preferences):
        for each in measured:
            found = each.preferences[index]
            margins = {each.ranks_by: found[:, 0] - found[:, 1]}
            if beta is not None:
                margins["implicit reward"] = implicit_margins(found, references[index], beta)
            for measure, values in margins.items():
                about = {"source": path, "model": each.name, "ranks_by": measure}
                rows.append(about | ranking(values, config.seed, calibrated=measure != "log-probability"))
    return rows


def _write(output: Path, report: dict[str, Any]) -> str:
    """Write the files; returns what is in the second."""
    write_json(output / FILES[0], report)
    text = markdown(report)
    replace_file(output / FILES[1], text)
    replace_file(output / FILES[2], evaluation_page(report, text))
    return text
