"""Self-contained HTML pages: no script, nothing from the network, readable in light and dark and on a phone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from lit_llm.config.notices import with_pictures

_STYLE = """
  :root { color-scheme: light dark;
    --back: #fff; --raised: #f4f5f7; --line: #d9dbe1; --text: #1c1d22; --soft: #5d606b; }
  @media (prefers-color-scheme: dark) {
    :root { --back: #16171b; --raised: #202228; --line: #3a3d46; --text: #e9eaef; --soft: #a2a5b1; }
  }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--text);
    font: 16px/1.5 system-ui, sans-serif; }
  h1 { margin: .5rem 0 1rem; overflow-wrap: anywhere; }
  h2 { margin: 2rem 0 .75rem; font-size: 1.25rem; }
  .wide { overflow-x: auto; margin: .75rem 0; }
  table { border-collapse: collapse; font-size: .95rem; }
  th, td { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
  th { color: var(--soft); font-weight: 600; }
  td { overflow-wrap: anywhere; min-width: 6rem; font-variant-numeric: tabular-nums; }
  .charts { display: grid; margin: .75rem 0;
    grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
  .charts > svg { width: 100%; height: auto; max-width: 44rem; padding: .5rem; border: 1px solid var(--line);
    border-radius: 8px; }
  pre { margin: .5rem 0; padding: .75rem; background: var(--raised); border-radius: 8px; white-space: pre-wrap;
    overflow-wrap: anywhere; font: .85rem/1.45 ui-monospace, monospace; }
  details { margin: .5rem 0; }
  summary { cursor: pointer; font-weight: 600; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Make a whole page.

    Args:
        title: text, which becomes the heading as well.
        parts: HTML, from the functions here.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
            "img-src data:; base-uri 'none'; form-action 'none'\">",
            f"<title>{escape(title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</body>",
            "</html>",
            "",
        ]
    )


def heading(text: str) -> str:
    """Make the heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table of texts, which can be scrolled sideways on a narrow screen."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def charts(pictures: Sequence[str]) -> str:
    """Put pictures of `line_plot` side by side where there is room."""
    return '<div class="charts">\n' + "\n".join(pictures) + "\n</div>"


def preformatted(text: str) -> str:
    """Show a text with its line ends as they are."""
    return f"<pre>\n{escape(with_pictures(text))}</pre>"  # a browser drops the first line end


def folded(title: str, body: str, *, is_open: bool = False) -> str:
    """Make a part that is shown when its title is clicked.

    Args:
        title: text.
        body: HTML.
        is_open: whether it is shown from the beginning.
    """
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>\n{body}\n</details>"


def from_markdown(text: str) -> str:
    """Turn Markdown into HTML, as far as this package writes it: tables, lists, indented blocks and paragraphs."""
    return "\n".join(_block(block) for block in re.split(r"\n{2,}", text.strip("\n")) if block.strip())


def _block(block: str) -> str:
    lines = block.splitlines()
    if len(lines) > 1 and all(line.startswith("|") for line in lines):
        header, _, *rows = map(_cells, lines)
        return table(header, rows)
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "".join(f"<li>{escape(line[2:])}</li>" for line in lines) + "</ul>"
    if all(line.startswith("    ") for line in lines):
        return preformatted("\n".join(line[4:] for line in lines))
    return "<p>" + "<br>".join(escape(line.strip()) for line in lines) + "</p>"


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
