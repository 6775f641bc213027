"""A web archive of real pages with planted junk, so that it is known what a pipeline has to find.

`write_warc` is for the other benchmarks. By itself, it writes an archive of the pages that this machine has:

    apt-get install python3-doc debian-handbook
    python experiments/benchmarks/web_pages.py pages.warc.gz
"""

from __future__ import annotations

import argparse
import gzip
import html
import importlib.metadata
import io
import json
import random
import re
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

JUNK = {"spam": 0.15, "cookie_wall": 0.1, "link_list": 0.1, "exact_copy": 0.1, "near_copy": 0.15, "boilerplate": 0.3}
"""How many pages of each kind are planted for each real one; of `boilerplate`, the share of real pages that get it."""
CHANGED_WORDS = 0.02
"""Share of the words of a near copy that are others."""

_TEXT = re.compile(r">([^<>]{20,})<")
_WORD = re.compile(r"[A-Za-z]{3,}")
_PRODUCTS = ("pills", "watches", "loans", "casino", "shoes", "tickets", "crypto", "slimming", "roulette", "insurance")
_PRAISE = (
    "cheap",
    "best",
    "free",
    "online",
    "discount",
    "genuine",
    "instant",
    "guaranteed",
    "exclusive",
    "bonus",
    "now",
)
_MENU = ("Home", "Products", "Downloads", "Documentation", "Community", "Blog", "Contact", "Sitemap")
_HOSTS = ("docs.pages.example", "www.pages.example", "wiki.pages.example")
_DAY = "2024-05-{:02d}T12:00:00Z"


def html_files(folder: Path) -> list[Path]:
    """The HTML files below a folder, in the order of their paths; some folders have such a name, too."""
    return sorted(path for path in folder.rglob("*.html") if path.is_file())


def find_pages() -> list[Path]:
    """The HTML of this machine's documentation and of the Python packages that are installed."""
    found = html_files(Path("/usr/share/doc"))
    for package in sorted(importlib.metadata.distributions(), key=lambda each: each.name):
        files = (Path(str(file.locate())) for file in package.files or () if file.suffix == ".html")
        found += sorted(file for file in files if file.is_file())
    return list(dict.fromkeys(found))


def write_warc(path: Path, pages: Sequence[Path], seed: int, junk: dict[str, float] | None = None) -> dict[str, int]:
    """Writes the pages and the planted ones, in an order that the seed chooses, as responses of a web archive.

    The address of a planted page names its kind: https://planted.example/KIND/NUMBER. Exact and near copies are of
    pages that are there too.

    Args:
        path: The archive, .warc.gz; each record is a member of its own.
        pages: Files of HTML.
        seed: The same one gives the same bytes.
        junk: As `JUNK`, of which it replaces single values; 0 plants none.

    Returns:
        How many pages there are of each kind; those without junk are "page".
    """
    from fastwarc.warc import WarcRecord, WarcRecordType

    rates, chance = {**JUNK, **(junk or {})}, random.Random(seed)
    if unknown := rates.keys() - JUNK.keys():
        raise ValueError(f"unknown junk: {', '.join(sorted(unknown))}")
    plan = [("page", file) for file in pages]
    for kind in _MAKERS:
        plan += [(kind, chance.choice(pages)) for _ in range(round(rates[kind] * len(pages)))]
    chance.shuffle(plan)
    counts = dict.fromkeys(("page", *_MAKERS, "boilerplate"), 0)
    with path.open("wb") as file:
        for number, (kind, source) in enumerate(plan):
            body = source.read_bytes()
            address = f"https://{chance.choice(_HOSTS)}{source.as_posix()}"
            if kind != "page":
                text = body.decode("utf-8", "replace")
                body, address = _MAKERS[kind](text, chance).encode(), f"https://planted.example/{kind}/{number}"
            elif chance.random() < rates["boilerplate"]:
                body = with_boilerplate(body.decode("utf-8", "replace")).encode()
                counts["boilerplate"] += 1
            counts[kind] += 1
            record = WarcRecord()
            response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
            record.init_headers(WarcRecordType.response)
            record.set_bytes_content(response)
            record.headers["WARC-Record-ID"] = f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{seed} {number}')}>"
            record.headers["WARC-Date"] = _DAY.format(1 + number % 28)
            record.headers["WARC-Target-URI"] = address
            record.headers["Content-Type"] = "application/http; msgtype=response"
            member = io.BytesIO()
            record.write(member, checksum_data=True)
            file.write(gzip.compress(member.getvalue(), mtime=0))
    return counts


