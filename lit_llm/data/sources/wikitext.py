"""Plain text of the markup that MediaWiki has (wikitext). Every rule takes time in proportion to the text's length."""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_VERBATIM = ("nowiki", "math", "chem", "pre", "syntaxhighlight", "source")
_DROPPED = ("ref", "gallery", "timeline", "score", "imagemap", "references", "templatestyles", "graph", "mapframe")
_KEPT_TEMPLATE = re.compile(r"\{\{\s*(lang|nowrap|small|big|nobr|convert|cvt)\s*\|([^{}]*)\}\}", re.IGNORECASE)
_BRACKET = re.compile(r"\{\{|\}\}|^[ \t:]*\{\||^[ \t]*\|\}", re.MULTILINE)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_LINK_DEPTH = 4
_ADDRESS = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\[\]]{1,2000}(?:[ \t]+([^\[\]\n]{0,1000}))?\]")
_QUOTES = re.compile(r"'{2,5}")
_BREAK = re.compile(r"<br\b[^<>]{0,200}>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,500}>")
_SWITCH = re.compile(r"__[A-Z]{3,30}__")
_EMPTY_BRACKETS = re.compile(r" ?\([\s,;:]{0,20}\)")
_HEADING = re.compile(r"(={1,6})\s*([^=\s](?:.*[^=\s])?)\s*\1")
_LONGEST_HEADING = 300
_LIST_MARK = re.compile(r"([*#:;]{1,20})[ \t]*")
_SPACES = re.compile(r"[ \t\xa0]+")
_NAMESPACES = frozenset({"file", "image", "media", "category"})
# Of the characters for private use, which no dump should hold.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d{1,9})\ue001")


def plain_text(wikitext: str, namespaces: Collection[str] = ()) -> str:
    """The text that a reader sees of a page, in paragraphs, without templates, tables, references and pictures.

    Formulas and code stay as they are written. The title of a section that has nothing left is left out with it.

    Args:
        wikitext: The source of a page.
        namespaces: What this wiki calls its namespaces of files and categories, besides the English names.
    """
    hidden = _NAMESPACES | {name.lower() for name in namespaces}
    text = _COMMENT.sub("", wikitext).replace("\ue000", "").replace("\ue001", "")
    verbatim: list[str] = []

    def set_aside(content: str) -> str:
        verbatim.append(html.unescape(content).strip("\n"))
        return _MARK.format(len(verbatim) - 1)

    text = "".join(
        part if name is None else set_aside(part) if name in _VERBATIM else "" for name, part in _elements(text)
    )
    text = _without_brackets(_KEPT_TEMPLATE.sub(_kept_words, text))
    for _ in range(_LINK_DEPTH):
        text, number = _LINK.subn(lambda link: _link_text(link[1], hidden), text)
        if not number:
            break
    text = _ADDRESS.sub(lambda link: link[1] or "", text)
    for pattern, new in ((_QUOTES, ""), (_BREAK, "\n"), (_TAG, ""), (_SWITCH, ""), (_EMPTY_BRACKETS, "")):
        text = pattern.sub(new, text)
    text = "\n".join(_without_empty_sections(html.unescape(text)))
    return _MARKS.sub(lambda mark: verbatim[int(mark[1])], text).strip()


def _elements(text: str) -> Iterator[tuple[str | None, str]]:
    """Yields the text in parts: (None, what stands outside) and (name, content) of verbatim and dropped elements."""
    names = "|".join((*_VERBATIM, *_DROPPED))
    tags = list(re.finditer(rf"<(/?)({names})\b([^<>]*)>", text, re.IGNORECASE))
    ends: dict[str, list[int]] = {}
    for index, tag in enumerate(tags):
        if tag[1]:
            ends.setdefault(tag[2].lower(), []).append(index)
    position = index = 0
    while index < len(tags):
        tag, name = tags[index], tags[index][2].lower()
        index += 1
        yield None, text[position : tag.start()]
        position = tag.end()
        if not tag[1] and not tag[3].endswith("/"):
            closing = ends.get(name, [])
            place = bisect_left(closing, index)
            if place < len(closing):
                index = closing[place] + 1
                yield name, text[position : tags[closing[place]].start()]
                position = tags[closing[place]].end()
    yield None, text[position:]


def _kept_words(template: re.Match[str]) -> str:
    """The words of the few templates that only say how words are to be shown."""
    arguments = [part.strip() for part in template[2].split("|") if "=" not in part]
    name = template[1].lower()
    if not arguments:
        return ""
    if name in ("convert", "cvt"):
        return " ".join(arguments[:2])
    return arguments[-1] if name == "lang" else arguments[0]


def _without_brackets(text: str) -> str:
    """The text without templates and tables, whatever is inside them."""
    opened: list[tuple[str, int]] = []
    number = {"{{": 0, "{|": 0}
    spans: list[tuple[int, int]] = []
    for bracket in _BRACKET.finditer(text):
        mark = bracket[0].strip(" \t:")
        if mark in number:
            opened.append((mark, bracket.start()))
            number[mark] += 1
            continue
        wanted = "{{" if mark == "}}" else "{|"
        begin = bracket.start()
        # What was opened inside and never closed goes along; a bracket that closes nothing is only taken away.
        found = number[wanted] > 0
        while found:
            mark, begin = opened.pop()
            number[mark] -= 1
            found = mark != wanted
        spans.append((begin, bracket.end()))
    kept, position = [], 0
    for begin, end in sorted(spans):
        if begin >= position:
            kept.append(text[position:begin])
        position = max(position, end)
    return "".join([*kept, text[position:]]).replace("{{", "")


def _link_text(link: str, hidden: Collection[str]) -> str:
    target, bar, words = link.partition("|")
    namespace = target.partition(":")[0].strip().lower()
    if ":" in target and namespace in hidden:
        return ""
    return words.rpartition("|")[2] if bar and words else target.strip().lstrip(":")


def _without_empty_sections(text: str) -> list[str]:
    """The lines, with the marks of lists and headings made plain."""
    lines: list[str] = []
    waiting: list[tuple[int, str]] = []
    for line in text.split("\n"):
        stripped = _SPACES.sub(" ", line.strip())
        heading = _HEADING.fullmatch(stripped) if len(stripped) <= _LONGEST_HEADING else None
        if heading:
            level = len(heading[1])
            waiting = [each for each in waiting if each[0] < level] + [(level, heading[2].strip())]
            continue
        mark = _LIST_MARK.match(stripped)
        if mark:
            rest = stripped[mark.end() :]
            stripped = f"- {rest}" if rest and mark[1][-1] in "*#" else rest
        if not stripped or stripped == "|":
            if lines and lines[-1]:
                lines.append("")
            continue
        for _, title in waiting:
            lines += ["", title, ""] if lines and lines[-1] else [title, ""]
        waiting = []
        lines.append(stripped)
    return lines
