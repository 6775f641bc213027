"""The pictures of README: a run's loss curve beside something that it has written.

python experiments/quickstart.py
python experiments/benchmarks/picture.py --run checkpoints/quickstart --output experiments/quickstart.svg
python experiments/generate.py --model checkpoints/shakespeare_10m --prompts '["ROMEO:"]' > sample.txt
python experiments/benchmarks/picture.py --run checkpoints/shakespeare_10m --text sample.txt --output shakespeare.svg
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from html import escape
from pathlib import Path

from lit_llm.evaluation.plots import line_plot

LINES = 18
WIDTH = 58  # characters
LINE_HEIGHT, WHOLE_WIDTH, HEIGHT, TEXT_AT = 17, 1120, 330, 660  # in pixels


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


def draw(run: Path, text: str) -> str:
    """The curves on the left and `text` on the right, as one SVG on white ground."""
    plot = line_plot(curves(run), x_label="tokens read", y_label="nats per token", title="pretraining")
    shown = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in text.splitlines()]
    lines = "".join(
        f'<text x="{TEXT_AT}" y="{30 + LINE_HEIGHT * number}" xml:space="preserve">{escape(line)}</text>'
        for number, line in enumerate(shown[:LINES])
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WHOLE_WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WHOLE_WIDTH} {HEIGHT}"><rect width="100%" height="100%" fill="white"/>'
        f'<g color="#222" transform="translate(5 10)">{plot}</g>'
        f'<g font-family="monospace" font-size="13" fill="#222">{lines}</g></svg>\n'
    )


def main() -> None:
    """Draw what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("checkpoints/quickstart"), help="folder of the run")
    parser.add_argument("--output", type=Path, default=Path("experiments/quickstart.svg"), help="picture to write")
    parser.add_argument("--text", type=Path, help="file to show; default: a request of the quickstart's comparison")
    parser.add_argument("--request", type=int, default=1, help="which of the comparison's requests, from 1")
    options = parser.parse_args()
    if options.text is not None:
        text = options.text.read_text(encoding="utf-8")
    else:
        text = sample((options.run / "report.md").read_text(encoding="utf-8"), options.request)
    options.output.write_text(draw(options.run, text), encoding="utf-8")


if __name__ == "__main__":
    main()
