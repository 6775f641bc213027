"""The chat page stands alone, and what a model writes cannot become a part of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lit_llm.serving.chat_page import add_page, page_files

FILES = {name: file.content.decode() for name, file in page_files().items()}
HTML = FILES["index.html"]
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".mjs")}


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    add_page(app)
    return TestClient(app)


def test_nothing_is_loaded_from_elsewhere(client: TestClient) -> None:
    places = [value for _, given in Elements().found for name, value in given.items() if name in ("src", "href")]
    assert all(value in ("data:,", "#message") or client.get(f"/{value}").status_code == 200 for value in places)
    for name, text in FILES.items():
        addresses = re.sub(r"<\(https\?:", "", text)  # the form of an address in Markdown
        assert not re.search(r"https?://|//cdn|@import|url\(|\bimport\s*\(", addresses), name
    for name, text in SCRIPTS.items():
        for imported in re.findall(r'from "([^"]+)"', text):
            assert imported.startswith("./") and imported[2:] in SCRIPTS, (name, imported)


def test_the_browser_is_told_what_is_forbidden(client: TestClient) -> None:
    for path in ("/", *(f"/page/{name}" for name in FILES)):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"
        assert policy["frame-ancestors"] == "'none'" and headers["x-content-type-options"] == "nosniff"
    assert client.get("/page/main.mjs").headers["content-type"].startswith("text/javascript")
    assert client.get("/page/style.css").headers["content-type"].startswith("text/css")


def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    tag = client.get("/page/main.mjs").headers["etag"]
    again = client.get("/page/main.mjs", headers={"If-None-Match": tag})
    assert again.status_code == 304 and not again.content
    assert client.get("/page/main.mjs", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["app.py", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "main.mjs/", ""])
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}", follow_redirects=False).status_code in (404, 307)


def test_text_never_becomes_html() -> None:
    written = r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc"
    for name, text in SCRIPTS.items():
        assert not re.search(written, text), name
    assert not [tag for tag, given in Elements().found if any(key == "style" or key.startswith("on") for key in given)]


def test_every_field_and_id_is_known() -> None:
    """A field without a label could not be used by ear, and an id that a script looks up has to be there."""
    elements = Elements().found
    ids = [given["id"] for _, given in elements if "id" in given]
    wanted = {name for text in SCRIPTS.values() for name in re.findall(r'byId\("([\w-]+)"\)', text)}
    assert len(ids) == len(set(ids)) and wanted <= set(ids)
    for tag in ("input", "textarea", "select"):
        for field in re.finditer(rf"<{tag}\b[^>]*>", HTML):
            before = HTML[: field.start()]
            inside = before.count("<label") > before.count("</label>")
            named = "aria-label=" in field[0] or any(
                f'for="{n}"' in HTML for n in re.findall(r' id="([\w-]+)"', field[0])
            )
            assert inside or named, field[0]


def test_no_file_is_too_long_to_be_read() -> None:
    assert max(text.count("\n") for text in FILES.values()) < 400
