"""A scaling law from a grid of small models, and its prediction for a model four times larger than any of them.

    python experiments/benchmarks/scaling.py            # 20 minutes for the grid and 10 for the check, on two cores
    python experiments/benchmarks/scaling.py --quick    # a few steps each, to see that it runs

The text is the Python source of the installed torch, with a vocabulary of 512 tokens: more than the longest run reads
once. The law is fitted and its prediction printed before the large model is trained. The last line of the output is
JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import email
import io
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from reporting import print_report

from lit_llm.config import (
    CorpusConfig,
    DataConfig,
    PrepareConfig,
    PretrainConfig,
    SampleConfig,
    ScalingConfig,
    TokenizerTrainingConfig,
    TrainerConfig,
    UserError,
    preset,
)
from lit_llm.evaluation.scaling_report import write_scaling_report
from lit_llm.planning.scaling_family import GridPoint, Member
from lit_llm.planning.scaling_fit import ScalingFit
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.scaling import Grid, scaling, task_of
from lit_llm.stages.scaling_workers import train
from lit_llm.stages.tokenizer import train_tokenizer

LARGER = 4.0
"""How many times larger the checked model is than the largest of the grid."""


def prepare(folder: Path, text: str, vocab_size: int) -> Path:
    """Make the tokenizer and the shards, unless an earlier run has left them."""
    shards = folder / "shards"
    if not (shards / "train" / "manifest.json").exists():
        corpus = CorpusConfig(text, validation_fraction=0.02)
        with contextlib.redirect_stdout(io.StringIO()):
            train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=vocab_size, output=str(folder / "tokenizer")))
            prepare_data(PrepareConfig(corpus, str(folder / "tokenizer"), str(shards)))
    return shards


def recipe(shards: Path, quick: bool) -> PretrainConfig:
    """A plain Llama block with heads of 16, so that the family has many sizes where these budgets are best spent."""
    length, rows = (16, 1) if quick else (128, 8)
    model = preset("llama-10m", hidden_size=64, num_layers=4, num_heads=4, max_position_embeddings=length)
    return PretrainConfig(
        model=model,
        data=DataConfig(paths=[str(shards)], batch_size=rows, validation_windows=8 if quick else None),
        trainer=TrainerConfig(accelerator="cpu"),
        samples=SampleConfig(prompts=[]),
    )


def check_point(grid: Grid, fit: ScalingFit, flops: float) -> GridPoint:
    """The run of the model that is nearest to `LARGER` times the largest of the grid, with so many operations."""
    largest = max(point.total for point in fit.points)
    member: Member = grid.family.nearest(LARGER * largest)
    steps = max(50, round(flops / member.flops_per_token / fit.tokens_per_step))
    return GridPoint(flops, member, steps, steps * fit.tokens_per_step, grid.points[0].seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default=str(Path(torch.__file__).parent / "**" / "*.py"), help="glob of the text")
    parser.add_argument("--folder", type=Path, help="keeps everything, so that the same command goes on")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the grid")
    parser.add_argument("--check-minutes", type=float, default=10.0, help="of the large model")
    parser.add_argument("--workers", type=int, default=2, help="runs of the grid at a time")
    parser.add_argument("--threads", type=int, default=2, help="threads of the machine that are used")
    parser.add_argument("--quick", action="store_true", help="runs of some hundred small steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.text, options.workers = str(Path(email.__file__).parent / "*.py"), 1
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = recipe(prepare(folder, options.text, 300 if options.quick else 512), options.quick)
        sizes = {"budgets": [3e8, 6e8], "sizes": [9e3, 36e3, 95e3]} if options.quick else {"minutes": options.minutes}
        config = ScalingConfig(output=str(folder / "grid"), num_workers=options.workers, **sizes)
        began = time.monotonic()
        grid, fit = scaling(config, run, print)
        seconds = time.monotonic() - began
        assert fit is not None
        write_scaling_report(folder / "grid", fit, None)
        for line in fit.lines:
            print(f"note: {line}")
        if fit.law is None:
            raise UserError("the grid gave no law")
        largest = max(fit.points, key=lambda point: point.total)
        share = 1 if options.quick else options.check_minutes * 60 * fit.speed(grid.family.member(largest.index))
        flops = 1.2e9 if options.quick else share * options.workers
        point = check_point(grid, fit, flops)
        n, d = point.member.total, point.tokens
        expected, ends = fit.law.predict(n, float(d))
        interval = "none" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
        print(f"predicted for {n:,} parameters after {d:,} tokens: {expected:.4f} (95% interval {interval})")
        truth = train(task_of(replace(grid, folder=folder / "check"), point))["loss"]
    by_budget = fit.isoflop.parameters
    figures: dict[str, Any] = {
        "grid_seconds": round(seconds, 1),
        "runs": len(fit.points),
        "budgets": grid.budgets,
        "law": {name: float(f"{value:.4g}") for name, value in asdict(fit.law.law).items()},
        "size_exponent": round(fit.law.law.size_exponent, 3),
        "size_exponent_of_parabolas": None if by_budget is None else round(by_budget.exponent, 3),
        "deviation": round(fit.law.deviation, 5) if len(fit.points) > 5 else None,
        "larger": round(n / largest.total, 2),
        "more_compute": round(point.flops / fit.largest_budget, 2),
        "predicted": round(expected, 4),
        "interval": None if ends is None else [round(end, 4) for end in ends],
        "measured": round(truth, 4),
        "error": round(truth / expected - 1, 5),
        "inside": None if ends is None else bool(ends[0] <= truth <= ends[1]),
    }
    rows = [[f"{each.total:,}", f"{each.tokens:,}", f"{each.flops:.3g}", f"{each.loss:.4f}", ""] for each in fit.points]
    rows.append([f"{n:,}", f"{d:,}", f"{point.flops:.3g}", f"{truth:.4f}", f"{expected:.4f} ({interval})"])
    header = ["parameters", "tokens", "operations", "nats per token", "predicted"]
    print_report(f"a grid of {len(fit.points)} runs, and a model {LARGER:g} times larger", header, rows, figures)


if __name__ == "__main__":
    main()
