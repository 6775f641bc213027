"""Files of JSON lines, one for each optimizer step that has something to say: metrics.jsonl and samples.jsonl."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from lit_llm.config.files import replace_file


class StepLines:
    """Writes one line of JSON for each step, until a write fails.

    What is said of the newest step in several calls ends up in one line. A line is in the file when `write` returns,
    so a run that is killed has lost nothing. A write that fails is told once on stderr, and the run goes on without.

    Args:
        path: the file; its folder is made if it is missing.
        first_step: step that the run goes on from. At the first write, lines of later steps are taken back: the run
            writes them again. None keeps every line.
        what: what is missed if the file cannot be written, as "the metrics".
    """

    def __init__(self, path: Path, first_step: int | None, what: str) -> None:
        self.path, self.first_step, self.what = path, first_step, what
        self.last: dict[str, Any] = {}
        """The newest line; it is empty before the first write."""
        self._start = self._end = 0  # where the newest line begins, and where the file ends
        self._is_open = self._has_failed = False

    def begin(self) -> None:
        """Remove lines of later steps, unless that has been done; `last` is then the newest line that stays."""
        if self._is_open or self._has_failed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = [] if self.first_step == 0 else read_step_lines(self.path)
            kept = [line for line in kept if self.first_step is None or line["step"] <= self.first_step]
            text = "".join(_encoded(line) for line in kept)
            if kept or self.path.exists():
                replace_file(self.path, text)
        except OSError as error:
            self._give_up(error)
            return
        self._is_open = True
        self._end = len(text.encode())
        self._start = self._end - len(_encoded(kept[-1]).encode()) if kept else 0
        self.last = kept[-1] if kept else {}

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add `values` to the line of a step; a number that is not finite becomes null."""
        self.begin()
        if self._has_failed:
            return
        is_new = self.last.get("step") != step
        line = {"step": step, **({} if is_new else self.last), **{name: _json(value) for name, value in values.items()}}
        start = self._end if is_new else self._start
        try:
            self._put(_encoded(line).encode(), start)
        except OSError as error:
            self._give_up(error)
            return
        self.last, self._start = line, start

    def sync(self) -> None:
        """Wait until the disk has everything that was written, so that it outlasts a power cut."""
        if not self._is_open or self._has_failed:
            return
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            self._give_up(error)

    def _put(self, data: bytes, start: int) -> None:
        """Write the newest line over what the file has from `start` on; half a line is taken back."""
        with self.path.open("r+b" if self.path.exists() else "wb", buffering=0) as file:
            file.seek(start)
            try:
                rest = data
                while rest:
                    rest = rest[file.write(rest) :]
                file.truncate()
            except OSError:
                file.truncate(start)
                raise
        self._end = start + len(data)

    def _give_up(self, error: OSError) -> None:
        self._has_failed = True
        print(
            f"warning: cannot write {self.what} in {self.path}: {error.strerror}; the run goes on without them",
            file=sys.stderr,
        )


def read_step_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file that `StepLines` has written; returns its lines in the order of their steps, none if it is missing.

    Lines that are not whole are passed over. Where a later line has an earlier step, the run has gone back, and the
    steps from there on are those that it wrote last.
    """
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    # a text in a line may hold other characters that str.splitlines takes for the end of one
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            continue
        while lines and lines[-1]["step"] >= line["step"]:
            lines.pop()
        lines.append(line)
    return lines


def newest_values(path: Path, step: int) -> dict[str, Any]:
    """Read the newest value of each name in a file that `StepLines` has written, up to the line of `step`."""
    return {name: value for line in read_step_lines(path) if line["step"] <= step for name, value in line.items()}


def _encoded(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
