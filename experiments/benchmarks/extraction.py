"""The text of web pages: how well and how fast the step `extract` takes it, beside trafilatura.

    apt-get install python3-doc debian-handbook
    python experiments/benchmarks/extraction.py            # some 2 minutes on one core

Quality is the F1 of words on the twelve pages of the folder `pages`, whose main text is marked by hand, and on pages of
Python's documentation, which mark theirs themselves (role="main"). Speed is megabytes of HTML in a second of processor
time on one core, on pages of this machine's documentation and Python packages; all take each page one after the other,
so that whatever else the machine does falls on all. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from known_pages import known_pages, word_overlap
from reporting import print_report
from web_pages import find_pages

from lit_llm.config.extraction import ExtractConfig
from lit_llm.data.cleaning.extraction import extract_text
from lit_llm.data.sources.web_pages import decode_html

Extractor = Callable[[str], str]
MANUAL = Path("/usr/share/doc/python3.11/html")


def extractors() -> dict[str, Extractor]:
    """Ours, the whole text without a search for the main content, and trafilatura as it is by default."""
    try:
        import trafilatura
    except ImportError as error:
        raise SystemExit(f"trafilatura cannot be imported ({error}); pip install trafilatura lxml_html_clean") from None

    def ours(options: ExtractConfig) -> Extractor:
        def extract(page: str) -> str:
            found = extract_text(page, options)
            return found.text if found else ""

        return extract

    return {
        "lit_llm": ours(ExtractConfig()),
        "all text": ours(ExtractConfig(main_content=False)),
        "trafilatura": lambda page: trafilatura.extract(page, include_comments=False) or "",
    }


def read_pages(megabytes: float) -> list[str]:
    """Pages from all over what this machine has, of that size together."""
    paths = find_pages()
    if not paths:
        raise SystemExit("no HTML pages on this machine; apt-get install python3-doc debian-handbook")
    sizes = [path.stat().st_size for path in paths]
    step = max(1, round(sum(sizes) / 1e6 / megabytes))
    decoded = (decode_html(path.read_bytes()) for path in paths[::step])
    return [found[0] for found in decoded if found is not None]


def manual_pages(most: int) -> dict[str, tuple[str, str]]:
    """Pages of Python's documentation with the text of the element that they say is the main one."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    paths = sorted(path for path in MANUAL.rglob("*.html") if not path.name.startswith("genindex"))
    pages = {}
    for path in paths[:: max(1, len(paths) // most)]:
        page = path.read_text(encoding="utf-8")
        main = HTMLTree.parse(page).document.query_selector("[role=main]")
        if main is not None:
            text = extract_plain_text(HTMLTree.parse(main.html), main_content=False, alt_texts=False)
            pages[path.relative_to(MANUAL).as_posix()] = (page, text)
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=30.0, help="HTML to measure the speed on")
    parser.add_argument("--quick", action="store_true", help="half a megabyte")
    options = parser.parse_args()
    found, known = extractors(), known_pages()
    overlaps = {
        name: {page: word_overlap(extract(html), main) for page, (html, main) in known.items()}
        for name, extract in found.items()
    }
    manual = manual_pages(5 if options.quick else 100)
    manual_f1 = {
        name: statistics.mean(word_overlap(extract(html), main)[2] for html, main in manual.values()) if manual else 0.0
        for name, extract in found.items()
    }
    pages = read_pages(0.5 if options.quick else options.megabytes)
    megabytes = sum(len(page.encode()) for page in pages) / 1e6
    seconds = dict.fromkeys(found, 0.0)
    for page in pages:
        for name, extract in found.items():
            begin = time.process_time()
            extract(page)
            seconds[name] += time.process_time() - begin
    speed = {name: megabytes / each for name, each in seconds.items()}
    means = {
        name: [statistics.mean(column) for column in zip(*each.values(), strict=True)]
        for name, each in overlaps.items()
    }
    print_report(
        f"Extraction: {len(known)} marked pages, {len(pages):,} real ones ({megabytes:.1f} MB)",
        ("", "precision", "recall", "F1", "worst F1", f"F1, {len(manual)} pages of Python's", "MB/s"),
        [
            (
                name,
                *(f"{value:.3f}" for value in means[name]),
                f"{min(overlap[2] for overlap in overlaps[name].values()):.3f}",
                f"{manual_f1[name]:.3f}",
                f"{speed[name]:.2f}",
            )
            for name in found
        ],
        {
            "f1": {name: round(each[2], 4) for name, each in means.items()},
            "f1_by_page": {
                name: {page: round(overlap[2], 3) for page, overlap in each.items()} for name, each in overlaps.items()
            },
            "f1_python_manual": {name: round(value, 4) for name, value in manual_f1.items()},
            "mb_per_s": {name: round(each, 2) for name, each in speed.items()},
            "speed_over_trafilatura": round(speed["lit_llm"] / speed["trafilatura"], 2),
            "pages": len(pages),
            "megabytes": round(megabytes, 2),
        },
    )


if __name__ == "__main__":
    main()
