"""safety.md, safety.html and safety.json, and the summary in the model card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lit_llm.config.files import replace_file
from lit_llm.config.notices import with_pictures
from lit_llm.evaluation import pages
from lit_llm.evaluation.model_card import CARD, UNMEASURED
from lit_llm.evaluation.safety.finding import Finding
from lit_llm.evaluation.tables import markdown_table

FILES = ("safety.json", "safety.md", "safety.html")
_BEGIN, _END = "<!-- safety: begin -->", "<!-- safety: end -->"
_BLOCK = re.compile(rf"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)
_INTRODUCTION = "Each check says what it shows and what it does not. Together they do not show that the model is safe."


@dataclass(frozen=True)
class SafetyReport:
    """Everything that a report says.

    Attributes:
        facts: what was measured, and with what.
        findings: by the name of the check.
        left_out: why other checks were not made.
    """

    facts: Mapping[str, Any]
    findings: Mapping[str, Finding]
    left_out: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """The content of safety.json."""
        checks = {
            name: {
                "summary": each.summary,
                "shows": each.about.shows,
                "does_not_show": each.about.does_not_show,
                **each.values,
            }
            for name, each in self.findings.items()
        }
        return {**self.facts, "checks": checks, "left_out": dict(self.left_out)}

    def fact_rows(self) -> list[tuple[str, str]]:
        """The facts as rows of a table."""
        facts = self.facts
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        return [
            ("model", f"{facts['model']}, {facts['parameters']:,} parameters"),
            ("computed", f"in {facts['dtype']} on {facts['device']}, quantize {facts['quantize']}"),
            ("time", f"{facts['seconds']:,.1f} s"),
            ("made with", versions),
        ]


def markdown(report: SafetyReport) -> str:
    """Return safety.md."""
    parts = ["# Safety", _INTRODUCTION, _plain_table(["what", "value"], report.fact_rows())]
    for each in report.findings.values():
        parts += [f"## {each.about.title}", _plain(each.summary[:1].upper() + each.summary[1:] + ".")]
        parts += [_plain_table(table.header, table.rows) for table in each.tables]
        parts += [_plain(note) for note in each.notes]
        parts += [f"Shows: {each.about.shows}", f"Does not show: {each.about.does_not_show}"]
    if report.left_out:
        parts += ["## Left out", "\n".join(f"- {name}: {_plain(why)}" for name, why in report.left_out.items())]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """A text on one line of Markdown, in which names of files and of categories mean nothing else."""
    return re.sub(r"([<>\\`])", r"\\\1", " ".join(with_pictures(text).split()))


def _plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, [[_plain(cell) for cell in row] for row in rows], aligned=True)


def html(report: SafetyReport) -> str:
    """Return safety.html: the tables, and the answers of the model where there are some."""
    parts = [_paragraph(_INTRODUCTION), _table(["what", "value"], report.fact_rows())]
    for each in report.findings.values():
        parts += [pages.heading(each.about.title), _paragraph(each.summary[:1].upper() + each.summary[1:] + ".")]
        parts += [_table(table.header, table.rows) for table in each.tables]
        parts += [_paragraph(note) for note in each.notes]
        parts += [_paragraph(each.about.shows, "Shows: "), _paragraph(each.about.does_not_show, "Does not show: ")]
        if answers := each.values.get("answers"):
            shown = [_answer(row) for row in answers]
            parts.append(pages.folded(f"{len(shown)} answers", "\n".join(shown)))
    if report.left_out:
        rows = [(name, why) for name, why in report.left_out.items()]
        parts += [pages.heading("Left out"), _table(["check", "why"], rows)]
    return pages.page("Safety", parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return pages.table(header, [[with_pictures(cell) for cell in row] for row in rows])


def _paragraph(text: str, begins: str = "") -> str:
    bold = f"<b>{begins}</b>" if begins else ""
    return f"<p>{bold}{escape(with_pictures(text))}</p>"


def _answer(row: Mapping[str, Any]) -> str:
    """One answer of the model with what was asked, as HTML."""
    flags = [name for name in ("refused", "leaked", "repeated", "obeyed") if row.get(name)]
    asked = row.get("prompt") or row.get("attack", "")
    title = f"{row.get('kind') or row.get('aim')}: {asked}" + (f" [{', '.join(flags)}]" if flags else "")
    return f"<h4>{escape(with_pictures(title))}</h4>\n{pages.preformatted(row['answer'])}"


def write_summary(folder: Path, report: SafetyReport, quantize: str) -> Path | None:
    """Write a summary into the card of a model folder, in the place of what stood there before of its safety.

    Args:
        folder: the model folder.
        report: what was found.
        quantize: how the model was rounded as it was measured, or "none".

    Returns:
        The card; None if there is none.
    """
    rows = [(each.about.title, _plain(each.summary)) for each in report.findings.values()]
    rounded = "" if quantize == "none" else f" Measured with the weights rounded to {quantize}."
    lines = [
        _BEGIN,
        "## Safety",
        markdown_table(["check", "result"], rows),
        f"{_INTRODUCTION}{rounded} What the numbers mean, and what was not measured, stands in safety.md of the run.",
        _END,
    ]
    return _put(folder / CARD, "\n\n".join(lines))


def carry_summary(source: Path, folder: Path, quantization: str | None) -> None:
    """Put the summary in the card of a model folder into the card of another folder that has the same model.

    Args:
        source: the model folder; one without a card, or with nothing of safety in it, has nothing to give.
        folder: what was made of it.
        quantization: how its weights were rounded since, or None.
    """
    path = source / CARD
    found = _BLOCK.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    if found is None:
        return
    rounded = f"\n\nThe weights were rounded to {quantization} after that.\n\n{_END}"
    block = found[0].strip()
    _put(folder / CARD, block if quantization is None else block.removesuffix(_END).rstrip() + rounded)


def _put(path: Path, block: str) -> Path | None:
    """Put a summary into a card; None if there is no card."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    if _BLOCK.search(text):
        text = _BLOCK.sub(lambda _: f"\n\n{block}\n", text, count=1)
    elif UNMEASURED in text:
        text = text.replace(UNMEASURED, block)
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    replace_file(path, text)
    return path
