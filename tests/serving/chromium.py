"""Chromium without a window, driven over a pipe by its own protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIMIT = 200.0
"""Seconds that anything may take."""
# Chromium reads commands from the descriptor 3 and writes to 4.
_START = "import os, sys; i, o, *c = sys.argv[1:]; os.dup2(int(i), 3); os.dup2(int(o), 4); os.execvp(c[0], c)"
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
_KEYS |= {"Home": 36, "End": 35}


def find_chromium() -> str | None:
    """The program's path, or None where it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab.

    Attributes:
        problems: What it wrote to its console as an error, exceptions and refusals of its policy among them.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._rest, self._number = b"", 0
        self._session: str | None = None
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._send, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next(LIMIT)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _next(self, limit: float) -> dict[str, Any]:
        end = time.monotonic() + limit
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._receive, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            place = params["entry"].get("url", "")
            if "/v1/" not in place:  # that a server refuses a request is no error of the page
                self.problems.append(f"{params['entry']['text']} {place}")
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(json.dumps(params["args"])[:2000])
        return message

    def run(self, script: str) -> Any:
        """Return the value of an expression, or what its promise brings."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + LIMIT
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, (
                f"{script}: it did not come; {self.problems}; {self.run('document.body.innerText')}"
            )
            time.sleep(0.02)

    def goto(self, url: str) -> None:
        """Load a page with its scripts."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def key(self, key: str, modifiers: int = 0) -> None:
        """Press a key; modifiers: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift."""
        text = {"Enter": "\r"}.get(key, "")
        params = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **params)
        self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def type(self, text: str) -> None:
        """Write text where the focus is."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element that matches and has the text."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})].find((each) => each.checkVisibility() && "
        found += f"each.textContent.includes({json.dumps(text)}))"
        self.wait(found)
        self.run(f"({found}).scrollIntoView({{ block: 'nearest' }})")
        place = self.run(
            f"(({{ x, y, width, height }}) => [x + width / 2, y + height / 2])(({found}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def upload(self, selector: str, file: Path) -> None:
        """Give a file to a field for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def hover(self, selector: str) -> None:
        """Move the pointer over an element."""
        place = self.run(
            "(({ x, y, width, height }) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    def look(self, width: int, height: int = 800, *, dark: bool = False) -> None:
        """Change the size of the window, and whether the system is dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        # drawn at the new size: a click falls on what was drawn last
        self.run("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => go())))")

    def picture(self, path: Path) -> None:
        """Write what is seen to a .png."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def before_load(self, script: str) -> str:
        """Run a script in every page before its own; its name for `Page.removeScriptToEvaluateOnNewDocument`."""
        return self.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]


@contextlib.contextmanager
def browsing(folder: Path, *options: str) -> Iterator[Page]:
    """A page of a fresh browser, whose files are in `folder`; what it downloads lands in its folder `downloads`."""
    program = find_chromium()
    assert program is not None
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}/profile"]
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(read_there), str(write_there), *command, *options],
        pass_fds=(read_there, write_there),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_there)
    os.close(write_there)
    try:
        page = Page(write_here, read_here)
        (folder / "downloads").mkdir(exist_ok=True)
        page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "downloads"))
        yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(30)
        os.close(write_here)
        os.close(read_here)
