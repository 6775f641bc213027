"""Character Shakespeare at nanoGPT's CPU budget: loss on the whole validation split, and the CPU time it takes.

    python experiments/benchmarks/shakespeare_cpu.py            # some 15 minutes on two cores
    python experiments/benchmarks/shakespeare_cpu.py --quick    # a few steps, to see that it runs

Every run is 2,000 steps of 12 x 64 tokens with four layers of width 128, on the first 90% of the text:
- plain: the GPT-2 block with the settings of nanoGPT's README (AdamW 1e-3, cosine, no dropout);
- recipe: experiments/configs/pretrain/shakespeare_char.yaml, for several seeds;
- short: the same recipe with its whole schedule squeezed into --short-steps, to see how soon it passes 1.898, the loss
  of nanoGPT's own code on the whole split.
CPU time is that of training steps; validation and start-up are left out. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from reporting import print_report

from lit_llm.cli import parse
from lit_llm.config import (
    CorpusConfig,
    OptimizerConfig,
    PrepareConfig,
    PretrainConfig,
    SampleConfig,
    ScheduleConfig,
    TokenizerTrainingConfig,
    preset,
)
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
NANOGPT_LOSS = 1.898


class TrainingClock(L.Callback):
    """CPU seconds of the process between the first batch and the end, without validation."""

    cpu_seconds = 0.0

    def _start(self) -> None:
        self._since = time.process_time()

    def _stop(self) -> None:
        self.cpu_seconds += time.process_time() - self._since

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()


def recipe(folder: Path) -> PretrainConfig:
    """The recipe of the repository, on the shards in `folder`."""
    path = ROOT / "experiments" / "configs" / "pretrain" / "shakespeare_char.yaml"
    arguments = ["--config", str(path), "--data.paths", f"[{folder / 'shards'}]", "--output_root", str(folder)]
    return parse(PretrainConfig, arguments)


def plain(config: PretrainConfig) -> PretrainConfig:
    """The GPT-2 block and nanoGPT's settings, at the same size and budget."""
    size = {name: getattr(config.model, name) for name in ("hidden_size", "num_layers", "num_heads")}
    model = preset("gpt2", **size, vocab_size=None, max_position_embeddings=64, dropout=0.0)
    return replace(
        config,
        run_name="plain",
        model=model,
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.99, weight_decay=0.1),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100, min_ratio=0.1),
    )


def measure(config: PretrainConfig, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once; loss on the whole split at the end, and CPU seconds of training."""
    schedule = replace(config.schedule, warmup_steps=min(config.schedule.warmup_steps, steps // 10))
    trainer = replace(config.trainer, max_steps=steps, val_every_n_steps=None, save_every_n_steps=None)
    config = replace(config, run_name=name, seed=seed, schedule=schedule, trainer=trainer, samples=SampleConfig([]))
    clock = TrainingClock()
    with contextlib.redirect_stdout(io.StringIO()):
        result = pretrain(config, callbacks=[clock])
    return {"name": name, "steps": steps, "loss": result.metrics["val/loss"], "cpu_seconds": clock.cpu_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    parser.add_argument("--text", type=Path, default=default, help="the 1.1 MB tinyshakespeare.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the recipe")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the full runs")
    parser.add_argument("--short-steps", type=int, default=300, help="steps of the short run")
    parser.add_argument("--threads", type=int, default=1, help="threads of every run")
    parser.add_argument("--quick", action="store_true", help="4 steps on a tenth of the text, one seed")
    options = parser.parse_args()
    if not options.text.is_file():
        parser.error(f"there is no {options.text}; give the path with --text")
    if options.quick:
        options.seeds, options.steps, options.short_steps = options.seeds[:1], 4, 2
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as name:
        folder, text = Path(name), options.text
        if options.quick:
            text = folder / "beginning.txt"
            text.write_text(options.text.read_text(encoding="utf-8")[:100_000], encoding="utf-8")
        corpus = CorpusConfig(str(text), split="tail", validation_fraction=0.1)
        with contextlib.redirect_stdout(io.StringIO()):
            train_tokenizer(
                TokenizerTrainingConfig(corpus, kind="character", byte_fallback=False, output=str(folder / "tokenizer"))
            )
            prepare_data(PrepareConfig(corpus, str(folder / "tokenizer"), str(folder / "shards")))
        config = recipe(folder)
        runs = [measure(plain(config), "plain", 1, options.steps)]
        runs += [measure(config, f"recipe, seed {seed}", seed, options.steps) for seed in options.seeds]
        short = measure(config, "short", options.seeds[0], options.short_steps)
        runs.append(short)

    losses = [run["loss"] for run in runs if run["name"].startswith("recipe")]
    cpu_seconds = {run["name"]: round(run["cpu_seconds"], 1) for run in runs}
    reached = short["loss"] <= NANOGPT_LOSS
    share = short["cpu_seconds"] / runs[0]["cpu_seconds"]
    print_report(
        "character Shakespeare, 12 x 64 tokens a step, whole validation split",
        ["run", "steps", "validation loss", "CPU seconds", "share of plain"],
        [
            [
                run["name"],
                str(run["steps"]),
                f"{run['loss']:.4f}",
                f"{run['cpu_seconds']:.1f}",
                f"{run['cpu_seconds'] / runs[0]['cpu_seconds']:.2f}",
            ]
            for run in runs
        ],
        {
            "val_loss_mean": round(sum(losses) / len(losses), 4),
            "val_loss_seeds": [round(loss, 4) for loss in losses],
            "cpu_seconds": cpu_seconds,
            "cpu_share_to_1.898": round(share, 3) if reached else None,
            "short_steps": short["steps"],
            "short_val_loss": round(short["loss"], 4),
            "plain_val_loss": round(runs[0]["loss"], 4),
        },
    )


if __name__ == "__main__":
    main()
