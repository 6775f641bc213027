"""data_card.md and data_report.html: where a corpus comes from, and what every step of its recipe did to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_llm.config.files import replace_files
from lit_llm.config.notices import with_pictures
from lit_llm.data.corpus.recipes.tallies import skipped_place
from lit_llm.evaluation import pages
from lit_llm.evaluation.bars import bar_plot
from lit_llm.evaluation.tables import markdown_table

CARD, PAGE = "data_card.md", "data_report.html"
_MOST_BARS = 15
_MOST_LANGUAGES = 100


@dataclass(frozen=True)
class Section:
    """A part of the report, the same in both files.

    Attributes:
        title: Its heading.
        body: Markdown, in the forms that `pages.from_markdown` knows.
        charts: Pictures that the page has besides.
        folded: Further parts, which the page shows on a click.
    """

    title: str
    body: str
    charts: Sequence[str] = ()
    folded: Sequence[Section] = ()


def write_data_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write data_card.md, with the header that data set cards on the Hugging Face hub have, and data_report.html.

    Args:
        folder: Gets the two files.
        report: What report.json of the folder says.

    Raises:
        OSError: they cannot be written.
    """
    title = folder.resolve().name
    sections = [
        Section("Summary", _summary(report)),
        *_sources(report["sources"]),
        *_steps(report["steps"]),
        *_contents(report["corpus"]),
        Section("Recipe", _indented(json.dumps(report["recipe"], indent=2, ensure_ascii=False))),
    ]
    replace_files({folder / CARD: _card(title, report, sections), folder / PAGE: _page(title, sections)})


