"""The chat page in a browser, and files of conversations for it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from chromium import Page

ANSWER = ".turn.assistant:not(.busy)"
HEBREW = "שלום"


class Chat:
    """The page in a browser, at a server.

    Attributes:
        page: The tab.
        url: Of the server.
        folder: Where files from the page land.
    """

    def __init__(self, page: Page, url: str, folder: Path) -> None:
        self.page, self.url, self.folder = page, url, folder

    def open(self, *, key: str = "sesame") -> None:
        """Load the page as for the first time, with an API key already given."""
        self.page.goto(f"{self.url}page/style.css")
        self.page.run(f"localStorage.clear(), sessionStorage.clear(), sessionStorage.setItem('lit_llm.key', '{key}')")
        self.page.run("localStorage.setItem('lit_llm.settings', '{\"sampling\": {\"seed\": 3}}')")
        self.reload()

    def reload(self) -> None:
        self.page.goto(self.url)
        self.page.wait("document.getElementById('model').textContent !== 'Connecting …'")

    def write(self, text: str) -> None:
        self.page.run("document.getElementById('message').focus()")
        self.page.type(text)
        self.page.key("Enter")

    def ask(self, text: str) -> None:
        """Send a message and wait for its answer."""
        count = self.page.run("document.querySelectorAll('.turn.user').length")
        self.write(text)
        there = f"document.querySelectorAll('.turn.user').length > {count}"
        self.page.wait(f"{there} && document.getElementById('stop').hidden && document.querySelector('{ANSWER}')")

    def turns(self) -> list[str]:
        """The words of the turns that are shown."""
        return self.page.run("[...document.querySelectorAll('.turn > .body')].map((body) => body.textContent)")

    def text(self, selector: str) -> str:
        return self.page.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def stored(self, kind: str = "chat.") -> dict[str, Any]:
        """What the browser keeps, by name."""
        found = self.page.run("JSON.stringify(localStorage)")
        return {
            name: json.loads(text) for name, text in json.loads(found).items() if name.startswith(f"lit_llm.{kind}")
        }

    def set(self, selector: str, value: str) -> None:
        """Fill in a field."""
        self.page.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.page.run(f"document.querySelector({json.dumps(selector)}).value = ''")
        self.page.type(value)

    def agree(self) -> None:
        """Say yes to the question."""
        self.page.wait("document.getElementById('confirm').open")
        self.page.click("#confirm-yes")

    def downloaded(self) -> Path:
        """The file that comes, renamed so that the next one is another."""
        end = time.monotonic() + 30
        while not (found := list((self.folder / "downloads").glob("*.jsonl"))):
            assert time.monotonic() < end, "no file came"
            time.sleep(0.02)
        return found[0].rename(self.folder / f"{time.monotonic_ns()}.jsonl")


FOREIGN = [
    {
        "messages": [
            {"role": "system", "content": "<b>S</b>"},
            {"role": "user", "content": "<img src=x onerror='window.ran = 1'><script>window.ran = 1</script>"},
            {
                "role": "assistant",
                "content": "[x](javascript:ran=1) <iframe srcdoc='<script>parent.ran=1</script>'>\n\n" + "w" * 20_000,
            },
            {"role": "user", "content": f"{HEBREW} {HEBREW}"},
            {"role": "assistant", "content": f"# {HEBREW}\n\n```html\n" + "y" * 20_000 + "\n```"},
        ]
    },
    {
        "__proto__": {"polluted": 1},
        "messages": [
            {"role": "user", "content": "q", "__proto__": {"polluted": 1}},
            {"role": "assistant", "content": "a"},
        ],
    },
]
"""Rows with all that must never run or be taken for a name of ours; the last line of the file is none."""

SHOWN = [
    {
        "messages": [
            {"role": "user", "content": "Show me everything.\n```py\nx = 1\n```"},
            {
                "role": "assistant",
                "content": "<think>\nHm.\n</think>\n# Title\n\n> quote *em* **b** `c` [a](https://b.c)\n\n- a\n- b\n\n"
                "| a | b |\n|---|--:|\n| 1 | 2 |\n\n```sh\nls\n```\n"
                '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
            },
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "It is 4."},
        ]
    }
]
"""Rows with each thing that an answer may hold."""
