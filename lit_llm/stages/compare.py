"""Several runs side by side: their curves in one page, and what differs in their configurations and ends."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_llm.config import CompareConfig, UserError, flatten
from lit_llm.config.files import replace_file
from lit_llm.evaluation import pages
from lit_llm.evaluation.charts import MAIN_CHARTS, Chart, curve, curve_names, draw
from lit_llm.evaluation.run_report import duration
from lit_llm.training.curves import METRICS_FILE
from lit_llm.training.step_lines import read_step_lines

NOTHING = "-"
"""This stands in a table where a run has no such option or number."""
_OF_ONE_START = ("run_name", "ckpt_path", "overwrite", "replay", "resume_changed")
_OVER = ("tokens", "seconds")


@dataclass
class ComparedRun:
    """What the folder of one run says."""

    name: str
    """The part of its path that tells it from the others."""
    options: dict[str, Any]
    """Its configuration, with dotted names."""
    lines: list[dict[str, Any]]
    """Its metrics.jsonl."""

    def last(self, name: str) -> float | None:
        """Return the last value of a curve; None if the run has no such curve."""
        values = curve(self.lines, name)[1]
        return values[-1] if values else None


@dataclass
class Comparison:
    """What several runs have in common, and what not.

    Attributes:
        page: the page that was written.
        names: of the runs.
        options: rows of (option, the value in each run), those alone that differ.
        ends: rows of (what, the value of each run).
    """

    page: Path
    names: list[str]
    options: list[list[str]] = field(default_factory=list)
    ends: list[list[str]] = field(default_factory=list)


def compare(config: CompareConfig) -> Comparison:
    """Compare runs, and write the page.

    Raises:
        UserError: there are fewer than two, or one is no run folder or has no curves.
    """
    if len(config.runs) < 2:
        raise UserError("give two run folders or more, as compare.py checkpoints/one checkpoints/other")
    folders = [Path(run) for run in config.runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"a run is given twice: {', '.join(config.runs)}")
    runs = [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    output = Path(config.output)
    found = Comparison(output, [run.name for run in runs], _different_options(runs), _ends(runs))
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, _html(found, runs))
    return found


def _names(folders: list[Path]) -> list[str]:
    """Name each folder by its path without the beginning that all have in common."""
    paths = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]


def _read(folder: Path, name: str) -> ComparedRun:
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"{path} holds no options")
    lines = read_step_lines(folder / METRICS_FILE)
    if not lines:
        raise UserError(f"{folder} has no curves in {METRICS_FILE}")
    return ComparedRun(name, flatten(options), lines)


def _different_options(runs: list[ComparedRun]) -> list[list[str]]:
    names = list(dict.fromkeys(name for run in runs for name in run.options if name not in _OF_ONE_START))
    rows = [[name, *(_shown(run.options[name]) if name in run.options else NOTHING for run in runs)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ends(runs: list[ComparedRun]) -> list[list[str]]:
    names = sorted({name for run in runs for name in curve_names(run.lines) if name.startswith(("val/", "test/"))})
    names.sort(key=lambda name: (name != "val/loss", name))
    rows = [
        ["steps", *(f"{run.lines[-1]['step']:,}" for run in runs)],
        ["tokens", *(_whole(run.last("tokens")) for run in runs)],
        ["time", *(NOTHING if run.last("seconds") is None else duration(run.last("seconds") or 0.0) for run in runs)],
        ["tokens/s", *(_whole(run.last("throughput/tokens_per_second")) for run in runs)],
        ["train/loss", *(_number(run.last("train/loss")) for run in runs)],
    ]
    best = [_best(run) for run in runs]
    if set(best) != {NOTHING}:
        rows.append(["best val/loss", *best])
    return [*rows, *([name, *(_number(run.last(name)) for run in runs)] for name in names)]


def _best(run: ComparedRun) -> str:
    steps, losses = curve(run.lines, "val/loss")
    if not steps:
        return NOTHING
    loss, step = min(zip(losses, steps, strict=True))
    return f"{loss:.4f} at step {step:,}"


def _whole(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _html(found: Comparison, runs: list[ComparedRun]) -> str:
    known = sorted({name for run in runs for name in curve_names(run.lines)})
    pictures = []
    for chart in MAIN_CHARTS:
        for name in chart.found(known):
            pictures.append(_picture(runs, name, chart.y_label, "step"))
            if name == "val/loss" and len({tuple(curve(run.lines, name, "tokens")[0]) for run in runs}) > 1:
                pictures += [_picture(runs, name, chart.y_label, over) for over in _OVER]
    main = {name for chart in MAIN_CHARTS for name in chart.found(known)}
    more = [_picture(runs, name, name.rpartition("/")[2], "step") for name in known if name not in main]
    parts = [pages.heading("Ends"), pages.table(["", *found.names], found.ends)]
    parts.append(pages.heading("Different options"))
    parts.append(pages.table(["option", *found.names], found.options) if found.options else "<p>None.</p>")
    parts += [pages.heading("Curves"), pages.charts(pictures)]
    if more:
        parts.append(pages.folded(f"{len(more)} more", pages.charts(more)))
    return pages.page(" and ".join(found.names) if len(runs) == 2 else f"{len(runs)} runs", parts)


def _picture(runs: list[ComparedRun], name: str, y_label: str, over: str) -> str:
    """Draw one curve of every run; a run without it keeps its colour and its place in the legend."""
    title = name if over == "step" else f"{name} over {over}"
    return draw(Chart(title, y_label, (name,)), {run.name: curve(run.lines, name, over) for run in runs}, over)
