"""The picture of README: the quickstart's loss curve beside a function that its last stage has written.

python experiments/quickstart.py
python experiments/benchmarks/picture.py --run checkpoints/quickstart --output experiments/quickstart.svg
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

LINES = 18
WIDTH = 58


def curves(run: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Tokens read and loss of each point of metrics.jsonl, for training and validation."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for name in ("train/loss", "val/loss"):
        points = [(row["tokens"], row[name]) for row in rows if name in row and row.get("tokens") is not None]
        found[name] = ([x for x, _ in points], [y for _, y in points])
    return found


def sample(report: str, number: int) -> str:
    """A request of the comparison in report.md and the answers of the stages, under their names."""
    part = report.split("\nrequest:\n")[number]
    blocks = re.findall(r"^(?:(\w+):\n\n)?((?:    .*\n|\n)+)", part + "\n", flags=re.M)
    shown = [(name or "asked", textwrap.dedent(text).strip("\n")) for name, text in blocks if name != "pretrain"]
    return "\n\n".join(f"{name}:\n{text}" for name, text in shown)


def draw(run: Path, text: str) -> Figure:
    """Both panels: the curves and `text`."""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    for name, (tokens, losses) in curves(run).items():
        left.plot(tokens, losses, label=name, linewidth=1.2, marker="." if len(tokens) < 30 else None)
    left.set(xlabel="tokens read", ylabel="nats per token", title="pretraining")
    left.grid(alpha=0.3)
    left.legend(frameon=False)
    right.axis("off")
    shown = [part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH, drop_whitespace=False) or [""]]
    right.text(0, 1, "\n".join(shown[:LINES]), va="top", family="monospace", fontsize=8.5)
    return figure


def main() -> None:
    """Draw what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("checkpoints/quickstart"), help="folder of the quickstart")
    parser.add_argument("--output", type=Path, default=Path("experiments/quickstart.svg"), help="picture to write")
    parser.add_argument("--request", type=int, default=1, help="which of the comparison's requests, from 1")
    options = parser.parse_args()
    report = (options.run / "report.md").read_text(encoding="utf-8")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lit_llm", "font.size": 9}):
        draw(options.run, sample(report, options.request)).savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
