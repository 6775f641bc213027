"""The file evaluation.md, which shows the results of evaluate.py as tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lit_llm.evaluation.battery.report import battery_markdown
from lit_llm.evaluation.tables import markdown_table

_table = partial(markdown_table, aligned=True)


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown, given the content of evaluation.json."""
    parts = ["# Evaluation", _facts(report)]
    if report["losses"]:
        parts += ["## Loss", _losses(report), _notes(report)]
    if report["differences"]:
        kind = report["quantize"]
        lines = "\n".join(f"- {_difference(kind, row)}" for row in report["differences"])
        parts += [f"## What {kind} costs", lines]
    if report["preferences"]:
        parts += ["## Preferences", _preferences(report), *_calibrations(report["preferences"])]
    if report["battery"]:
        parts += battery_markdown(report["battery"])
    if report["tasks"]:
        parts += ["## Tasks", _tasks(report)]
    return "\n\n".join(parts) + "\n"


def _facts(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    kind = "reward model, " if report["output"] == "score" else ""
    rows = [
        ("model", f"{report['model']}, {kind}{report['parameters']:,} parameters"),
        ("computed", f"in {report['dtype']} on {report['device']}, quantize {report['quantize']}"),
        ("time", f"{report['seconds']:,.1f} s"),
        ("made with", versions),
    ]
    if any(row["kind"] != "answers" for row in report["losses"]):
        rows.insert(2, ("windows", f"of {report['context']:,} tokens, moved on by {report['stride']:,}"))
    return _table(["what", "value"], rows)


def _losses(report: dict[str, Any]) -> str:
    compressed = {row["source"]: row for row in report["compressors"]}
    several_models = len({row["model"] for row in report["losses"]}) > 1
    header = ["source", *["model"] * several_models, "nats/token", "95% interval (over)", "perplexity", "bits/byte"]
    header += [*["gzip", "xz"] * bool(compressed), "accuracy", "documents", "tokens", "bytes"]
    rows = []
    for row in report["losses"]:
        found = compressed.get(row["source"], {}) if row["kind"] == "texts" else {}
        line = [row["source"], *[row["model"]] * several_models, f"{row['loss']:.4f}"]
        line.append("" if row["interval"] is None else f"{_interval(row['interval'])} ({row['interval_over']})")
        line += [f"{row['perplexity']:,.2f}", _number(row["bits_per_byte"], ".4f")]
        if compressed:
            line += [_number(found.get("gzip -9"), ".4f"), _number(found.get("xz -9e"), ".4f")]
        line += [_number(row["token_accuracy"], ".2%"), _number(row["documents"]), _number(row["tokens"])]
        rows.append([*line, _number(row["bytes"])])
    return _table(header, rows)


def _notes(report: dict[str, Any]) -> str:
    notes = [
        "Intervals are those of a bootstrap within each source: over its documents, or the windows of a single one."
    ]
    if report["compressors"]:
        sizes = "; ".join(f"{row['bytes']:,} bytes of {row['source']}" for row in report["compressors"])
        notes.append(f"gzip -9 and xz -9e: bits per byte of the beginning of a text as one stream ({sizes}).")
    return "\n".join(notes)


def _difference(kind: str, row: dict[str, Any]) -> str:
    line = f"{row['source']}: {row['from']:.4f} -> {row['to']:.4f} nats/token with {kind}, {row['difference']:+.5f}"
    if row["interval"] is None:
        return line
    return f"{line} (95%: {_interval(row['interval'], '+.5f')}, paired, over {row['interval_over']})"


def _preferences(report: dict[str, Any]) -> str:
    header = ["source", "model", "ranked by", "accuracy", "95% interval", "mean margin", "95% interval"]
    rows = [
        [
            row["source"],
            row["model"],
            row["ranks_by"],
            f"{row['accuracy']:.2%}",
            _interval(row["interval"], ".2%"),
            f"{row['mean_margin']:+.3f}",
            "" if row["margin_interval"] is None else _interval(row["margin_interval"], "+.3f"),
            f"{row['pairs']:,}",
        ]
        for row in report["preferences"]
    ]
    table = _table([*header, "pairs"], rows)
    if "beta" not in report:
        return table
    return f"{table}\n\nImplicit reward: {report['beta']:g} log(model / {report['reference']}) of an answer."


def _calibrations(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return, for each ranking that claims probabilities, a table of how sure it was and how often it was right."""
    parts = []
    for row in rows:
        if "calibration" not in row:
            continue
        name = f"{row['source']}, {row['model']}, {row['ranks_by']}"
        bins = []
        for each in row["calibration"]:
            claims = f"{each['from']:.0%} to {each['to']:.0%}"
            bins.append([claims, f"{each['predicted']:.1%}", f"{each['observed']:.1%}", f"{each['pairs']:,}"])
        error = f"expected calibration error {row['calibration_error']:.4f}"
        parts += [f"### Calibration: {name}", f"{error}: the mean distance of the two shares over all pairs."]
        parts.append(_table(["sigmoid of margin", "claimed", "right", "pairs"], bins))
    return parts


def _tasks(report: dict[str, Any]) -> str:
    rows = []
    for task, metrics in report["tasks"].items():
        for metric, value in metrics.items():
            if not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr")
                rows.append([task, metric, f"{value:.4f}", _number(error, ".4f")])
    table = _table(["task", "metric", "value", "standard error"], rows)
    return table if report["quantize"] == "none" else f"Of the model with {report['quantize']} alone.\n\n{table}"


def _interval(ends: Sequence[float], form: str = ".4f") -> str:
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def _number(value: float | None, form: str = ",") -> str:
    return "" if value is None else f"{value:{form}}"