def _summary(report: Mapping[str, Any]) -> str:
    corpus, sources = report["corpus"], report["sources"]
    documents = sum(source["documents"] for source in sources)
    size = sum(source["bytes"] for source in sources)
    facts = [
        ("documents", f"{corpus['documents']:,} of {documents:,} ({_share(corpus['documents'], documents)})"),
        ("text", f"{_size(corpus['bytes'])} of {_size(size)} ({_share(corpus['bytes'], size)})"),
        ("time in steps", f"{sum(step['seconds'] for step in report['steps']):,.1f} s, summed over processes"),
        ("digest", corpus["digest"]),
        ("made with", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ("command", report["command"]),
    ]
    return markdown_table(("what", "value"), facts)


def _sources(sources: Sequence[Mapping[str, Any]]) -> list[Section]:
    rows = [
        (each["name"], each["path"], f"{each['units']:,}", f"{each['documents']:,}", _size(each["bytes"]))
        for each in sources
    ]
    skipped = [
        (each["name"], reason, f"{what['number']:,}", "; ".join(map(skipped_place, what["examples"])))
        for each in sources
        for reason, what in each["skipped"].items()
    ]
    body = markdown_table(("source", "path", "units", "documents", "text"), rows)
    sections = [Section("Sources", body)]
    if skipped:
        header = ("source", "why", "how many", "for example")
        sections.append(Section("What could not be read", markdown_table(header, skipped)))
    return sections


def _steps(steps: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not steps:
        return []
    header = ("step", "documents in", "out", "dropped", "text in", "out", "seconds", "MB/s")
    rows = [
        (
            f"{each['number']}. {each['name']}",
            f"{each['documents_in']:,}",
            f"{each['documents_out']:,}",
            _share(each["documents_in"] - each["documents_out"], each["documents_in"]),
            _size(each["bytes_in"]),
            _size(each["bytes_out"]),
            f"{each['seconds']:,.1f}",
            f"{each['bytes_in'] / 1e6 / each['seconds']:,.1f}" if each["seconds"] else "",
        )
        for each in steps
    ]
    left = {"read": steps[0]["documents_in"]} | {
        f"{each['number']}. {each['name']}": each["documents_out"] for each in steps
    }
    sections = [Section("Steps", markdown_table(header, rows), [bar_plot(left, "Documents after each step")])]
    return sections + [_step(each) for each in steps if each["dropped"] or each["counts"] or each["facts"]]


def _step(step: Mapping[str, Any]) -> Section:
    dropped = sorted(step["dropped"].items(), key=lambda item: -item[1]["documents"])
    blocks = []
    if dropped:
        rows = [(reason, f"{what['documents']:,}", _size(what["bytes"])) for reason, what in dropped]
        blocks.append(markdown_table(("why dropped", "documents", "text"), rows))
    if step["counts"]:
        rows = [(name, f"{number:,}") for name, number in sorted(step["counts"].items())]
        blocks.append(markdown_table(("what was done", "how often"), rows))
    if step["facts"]:
        rows = [(name, _fact(value)) for name, value in step["facts"].items()]
        blocks.append(markdown_table(("what was found", "value"), rows))
    examples = [
        Section(f"Examples: {reason}", "\n\n".join(_example(one) for one in what["examples"]))
        for reason, what in dropped
        if what["examples"]
    ]
    return Section(f"Step {step['number']}: {step['name']}", "\n\n".join(blocks), (), examples)


def _example(example: Mapping[str, str]) -> str:
    # Indented as a whole, so that nothing in it is taken for Markdown.
    return _indented(f"{_line(example['source'])}: {_line(example['id'])}\n{example['text']}")


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_fact(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(_fact, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _contents(corpus: Mapping[str, Any]) -> list[Section]:
    bounds, lengths = corpus["lengths"]["bounds"], corpus["lengths"]["documents"]
    names = [f"below {bounds[0]:,}", *(f"{low:,} to {high:,}" for low, high in pairwise(bounds))]
    by_length = dict(zip([*names, f"{bounds[-1]:,} and more"], lengths, strict=True))
    of_sources = {name: each["documents"] for name, each in corpus["sources"].items()}
    tables = (
        ("Lengths", "characters", by_length, False),
        ("By source", "source", of_sources, False),
        ("Languages", "language", corpus["languages"], True),
        ("Domains", "domain", corpus["domains"], True),
        ("Licences", "licence", corpus["licenses"], True),
    )
    sections = []
    for title, what, numbers, sort in tables:
        found = dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0]))) if sort else numbers
        if not found:
            continue
        rows = [(name, f"{number:,}", _share(number, corpus["documents"])) for name, number in found.items()]
        picture = bar_plot(dict(list(found.items())[:_MOST_BARS]), f"{title}: documents")
        sections.append(Section(title, markdown_table((what, "documents", "share"), rows), [picture]))
    return sections


def _card(title: str, report: Mapping[str, Any], sections: Sequence[Section]) -> str:
    corpus = report["corpus"]
    header = {
        "pretty_name": title,
        "language": sorted(name for name in corpus["languages"] if 2 <= len(name) <= 3)[:_MOST_LANGUAGES],
        "task_categories": ["text-generation"],
        "configs": [{"config_name": "default", "data_files": "documents/*.parquet"}],
    }
    lines = ["---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in header.items()), "---"]
    blocks = ["\n".join(lines), f"# {_line(title)}", f"{PAGE} shows the same with pictures."]
    for section in sections:
        blocks += [f"## {section.title}", section.body]
        for part in section.folded:
            blocks += [f"### {part.title}", part.body]
    return "\n\n".join(blocks) + "\n"


def _page(title: str, sections: Sequence[Section]) -> str:
    parts = []
    for section in sections:
        parts += [pages.heading(section.title), pages.from_markdown(section.body)]
        if section.charts:
            parts.append(pages.charts(section.charts))
        parts += [pages.folded(part.title, pages.from_markdown(part.body)) for part in section.folded]
    return pages.page(title, parts)


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in with_pictures(text).splitlines() if line.strip()) or "    (empty)"


def _line(text: str) -> str:
    return " ".join(with_pictures(text).split())


def _size(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,} bytes"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "none"
