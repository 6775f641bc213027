"""report.md and report.html: what a run was, how it went, what came out, and what the model writes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch

from lit_llm.config import RunConfig
from lit_llm.config.files import replace_file
from lit_llm.config.notices import with_pictures
from lit_llm.evaluation import pages
from lit_llm.evaluation.charts import MAIN_CHARTS, curve_names, main_charts, more_charts
from lit_llm.evaluation.tables import markdown_table
from lit_llm.planning import count_parameters
from lit_llm.training.curves import METRICS_FILE
from lit_llm.training.loggers import stage_of
from lit_llm.training.run import RunResult
from lit_llm.training.step_lines import read_step_lines

DATA_HEADER = ("split", "where", "how much", "digest")
"""Names of the columns in the table of the data."""
MIX_HEADER = ("corpus", "samples", "share of the samples", "read")
"""Names of the columns in the table of a mix."""
_FEW_ROWS, _MOST_ROWS = 5, 12
"""Most steps in the table of curves in report.md, and most validations that show their samples; with fewer validations
than the first number the table has other steps as well."""


def write_report(config: RunConfig, result: RunResult, sections: Sequence[tuple[str, str]] = ()) -> None:
    """Write report.html and then report.md, which is the last file of a run, into the run folder.

    Args:
        config: the run.
        result: what `fit` returned.
        sections: more of them, as (title, Markdown).
    """
    contents = _Contents(
        config,
        result,
        facts_of(config, result),
        lines=read_step_lines(config.folder / METRICS_FILE),
        samples=[line for line in read_step_lines(config.folder / "samples.jsonl") if line.get("samples")],
        sections=sections,
    )
    replace_file(config.folder / "report.html", _html(contents))
    replace_file(config.folder / "report.md", _markdown(contents))


@dataclass(frozen=True)
class _Contents:
    """All that both reports show.

    Attributes:
        config: the run.
        result: what `fit` returned.
        facts: names and values that the report begins with.
        lines: those of metrics.jsonl.
        samples: the lines of samples.jsonl that have texts.
        sections: more of them, as (title, Markdown).
    """

    config: RunConfig
    result: RunResult
    facts: Sequence[tuple[str, str]]
    lines: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    sections: Sequence[tuple[str, str]]


def facts_of(config: RunConfig, result: RunResult) -> list[tuple[str, str]]:
    """List the facts that a report begins with, as pairs of a name and a value."""
    model, data, known = config.model, config.data, result.facts
    shape = (
        f"{count_parameters(model):,} parameters: {model.num_layers} layers, width {model.hidden_size}, "
        f"{model.num_heads} heads, vocabulary {model.vocab_size:,}"
    )
    facts = [
        ("stage", stage_of(config)),
        ("model", shape),
        *([("started from", config.init_from)] if config.init_from is not None else []),
        ("training", f"{result.steps:,} steps of {data.batch_size} rows, {result.tokens:,} tokens"),
        *([("ended early", result.ended_early)] if result.ended_early is not None else []),
        (
            "optimizer",
            f"{config.optimizer.name}, schedule {config.schedule.name}, precision {config.trainer.precision}",
        ),
        ("speed", f"{result.tokens_per_second:,.0f} tokens/s at the end"),
        ("time", f"{duration(known.seconds)}, validation and checkpoints included"),
        ("last checkpoint", f"step {result.steps:,}"),
    ]
    if known.best_step is not None:
        facts.append(("best checkpoint", f"step {known.best_step:,}, val/loss {known.best_loss:.4f}"))
    return [
        *facts,
        ("device", known.device),
        (
            "made with",
            f"torch {torch.__version__}, lightning {lightning.__version__}, Python {platform.python_version()}, "
            f"{platform.system()} {platform.machine()}",
        ),
    ]


def duration(seconds: float) -> str:
    """Write a length of time for a reader, in at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def _data_rows(result: RunResult) -> list[tuple[str, str, str, str]]:
    return [(each.split, each.where, each.amount, each.digest) for each in result.facts.data]


def _mix_rows(result: RunResult) -> list[tuple[str, str, str, str]]:
    return [
        (each.corpus, f"{each.samples:,}", f"{100 * each.share:.2f}%", f"{each.epochs:.2f} times")
        for each in result.facts.mix
    ]


