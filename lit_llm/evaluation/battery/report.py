"""A battery's results as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from lit_llm.evaluation.plots import COLORS, FONT, svg_opening
from lit_llm.evaluation.sandbox import UNPROTECTED
from lit_llm.evaluation.tables import markdown_table

_table = partial(markdown_table, aligned=True)
_MOST_PARTS = 100  # in a table


def battery_markdown(battery: Mapping[str, Any]) -> list[str]:
    """Return the parts of the report about a battery: headings, tables and notes."""
    parts = ["## Battery", _tasks(battery), _notes(battery), "### Together", _together(battery)]
    if battery["differences"]:
        parts += ["### Differences", _differences(battery["differences"])]
    several = len(battery["models"]) > 1
    for model in battery["models"]:
        for task in model["tasks"]:
            if task["parts"]:
                name = f"{task['task']} ({model['model']})" if several else task["task"]
                parts += [f"### Parts of {name}", _parts(task)]
    return parts


def _tasks(battery: Mapping[str, Any]) -> str:
    rows = []
    for model in battery["models"]:
        for task in model["tasks"]:
            name = task["task"]
            rows.append([name, model["model"], task["metric"], *_figures(task), f"{task['chance']:.1%}"])
            rows[-1] += [f"{task['questions']:,}", f"{task['cut']:,}"]
            rows += [
                [name, model["model"], other, *_figures(found), "", "", ""] for other, found in task["more"].items()
            ]
    return _table(["task", "model", "measure", "accuracy", "95% interval", "chance", "questions", "cut"], rows)


def _notes(battery: Mapping[str, Any]) -> str:
    notes = [
        "acc: the likeliest choice, or the answer that was written, is right; acc_norm: log-probabilities are divided "
        "by the characters of the choices. Intervals are exact (Clopper and Pearson).",
        "cut: texts whose left end was dropped, as they are longer than the model's context.",
    ]
    if battery["isolation"] is not None:
        unprotected = UNPROTECTED[battery["isolation"]]
        notes.append(f"Programs ran with isolation {battery['isolation']}{unprotected and f' ({unprotected})'}.")
    if battery["limit"] is not None:
        notes.append(f"Of each part of a task only the first {battery['limit']:,} questions were asked.")
    return "\n".join(notes)


def _together(battery: Mapping[str, Any]) -> str:
    rows = []
    for model in battery["models"]:
        entries = [("all tasks", "", model["centred"])]
        entries += [(each["group"], f"{each['accuracy']:.2%}", each["centred"]) for each in model["groups"]]
        for name, accuracy, centred in entries:
            ends = _ends(centred["interval"], ".4f")
            rows.append([name, model["model"], accuracy, f"{centred['value']:.4f}", ends, f"{centred['tasks']}"])
    note = "Centred: the mean over tasks of (accuracy - chance) / (1 - chance), in the manner of CORE (DCLM)."
    return f"{_table(['group', 'model', 'accuracy', 'centred', '95% interval', 'tasks'], rows)}\n\n{note}"


def _differences(differences: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            each["task"],
            each["first"],
            each["second"],
            f"{each['from']:.2%}",
            f"{each['to']:.2%}",
            f"{each['difference']:+.2%}",
            _ends(each["interval"], "+.2%"),
            f"{each['better']:,} / {each['worse']:,} of {each['questions']:,}",
        ]
        for each in differences
    ]
    header = ["task", "first", "second", "from", "to", "difference", "95% interval (paired)", "better / worse"]
    return _table(header, rows)


def _parts(task: Mapping[str, Any]) -> str:
    rows = [[part["part"], *_figures(part), f"{part['questions']:,}"] for part in task["parts"][:_MOST_PARTS]]
    table = _table(["part", "accuracy", "95% interval", "questions"], rows)
    rest = len(task["parts"]) - _MOST_PARTS
    return table if rest <= 0 else f"{table}\n\n{rest:,} more parts are in evaluation.json."


def _figures(found: Mapping[str, Any]) -> list[str]:
    return [f"{found['accuracy']:.2%}", _ends(found["interval"], ".2%")]


def _ends(interval: Sequence[float], form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


_ROW, _WIDTH, _LABEL = 20.0, 480.0, 24


def accuracy_plot(battery: Mapping[str, Any]) -> str:
    """Draw the accuracy of each task as a bar with its interval, and chance as a dashed mark; returns an `<svg>`."""
    rows = [
        (task["task"], index, task)
        for place in range(len(battery["models"][0]["tasks"]))
        for index, model in enumerate(battery["models"])
        for task in [model["tasks"][place]]
    ]
    left, room = 8 + 0.6 * FONT * _LABEL, _WIDTH - 0.6 * FONT * _LABEL - 68
    height = 44 + _ROW * len(rows) + 18 * (len(battery["models"]) > 1)
    parts = [
        *svg_opening(_WIDTH, height, "Accuracy of each task"),
        '<text x="6" y="15" font-weight="bold">Accuracy, its 95% interval, and chance (dashed)</text>',
    ]
    for number, (name, index, task) in enumerate(rows):
        top = 24 + _ROW * number
        label = name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
        if index == 0:
            parts.append(f'<text x="{left - 6:.1f}" y="{top + 14:.1f}" text-anchor="end">{escape(label)}</text>')
        low, high = (left + room * end for end in task["interval"])
        at, middle, chance = left + room * task["accuracy"], top + 9.5, left + room * task["chance"]
        parts += [
            f'<rect x="{left:.1f}" y="{top + 2:.1f}" width="{max(at - left, 0.5):.1f}" height="15" '
            f'fill="{COLORS[index]}"><title>{escape(name)}: {task["accuracy"]:.2%}</title></rect>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
            'stroke="currentColor" stroke-width="1.4" fill="none"/>',
            f'<path d="M{chance:.1f} {top}v{_ROW - 1:g}" stroke="currentColor" stroke-dasharray="3 2"/>',
            f'<text x="{left + room + 8:.1f}" y="{top + 14:.1f}">{task["accuracy"]:.1%}</text>',
        ]
    bottom = 24 + _ROW * len(rows)
    parts += [
        f'<text x="{left + room * share:.1f}" y="{bottom + 13:g}" text-anchor="middle">{share:.0%}</text>'
        for share in (0.0, 0.5, 1.0)
    ]
    if len(battery["models"]) > 1:
        for index, model in enumerate(battery["models"]):
            x = left + 90 * index
            parts.append(f'<rect x="{x:.1f}" y="{bottom + 20:g}" width="10" height="10" fill="{COLORS[index]}"/>')
            parts.append(f'<text x="{x + 14:.1f}" y="{bottom + 29:g}">{escape(model["model"])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
