"""Files of a small battery, for tests of what asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ["import os", "def f(x):", "return x", "class A:", "self.value = 1", "raise ValueError"]
TASKS = """
tasks:
  - {name: pairs, form: pairs, paths: pairs.jsonl, group: language}
  - {name: chosen, form: own, paths: chosen.jsonl, group: language}
  - {name: written, form: own, paths: written.jsonl, verifier: contains, max_new_tokens: 6,
     samples: 4, temperature: 1.0, pass_at: [1, 4]}
"""


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_battery(folder: Path) -> Path:
    """A battery of a few questions of three forms; returns its YAML file."""
    folder.mkdir()
    (folder / "own.yaml").write_text(TASKS)
    pairs = [
        {"paradigm": f"p{i % 2}", "sentence_good": f"{a} {b}", "sentence_bad": f"{b} {a}"}
        for i, a in enumerate(WORDS)
        for b in WORDS
        if a != b
    ]
    (folder / "pairs.jsonl").write_text(lines(pairs))
    chosen = [{"prompt": a, "choices": [*WORDS[:3], "or else"], "answer": i % 4} for i, a in enumerate(WORDS)]
    (folder / "chosen.jsonl").write_text(lines(chosen))
    (folder / "written.jsonl").write_text(lines([{"prompt": a, "target": "e"} for a in WORDS[:4]]))
    return folder / "own.yaml"
