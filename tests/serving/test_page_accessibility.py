"""The chat page under axe-core, a checker of what people without eyes, hands or good contrast need of a page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from chat_in_browser import FOREIGN, SHOWN, Chat
from chromium import Page, browsing, find_chromium
from serving_models import save_tiny, serving

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium; apt-get install chromium")


def found_by_axe(page: Page) -> list[str]:
    """What axe-core finds on the page as it is: its rule and the elements."""
    results = page.run("axe.run(document, { resultTypes: ['violations'] })")
    serious = [each for each in results["violations"] if each["impact"] in ("serious", "critical")]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']][:5]}" for each in serious]


@pytest.mark.slow
def test_a_checker_of_accessibility_finds_nothing_serious(tmp_path: Path) -> None:
    """axe-core is no part of the project: npm install axe-core, and name its axe.min.js."""
    if not (axe := os.environ.get("AXE_CORE")):
        pytest.skip("AXE_CORE does not name axe-core's axe.min.js; npm install axe-core")
    with serving(save_tiny(tmp_path), default_max_tokens=6, api_key="sesame") as server, browsing(tmp_path) as page:
        found = looked_at(Chat(page, f"{server.url}/", tmp_path), f"{Path(axe).read_text(encoding='utf-8')}; 0")
    assert found == {}


def looked_at(chat: Chat, axe: str) -> dict[str, list[str]]:
    """What is found in each state of the page, at three widths, light and dark."""
    page, found = chat.page, {}
    file = chat.folder / "conversations.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*FOREIGN, *SHOWN]), encoding="utf-8")

    def check(state: str) -> None:
        for width in (360, 800, 1400):
            for dark in (False, True):
                page.look(width, dark=dark)
                if problems := found_by_axe(page):
                    found[f"{state}, {width}, {'dark' if dark else 'light'}"] = problems

    page.call("Page.setBypassCSP", enabled=True)  # axe adds styles
    page.look(1400)
    chat.open()
    page.run(axe)
    check("empty")
    for name in ("settings", "compare", "data"):
        page.run(f"document.getElementById('{name}').showModal()")
        check(name)
        if name == "data":
            page.upload("#file", file)
            page.wait("document.querySelectorAll('.turn').length > 0")
        page.run(f"document.getElementById('{name}').close()")
    check("strangers")
    page.run("[...document.querySelectorAll('#chats .open')].at(-1).click()")
    page.wait("document.querySelector('.call')")
    check("code and calls")
    page.look(360)
    page.click("#open-sidebar")
    check("list of conversations")
    page.look(1400)
    page.click("#new")
    page.run("document.getElementById('logprobs').click()")
    chat.ask("ab")
    page.click(".turn.assistant button", "Tokens")
    page.run("document.querySelector('[role=option]').focus()")
    check("tokens")
    page.click(".turn.user button", "Edit")
    check("edit")
    page.key("Escape")
    page.run("document.getElementById('compare-on').click()")
    chat.write("cd")
    page.wait("document.querySelectorAll('.vote button').length")
    check("side by side")
    page.click(".vote button")
    check("voted")
    page.run("sessionStorage.clear()")
    page.goto(chat.url)
    page.wait("!document.getElementById('key-form').hidden")
    page.run(axe)
    check("error")
    return found
