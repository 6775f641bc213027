"""The file evaluation.html: what evaluation.md says, with the battery as a picture, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_llm.evaluation.battery.report import accuracy_plot
from lit_llm.evaluation.pages import charts, folded, from_markdown, heading, page


def evaluation_page(report: Mapping[str, Any], markdown: str) -> str:
    """Make the page.

    Args:
        report: the content of evaluation.json.
        markdown: the content of evaluation.md, whose sections begin with ##, and parts of them with ###.
    """
    first, *sections = f"\n{markdown}".split("\n## ")
    parts = [from_markdown(first.replace("\n# Evaluation", ""))]
    for section in sections:
        title, _, text = section.partition("\n")
        body, *more = text.split("\n### ")
        parts.append(heading(title))
        if title == "Battery":
            parts.append(charts([accuracy_plot(report["battery"])]))
        parts.append(from_markdown(body))
        for each in more:
            name, _, content = each.partition("\n")
            parts.append(folded(name, from_markdown(content), is_open=not name.startswith("Parts of")))
    return page("Evaluation", parts)