def spam(_: str, chance: random.Random) -> str:
    """A page that praises what it sells, over and over."""
    lines = [" ".join(chance.choices(_PRAISE + _PRODUCTS, k=chance.randint(3, 9))) for _ in range(60)]
    items = "".join(f"<li><a href='/buy/{number}'>{line}</a></li>" for number, line in enumerate(lines))
    return f"<html><title>{lines[0]}</title><body><h1>{lines[1]}</h1><ul>{items}</ul><p>{' '.join(lines)}</p></body>"


def cookie_wall(_: str, chance: random.Random) -> str:
    """A page that shows nothing but its question."""
    partners = chance.randint(100, 900)
    return (
        "<html><title>Before you continue</title><body><div><h1>Before you continue</h1><p>We and our "
        f"{partners} partners use cookies and similar techniques to store and access data. Do you agree?"
        "</p><button>Accept all</button><button>Reject all</button><p>Please enable JavaScript to go on.</p></body>"
    )


def link_list(text: str, chance: random.Random) -> str:
    """A page of nothing but links, with words of a real one."""
    words = _WORD.findall(html.unescape(re.sub(r"<[^>]*>", " ", text))) or ["empty"]
    titles = [" ".join(chance.choices(words, k=chance.randint(1, 4))) for _ in range(120)]
    return "<html><title>Index</title><body>" + "".join(f"<div><a href='#'>{title}</a></div>" for title in titles)


def exact_copy(text: str, _: random.Random) -> str:
    """The page once more."""
    return text


def near_copy(text: str, chance: random.Random) -> str:
    """The page with some of its words replaced by others of its own, and a line more."""
    words = _WORD.findall(" ".join(_TEXT.findall(text))) or ["word"]

    def replace(word: re.Match[str]) -> str:
        return chance.choice(words) if chance.random() < CHANGED_WORDS else word[0]

    changed = _TEXT.sub(lambda found: f">{_WORD.sub(replace, found[1])}<", text)
    return changed.replace("</body>", f"<p>Copied on day {chance.randint(1, 999)}.</p></body>")


def with_boilerplate(text: str) -> str:
    """The page with a menu and a footer that every page of a site has."""
    menu = "".join(f"<li><a href='/{name.lower()}'>{name}</a></li>" for name in _MENU)
    head = f"<div class='site-menu'><ul>{menu}</ul></div><p>Sign in or create an account to save this page.</p>"
    foot = "<div class='site-footer'><p>All rights reserved. Terms of use and privacy policy apply.</p></div>"
    opened = re.sub(r"(<body\b[^>]*>)", lambda body: body[1] + head, text, count=1, flags=re.IGNORECASE)
    return re.sub(r"</body>", foot + "</body>", opened, count=1, flags=re.IGNORECASE)


_MAKERS: dict[str, Callable[[str, random.Random], str]] = {
    "spam": spam,
    "cookie_wall": cookie_wall,
    "link_list": link_list,
    "exact_copy": exact_copy,
    "near_copy": near_copy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the archive, .warc.gz")
    parser.add_argument("--pages", nargs="*", help="folders of HTML; by default what this machine has")
    parser.add_argument("--most", type=int, help="no more pages than this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_junk", action="store_true", help="the real pages alone")
    options = parser.parse_args()
    folders = options.pages
    pages = [page for folder in folders for page in html_files(Path(folder))] if folders else find_pages()
    if not pages:
        raise SystemExit("no HTML pages; apt-get install python3-doc debian-handbook, or name folders with --pages")
    junk = dict.fromkeys(JUNK, 0.0) if options.no_junk else None
    print(json.dumps(write_warc(options.output, pages[: options.most], options.seed, junk)))


if __name__ == "__main__":
    main()
