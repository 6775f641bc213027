"""The same run under each strategy at two gloo ranks: speed, memory, and how far it strays from one device.

    python experiments/benchmarks/strategies.py            # some 6 minutes on two cores
    python experiments/benchmarks/strategies.py --quick    # a tiny model, two of the rows

Every row is `experiments/pretrain.py` in a process of its own, with the same data, seed and global batch, one thread
to a rank. Steps per second leave out the first logging interval. Memory is the peak resident set of rank 0 less that
of a process which has only imported the package. The difference is the largest one in any training loss of the run,
beside the first row. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from memory import ALLOCATOR
from reporting import print_report

PRETRAIN = Path(__file__).resolve().parents[1] / "pretrain.py"
ENVIRONMENT = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
TWO = {"devices": 2}
RUNS: dict[str, dict[str, Any]] = {
    "one device": {},
    "one device, checkpointing full": {"activation_checkpointing": "full"},
    "one device, checkpointing selective": {"activation_checkpointing": "selective"},
    "ddp": {**TWO, "strategy": "ddp"},
    "fsdp": {**TWO, "strategy": "fsdp"},
    "fsdp, checkpointing full": {**TWO, "strategy": "fsdp", "activation_checkpointing": "full"},
    "tensor parallel": {**TWO, "strategy": "fsdp", "tensor_parallel_size": 2},
}
QUICK = ("one device", "fsdp")


def write_data(folder: Path, windows: int, length: int, vocab_size: int) -> None:
    """Shards of text that a model can learn something of: the standard library, as a user would prepare it."""
    from lit_llm.config import CorpusConfig, PrepareConfig, TokenizerTrainingConfig
    from lit_llm.stages.prepare import prepare_data
    from lit_llm.stages.tokenizer import train_tokenizer

    texts = folder / "texts"
    texts.mkdir()
    size = 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        (texts / path.name).write_text(text, encoding="utf-8")
        size += len(text)
        if size > 8 * windows * length:
            break
    corpus = CorpusConfig(path=str(texts), split="tail")
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=vocab_size, output=str(folder / "tokenizer")))
    prepare_data(PrepareConfig(corpus, tokenizer=str(folder / "tokenizer"), output=str(folder / "shards")))


def train(folder: Path, name: str, trainer: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One run of the script; returns its losses, steps per second and peak resident MiB."""
    run = name.replace(", ", "_").replace(" ", "_")
    fields = {
        "run_name": run,
        "output_root": str(folder / "runs"),
        "data.paths": f"[{folder / 'shards'}]",
        "data.sequence_length": options.length,
        "data.batch_size": options.rows,
        "data.validation_windows": 2,
        "model.preset": "llama-10m",
        "model.hidden_size": options.width,
        "model.num_layers": options.layers,
        "model.num_heads": max(options.width // 64, 2),
        "model.max_position_embeddings": options.length,
        "samples.prompts": "[]",
        "schedule.warmup_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": options.steps,
        "trainer.val_every_n_steps": "null",
        "trainer.save_every_n_steps": "null",
        "trainer.log_every_n_steps": 2,
        "trainer.enable_progress_bar": "false",
        **{f"trainer.{key}": value for key, value in {"devices": 1, **trainer}.items()},
    }
    command = [
        sys.executable,
        str(PRETRAIN),
        *(part for key, value in fields.items() for part in (f"--{key}", str(value))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    from lit_llm.training.step_lines import read_step_lines

    lines = read_step_lines(folder / "runs" / run / "metrics.jsonl")

    def curve(tag: str) -> np.ndarray:
        return np.array([line[tag] for line in lines if tag in line])

    tokens_per_step = options.rows * options.length
    return {
        "losses": curve("train/loss"),
        "steps_per_second": float(np.median(curve("throughput/tokens_per_second")[1:])) / tokens_per_step,
        "peak_mib": float(curve("throughput/peak_memory_gib").max()) * 1024,
    }


def imported_mib() -> float:
    """Peak resident set of a process that has imported what a run imports, in MiB."""
    imports = "import lit_llm.modules, lit_llm.training.run, resource"
    code = f"{imports}; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="hidden size")
    parser.add_argument("--layers", type=int, default=8, help="blocks")
    parser.add_argument("--vocab-size", type=int, default=4096, help="size of the tokenizer")
    parser.add_argument("--rows", type=int, default=8, help="rows in a global batch")
    parser.add_argument("--length", type=int, default=256, help="tokens in a row")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each run")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="rows of the table")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rows, six steps")
    options = parser.parse_args()
    if options.quick:
        options.width, options.layers, options.vocab_size, options.length, options.steps = 64, 2, 512, 64, 6
        options.runs = list(QUICK)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, options.rows * options.steps, options.length, options.vocab_size)
        base = imported_mib()
        found = {run: train(folder, run, RUNS[run], options) for run in options.runs}
    reference = found[options.runs[0]]["losses"]
    figures = {
        run: {
            "steps_per_second": round(result["steps_per_second"], 3),
            "peak_mib": round(result["peak_mib"] - base),
            "max_loss_difference": float(np.abs(result["losses"] - reference).max()),
        }
        for run, result in found.items()
    }
    print_report(
        f"{options.steps} steps of {options.rows} x {options.length} tokens, width {options.width}, "
        f"{options.layers} layers, float32",
        ["strategy", "steps/s", "peak MiB per rank", "largest difference of a loss"],
        [
            [run, f"{row['steps_per_second']:.2f}", f"{row['peak_mib']:,}", f"{row['max_loss_difference']:.1e}"]
            for run, row in figures.items()
        ],
        {"strategies": figures},
    )


if __name__ == "__main__":
    main()
