"""judge.md and judge.html: what came out of a comparison, and how far its judge can be trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config.files import replace_files, write_json
from lit_llm.config.notices import with_pictures
from lit_llm.evaluation import pages
from lit_llm.evaluation.dots import dot_plot
from lit_llm.evaluation.tables import markdown_table

NUMBERS, TEXT, PAGE = "judge.json", "judge.md", "judge.html"
FILES = (NUMBERS, TEXT, PAGE)
NOTHING = "-"
"""Stands in a table where there is no number."""

_MEANS = """\
A win rate is the mean over comparisons, a tie counting half. LC is the win rate with the difference in length taken
out (AlpacaEval 2.0's regression, without its term for the difficulty of prompts). Bradley-Terry and Elo are in Elo
points with the mean 1000; a tie is half a win. Intervals are of 95%, from other draws of the prompts: they say
nothing of what another judge would find."""


@dataclass(frozen=True)
class _Section:
    """A part of the report; `quotes` are texts of strangers, each with its title."""

    title: str
    body: str
    charts: Sequence[str] = ()
    quotes: Sequence[tuple[str, str]] = ()


def write_report(folder: Path, report: Mapping[str, Any]) -> str:
    """Write judge.json, judge.md and judge.html.

    Args:
        folder: gets the files.
        report: what `summarize` returns, with `judge`, `mode`, `criterion` and `options`.

    Returns:
        The tables, in Markdown, for a terminal.

    Raises:
        OSError: they cannot be written.
    """
    sections = _sections(report)
    title = " and ".join(model["name"] for model in report["models"])
    title = f"Judged: {title}" if len(report["models"]) < 4 else f"{len(report['models'])} models judged"
    write_json(folder / NUMBERS, dict(report))
    replace_files({folder / TEXT: _markdown(title, sections), folder / PAGE: _page(title, sections)})
    return "\n\n".join(section.body for section in sections if section.title in ("Models", "Pairs", "The judge"))


def _sections(report: Mapping[str, Any]) -> list[_Section]:
    sections = [
        _Section("Models", _models(report), _pictures(report)),
        _Section("Pairs", _pairs(report["pairs"])),
        _Section("The judge", _judge(report)),
        _Section("What the numbers mean", "\n\n".join([" ".join(_MEANS.split()), *report["notes"]])),
    ]
    if report["disagreements"]:
        sections.append(
            _Section(
                "Where the order decided",
                "Comparisons whose verdict changed with the order of the answers; they count as ties.",
                quotes=[(f"prompt {_line(each['prompt'])}", _disagreement(each)) for each in report["disagreements"]],
            )
        )
    unparsed = report["unparsed"]
    if unparsed["replies"]:
        rows = [(_line(problem), f"{count:,}") for problem, count in unparsed["problems"].items()]
        quotes = [
            (f"prompt {_line(each['prompt'])}: {_line(each['problem'])}", each["reply"] or "(no text)")
            for each in unparsed["examples"]
        ]
        body = markdown_table(("why a reply was left out", "replies"), rows)
        sections.append(_Section("Replies without a verdict", body, quotes=quotes))
    sections.append(_Section("Criterion", "", quotes=[("what the judge was told", report["criterion"])]))
    return sections


def _models(report: Mapping[str, Any]) -> str:
    graded = report["mode"] == "grades"
    header = ["model", *(["grade"] if graded else []), "win rate", "LC win rate", "Bradley-Terry", "Elo"]
    rows = [
        [
            model["name"],
            *([_number(model["grade"], ".2f")] if graded else []),
            _percent(model["win_rate"]),
            _percent(model["length_controlled"]),
            _number(model["bradley_terry"], ".0f"),
            _number(model["elo"], ".0f"),
            f"{model['mean_length']:,.0f}" + (f" ({model['empty_answers']:,} empty)" if model["empty_answers"] else ""),
        ]
        for model in report["models"]
    ]
    return markdown_table([*header, "characters"], rows, aligned=True)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    header = ("pair", "wins", "ties", "losses", "left out", "win rate", "LC win rate")
    rows = [
        [
            f"{pair['one']} : {pair['other']}",
            *(f"{pair[name]:,}" for name in ("wins", "ties", "losses", "unparsed")),
            _percent(pair["win_rate"]),
            _percent(pair["length_controlled"]),
        ]
        for pair in pairs
    ]
    return markdown_table(header, rows, aligned=True)


def _judge(report: Mapping[str, Any]) -> str:
    order, itself, labels = report["order"], report["itself"], report["labels"]
    rows = [("judge", _line(report["judge"])), ("prompts", f"{report['prompts']:,}")]
    if order is not None:
        rows.append(("same verdict in both orders", f"{_percent(order['agreed'])} of {order['comparisons']:,}"))
        if order["first_wins"] is not None:
            rows.append(("the first answer wins (no bias: 50%)", _percent(order["first_wins"])))
    elif report["mode"] == "pairs":
        rows.append(("order of the answers", "does not matter to this judge, or no pair was asked in both"))
    if itself is not None:
        rows.append(("same verdict when asked again", f"{_percent(itself['share'])} of {itself['questions']:,}"))
        if itself.get("kappa"):
            rows.append(("kappa with itself", _number(itself["kappa"], ".2f")))
        if "mean_difference" in itself:
            rows.append(("mean difference of the grades", f"{itself['mean_difference']:.2f}"))
    if labels is not None:
        rows.append(("agreement with labels", f"{_percent(labels['share'])} of {labels['compared']:,}"))
        rows.append(("Cohen's kappa with labels", _number(labels["kappa"], ".2f")))
        if labels["without_verdict"]:
            rows.append(("labels of comparisons without a verdict", f"{labels['without_verdict']:,}"))
    rows.append(("replies", f"{report['replies']:,}, {report['reminded']:,} after a reminder"))
    rows.append(("replies without a verdict", f"{report['unparsed']['replies']:,}"))
    for how, told in (("same", "the same answer twice (a tie)"), ("empty", "an empty answer (loses)")):
        if report["without_judge"][how]:
            rows.append((f"not asked: {told}", f"{report['without_judge'][how]:,}"))
    tokens = report["tokens"]
    rows.append(("tokens", f"{tokens['prompt_tokens']:,} read, {tokens['completion_tokens']:,} written"))
    return markdown_table(("what", "value"), rows, aligned=True)


def _pictures(report: Mapping[str, Any]) -> list[str]:
    def picture(name: str, title: str, factor: float, digits: int, mark: float) -> str | None:
        values = {
            model["name"]: (factor * model[name]["value"], *(factor * end for end in model[name]["interval"]))
            for model in report["models"]
            if model[name] is not None
        }
        return dot_plot(values, title, digits=digits, mark=mark) if values else None

    drawn = (
        picture("bradley_terry", "Bradley-Terry, in Elo points", 1.0, 0, 1000.0),
        picture("win_rate", "Win rate in %", 100.0, 1, 50.0),
        picture("length_controlled", "Length-controlled win rate in %", 100.0, 1, 50.0),
    )
    return [each for each in drawn if each is not None]


def _disagreement(example: Mapping[str, Any]) -> str:
    parts = [f"asked: {example['asked']}"]
    parts += [f"{name}: {answer}" for name, answer in example["answers"].items()]
    for reply in example["replies"]:
        better = "a tie" if reply["better"] == "tie" else f"{reply['better']} is better"
        parts.append(f"judge, {reply['first']} first, {better}: {reply['text']}")
    return "\n\n".join(parts)


def _markdown(title: str, sections: Sequence[_Section]) -> str:
    blocks = [f"# {_harmless(_line(title))}", f"{PAGE} shows the same with pictures."]
    for section in sections:
        blocks.append(f"## {section.title}")
        if section.body:
            blocks.append(_harmless(section.body))
        for heading, text in section.quotes:
            blocks += [f"### {_harmless(heading)}", _indented(text)]
    return "\n\n".join(blocks) + "\n"


def _page(title: str, sections: Sequence[_Section]) -> str:
    parts = []
    for section in sections:
        parts.append(pages.heading(section.title))
        if section.charts:
            parts.append(pages.charts(section.charts))
        if section.body:
            parts.append(pages.from_markdown(section.body))
        parts += [pages.folded(heading, pages.preformatted(text)) for heading, text in section.quotes]
    return pages.page(_line(title), parts)


def _harmless(text: str) -> str:
    """Markdown outside of quoted blocks, in which nothing that strangers say is taken for HTML, a link or a picture."""
    return re.sub(r"([<\[\]`*_\\])(?!\|)", r"\\\1", text)


def _indented(text: str) -> str:
    """A quoted block: indented as a whole, so that nothing in it is taken for Markdown."""
    return "\n".join(f"    {line}" for line in with_pictures(text).splitlines() if line.strip()) or "    (empty)"


def _line(text: str) -> str:
    shown = " ".join(with_pictures(text).split())
    return shown if len(shown) <= 160 else f"{shown[:157]}..."


def _percent(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NOTHING
    return f"{found['value']:.1%} ({found['interval'][0]:.1%} to {found['interval'][1]:.1%})"


def _number(found: Mapping[str, Any] | None, form: str) -> str:
    if found is None:
        return NOTHING
    return f"{found['value']:{form}} ({found['interval'][0]:{form}} to {found['interval'][1]:{form}})"
