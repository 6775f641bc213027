"""The chat page stands alone, and what a model writes cannot become a part of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import resources

PAGE = resources.files("lit_llm.serving").joinpath("page.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(PAGE)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_nothing_is_loaded_from_elsewhere() -> None:
    places = [value for _, given in Elements().found for name, value in given.items() if name in ("src", "href")]
    assert places == ["data:,"]
    assert not re.search(r"https?://|//cdn|@import|url\(|\bimport\b", PAGE)
    policy = next(given["content"] for tag, given in Elements().found if given.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none';") and "connect-src 'self'" in policy


def test_text_never_becomes_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", PAGE
    )


def test_every_field_and_id_is_known() -> None:
    """A field without a label could not be used by ear, and an id that the script looks up has to be there."""
    elements = Elements().found
    ids = [given["id"] for _, given in elements if "id" in given]
    assert len(ids) == len(set(ids)) and set(re.findall(r'byId\("([\w-]+)"\)', PAGE)) <= set(ids)
    for tag in ("input", "textarea"):
        for field in re.finditer(rf"<{tag}\b[^>]*>", PAGE):
            before = PAGE[: field.start()]
            inside = before.count("<label") > before.count("</label>")
            assert inside or any(f'for="{name}"' in PAGE for name in re.findall(r'id="([\w-]+)"', field[0]))
