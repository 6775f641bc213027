"""The text of web pages, without what surrounds it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_llm.config.extraction import ExtractConfig
from lit_llm.config.extras import optional_module
from lit_llm.data.sources.document import SourceDocument
from lit_llm.data.sources.web_pages import MEDIA_TYPE, is_html

_LONGEST_TITLE = 300
_DEEPEST = 256
"""Blocks inside each other; finding the main content takes time that grows with their depth, for each block anew."""
_LEAST_SHARE = 0.25
_ROLES = ("navigation", "dialog", "alertdialog", "search", "contentinfo", "complementary")
_AROUND = ("nav", "aside", "form", "button", *(f"[role={role}]" for role in _ROLES))
"""CSS selectors of what HTML itself says is no part of the main content."""
_NAME_PARTS = (
    *("cookie", "consent", "gdpr", "newsletter", "subscri", "signup", "sign-up", "social", "sharedaddy", "share-"),
    *("related", "recommend", "breadcrumb", "sidebar", "navbox", "navbar", "masthead", "topbar", "menu", "advert"),
    *("ad-slot", "sponsor", "promo", "banner", "announcement", "most-read", "popular", "reflist", "catlinks"),
    *("entry-meta", "post-meta", "post-tag", "user-card", "reviews", "cross-sell", "also-bought", "modal"),
)
_NAMES = (
    *("toc", "share", "sharing", "footer", "byline", "tags", "login", "respond", "rating", "ratings", "stats"),
    *("vote", "votes", "votecell"),
)
_BOXES = ("div:not(.section)", "ul")
_NAMED_AROUND = (
    *(f'[class*="{part}"]' for part in _NAME_PARTS),
    *(f'[class~="{name}"]' for name in _NAMES),
    # Sections have ids that are made of their titles, and what is about cookies is none for them.
    *(f'{box}[id*="{part}"]' for part in _NAME_PARTS for box in _BOXES),
    *(f'{box}[id="{name}"]' for name in _NAMES for box in _BOXES),
)
"""CSS selectors of what pages mostly call the things around their main content."""
_NESTING = 4
"""resiliparse takes lists that are nested less than so deep for menus."""
_BLOCK = re.compile(r"<(/?)(?:div|article|section|ul|ol)\b", re.IGNORECASE)
_MOST_ATTRIBUTES = 5000
"""Attributes of one tag; each is compared to all that were there before it."""
_LONG_TAG = 4 * _MOST_ATTRIBUTES
_TAG = re.compile(r"<[a-z](?:[^>\"']++|\"[^\"]*\"|'[^']*')*+", re.IGNORECASE)
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_ATTRIBUTE = re.compile(r"[^\s/]++")
_MOST_REOPENED = 300_000
"""How often elements such as <b> may be opened anew; each time takes about 10 microseconds and 400 bytes."""
_STYLE = r"(?:[bisu]|em|tt|big|code|font|small|strike|strong)(?=[\s/>])"
_STYLE_START = re.compile(f"<{_STYLE}")
_STYLE_OR_BLOCK = re.compile(
    rf"<(/?)({_STYLE})([^>]*)|</?(?:p|div|li|d[dt]|h[1-6]|t[dh]|table|center|blockquote|section|article)\b"
)
_SAME_STYLE = 3
"""Of equal elements no more are opened anew."""


@dataclass(frozen=True)
class PageText:
    """What a page says.

    Attributes:
        text: Without white space at its ends.
        title: The page's title; None where it has none.
        license: Address of the licence that the page says is its own (rel="license").
    """

    text: str
    title: str | None = None
    license: str | None = None


def extract_text(html: str, options: ExtractConfig) -> PageText | None:
    """Takes the text out of a page; None where it cannot be parsed, or takes time by the square of its length.

    The latter is a page with blocks more than 256 deep in each other, more than 5,000 attributes of a tag, or elements
    such as <font> which are not closed, so that HTML's rules open them again in block after block.

    Raises:
        UserError: resiliparse is not installed.
    """
    if _depth(html) > _DEEPEST or _most_attributes(html) > _MOST_ATTRIBUTES or _reopened(html) > _MOST_REOPENED:
        return None
    parsing = optional_module("resiliparse.parse.html", "the step extract", "data")
    try:
        page = parsing.HTMLTree.parse(html)
    except parsing.HTMLParserException:
        return None
    title = " ".join((page.title or "").split())
    linked = page.document.query_selector("a[rel~=license], link[rel~=license]") if page.document else None
    license = linked.getattr("href") if linked else None
    text = _main_text(page, options) if options.main_content and page.body else _text(page, options)
    return PageText(text, title[:_LONGEST_TITLE] or None, license or None)


def _main_text(page: Any, options: ExtractConfig) -> str:
    """The text of a page without what is around it, as far as that can be told from the elements and their names."""
    content = page.create_element("div")
    while (child := page.body.first_child) is not None:
        content.append_child(child)
    for _ in range(_NESTING):
        outer = page.create_element("div")
        outer.append_child(content)
        content = outer
    page.body.append_child(content)
    text = _text(page, options, (*_AROUND, *_NAMED_AROUND))
    if len(text) < _LEAST_SHARE * len(page.body.text):
        # Maybe one of the names is that of an element which holds the main content too.
        more = _text(page, options, _AROUND)
        return more if len(text) < len(more) / 2 else text
    return text


def _text(page: Any, options: ExtractConfig, left_out: Sequence[str] = ()) -> str:
    extraction = optional_module("resiliparse.extract.html2text", "the step extract", "data")
    text = extraction.extract_plain_text(
        page,
        preserve_formatting=options.preformatted,
        main_content=options.main_content,
        comments=options.comments,
        alt_texts=options.alternatives,
        links=options.links,
        skip_elements=list(left_out),
    )
    return str(text).strip()


def _depth(html: str) -> int:
    """How many blocks are inside each other at most, as far as their tags tell."""
    depth = deepest = 0
    for tag in _BLOCK.finditer(html):
        depth = max(0, depth - 1) if tag[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest


def _most_attributes(html: str) -> int:
    """The attributes of the tag that has most of them, of those that are long."""
    long = (tag[0] for tag in _TAG.finditer(html) if tag.end() - tag.start() > _LONG_TAG)
    return max((sum(1 for _ in _ATTRIBUTE.finditer(_QUOTED.sub("", tag))) for tag in long), default=0)


def _reopened(html: str) -> int:
    """How often elements of style are opened anew as a block has ended before them, at most, as far as tags tell.

    Each is again in every block until it is closed (HTML standard, "reconstruct the active formatting elements").
    """
    html = html.lower()
    if len(_STYLE_START.findall(html)) * html.count("<") <= _MOST_REOPENED:
        return 0
    opened: dict[str, list[str]] = {}
    number = total = 0
    for tag in _STYLE_OR_BLOCK.finditer(html):
        if tag[2] is None:
            total += number
            continue
        same = opened.setdefault(tag[2], [])
        if not tag[1] and same[-_SAME_STYLE:] != [tag[3]] * _SAME_STYLE:
            same.append(tag[3])
            number += 1
        elif tag[1] and same:
            same.pop()
            number -= 1
    return total


class Extraction:
    """The step `extract`: a page's text takes the place of its HTML, and its title goes into the metadata.

    Args:
        options: See `ExtractConfig`.
    """

    def __init__(self, options: ExtractConfig) -> None:
        self._options = options
        self.counts: Counter[str] = Counter()

    def __call__(self, document: SourceDocument) -> str | None:
        """Extracts the text of a page; see `DocumentStep`."""
        if not is_html(document):
            self.counts["documents that are no HTML, left as they are"] += 1
            return None
        page = extract_text(document.text, self._options)
        if page is None:
            return "HTML that cannot be parsed"
        if not page.text:
            return "no text left"
        if len(page.text) < self._options.min_characters:
            return f"fewer than {self._options.min_characters} characters"
        document.text = page.text
        document.license = document.license or page.license
        document.metadata.pop(MEDIA_TYPE, None)
        if page.title:
            document.metadata["title"] = page.title
        self.counts["pages extracted"] += 1
        return None
