"""Everything that is measured on one card, in pieces that each end within minutes; half an hour of it fills the table.

    python experiments/benchmarks/gpu.py --minutes 8           # what fits in 8 minutes; again: what is left
    python experiments/benchmarks/gpu.py --only attention      # one piece, though it was measured before
    python experiments/benchmarks/gpu.py --dry-run             # every piece with tiny shapes on the CPU

Each piece is a process of its own, so that one that fails, or is not over in its time, costs no other. A finding is
printed as it comes, as a line of JSON, and added to results/gpu_CARD.jsonl with the card, the version of torch and the
day. A piece that has ended there with this version of torch on this day is not measured again unless --only names it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_training
import gpu_writing
import torch
from gpu_bench import Bench, Finding

PIECES: dict[str, Callable[[Bench], Iterator[Finding]]] = {
    "ceiling": gpu_training.ceiling,
    "attention": gpu_training.attention,
    "train-350m": partial(gpu_training.training, shape="350m"),
    "decode-bf16": partial(gpu_writing.decoding, kind="bf16"),
    "train-1b": partial(gpu_training.training, shape="1b"),
    "loss": gpu_training.loss,
    "optimizers": gpu_training.optimizers,
    "serving": gpu_writing.serving,
    "float8": gpu_training.float8,
    "decode-int8": partial(gpu_writing.decoding, kind="int8"),
    "decode-int4": partial(gpu_writing.decoding, kind="int4"),
    "decode-float32": partial(gpu_writing.decoding, kind="float32"),
}
"""What is measured, in the order of what is most wanted."""
HERE = Path(__file__).parent
LONGEST_MINUTES = 5.0
"""Of one piece, compiling included."""


def conditions(device: str) -> dict[str, Any]:
    """What a figure depends on besides its own settings."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    if device == "cpu":
        return {"card": "cpu", "torch": torch.__version__, "date": today}
    major, minor = torch.cuda.get_device_capability()
    return {
        "card": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "date": today,
    }


def results_file(folder: Path, card: str) -> Path:
    """Where the findings on a card are kept."""
    words = card.lower().replace("nvidia ", "").split()
    return folder / f"gpu_{words[0] if words else 'card'}.jsonl"


def ended(path: Path, here: dict[str, Any]) -> set[str]:
    """The pieces that have ended under these conditions."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {
        line["part"]
        for line in lines
        if line.get("ended") and all(line.get(name) == here[name] for name in ("card", "torch", "date"))
    }


class Results:
    """Prints findings, and keeps them in a file where there is one."""

    def __init__(self, path: Path | None, here: dict[str, Any]) -> None:
        self.path = path
        self.here = here

    def add(self, finding: dict[str, Any]) -> None:
        """Take a finding."""
        print(json.dumps(finding), flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({**finding, **self.here}) + "\n")


def run_piece(name: str, device: str, seconds: float, results: Results) -> bool:
    """Measure a piece in a process of its own; returns whether it has ended by itself."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--piece", name, *(["--dry-run"] if device == "cpu" else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    overdue = threading.Event()

    def stop() -> None:
        overdue.set()
        process.kill()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("{"):
                results.add({"part": name, **json.loads(line)})
        code = process.wait()
    finally:
        timer.cancel()
    taken = round(time.monotonic() - began, 1)
    if overdue.is_set():
        results.add({"part": name, "error": f"not over after {taken:.0f} s", "seconds": taken})
    elif code:
        results.add(
            {"part": name, "error": f"the process ended with {code}; its last words are above", "seconds": taken}
        )
    else:
        results.add({"part": name, "ended": True, "seconds": taken})
    return not overdue.is_set() and code == 0


def measure(name: str, device: str) -> None:
    """Print the findings of a piece, each as it comes."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    for finding in PIECES[name](Bench(device)):
        print(json.dumps(finding), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="no piece goes on for longer than that is over")
    parser.add_argument("--only", nargs="+", choices=PIECES, help="pieces to measure")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; nothing is kept")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the findings")
    parser.add_argument("--piece", choices=PIECES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --dry-run shows on the CPU that every piece runs")
    if options.piece:
        measure(options.piece, device)
        return
    here = conditions(device)
    print(json.dumps(here), flush=True)
    path = None if options.dry_run else results_file(options.results, here["card"])
    results = Results(path, here)
    pieces = options.only or [name for name in PIECES if path is None or name not in ended(path, here)]
    end = time.monotonic() + 60 * options.minutes
    failed, left = [], []
    for name in pieces:
        seconds = min(60 * LONGEST_MINUTES, end - time.monotonic())
        if seconds < 20:
            left.append(name)
        elif not run_piece(name, device, seconds, results):
            failed.append(name)
    print(
        json.dumps({"measured": len(pieces) - len(left) - len(failed), "failed": failed, "not_run": left}), flush=True
    )


if __name__ == "__main__":
    main()