def last_values(result: RunResult) -> list[tuple[str, str]]:
    """List the last value of each curve as (name, value), those of validation and test first."""
    named = {name: value for name, value in result.metrics.items() if "/" in name}
    order = sorted(named, key=lambda name: (not name.startswith(("val/", "test/")), name))
    return [(name, _number(named[name], ".4f")) for name in order]


def _html(contents: _Contents) -> str:
    parts = [pages.table(("what", "value"), contents.facts)]
    pictures, more = main_charts(contents.lines), more_charts(contents.lines)
    if pictures:
        parts += [pages.heading("Curves"), pages.charts(pictures)]
    if more:
        parts.append(pages.folded(f"{len(more)} more", pages.charts(more)))
    parts += [pages.heading("Last values"), pages.table(("curve", "value"), last_values(contents.result))]
    if contents.result.facts.data:
        parts += [pages.heading("Data files"), pages.table(DATA_HEADER, _data_rows(contents.result))]
    if contents.result.facts.mix:
        parts += [pages.heading("Mix"), pages.table(MIX_HEADER, _mix_rows(contents.result))]
    for title, body in contents.sections:
        parts += [pages.heading(title), pages.from_markdown(body)]
    if contents.samples:
        parts.append(pages.heading("Samples over time"))
    for line in reversed(_spread(contents.samples)):
        texts = "\n".join(pages.preformatted(text) for text in line["samples"])
        parts.append(pages.folded(f"step {line['step']:,}", texts, is_open=line is contents.samples[-1]))
    configuration = pages.preformatted(_configuration(contents.config))
    parts += [pages.heading("Configuration"), pages.folded("config.yaml", configuration)]
    return pages.page(contents.config.run_name, parts)


def _markdown(contents: _Contents) -> str:
    parts = [
        f"# {contents.config.run_name}",
        "report.html shows the same with pictures of all curves.",
        markdown_table(["what", "value"], contents.facts),
        "## Last values",
        markdown_table(["curve", "value"], last_values(contents.result)),
    ]
    curves = _curves_table(contents.lines)
    if curves:
        parts += ["## Curves", curves]
    if contents.result.facts.data:
        parts += ["## Data files", markdown_table(DATA_HEADER, _data_rows(contents.result))]
    if contents.result.facts.mix:
        parts += ["## Mix", markdown_table(MIX_HEADER, _mix_rows(contents.result))]
    for title, body in contents.sections:
        parts += [f"## {title}", body]
    if contents.result.samples:
        parts.append("## Samples")
        parts += [_indented(text) for text in contents.result.samples]
    earlier = _spread(contents.samples)[:-1]
    if earlier:
        parts.append("## Earlier samples")
    for line in reversed(earlier):
        parts += [f"### Step {line['step']:,}", *map(_indented, line["samples"])]
    parts += ["## Configuration", _indented(_configuration(contents.config))]
    return "\n\n".join(parts) + "\n"


def _curves_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Make a table of the main curves at some steps: those of validations, and others if there are few of these."""
    known = curve_names(lines)
    names = [name for chart in MAIN_CHARTS for name in chart.found(known)]
    if not names:
        return ""
    validations = [line for line in lines if any(name.startswith("val/") for name in line)]
    shown = _spread(validations)
    if len(shown) < _FEW_ROWS:
        shown = [*shown, *_spread(lines)]
    rows = sorted({line["step"] for line in shown})
    newest: dict[int, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for line in lines:  # a training curve has its last value before the validation
        values = {**{name: value for name, value in values.items() if not name.startswith("val/")}, **line}
        newest[line["step"]] = values
    return markdown_table(
        ["step", *names],
        [[f"{step:,}", *(_number(newest[step].get(name)) for name in names)] for step in rows],
    )


def _number(value: float | None, form: str = ".4g") -> str:
    if value is None:
        return ""
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:{form}}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"


def _spread(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pick at most `_MOST_ROWS` lines, evenly spread, the first and the last among them."""
    if len(lines) <= _MOST_ROWS:
        return list(lines)
    return [lines[round(number * (len(lines) - 1) / (_MOST_ROWS - 1))] for number in range(_MOST_ROWS)]


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in with_pictures(text).split("\n"))


def _configuration(config: RunConfig) -> str:
    path = config.folder / "config.yaml"
    return path.read_text(encoding="utf-8").rstrip() if path.is_file() else ""
