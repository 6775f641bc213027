"""Bits per byte after equal time on equal text: ours, transformers' Trainer and LitGPT's pretrain.

    python experiments/benchmarks/equal_time.py --litgpt-python ENVIRONMENT/bin/python    # an hour and more
    python experiments/benchmarks/equal_time.py --quick    # a few steps of each, to see that it runs

The text is the standard library's source in 4,096 tokens of our BPE, windows of 256 tokens, eight a step. Ours is the
quickstart's recipe (4.9M parameters); the others train a Llama of 5.3M with AdamW, warm-up and a cosine. Each side has
a process of its own and all threads. It is timed over some steps, then makes as many as fit into --minutes: start-up
and validation are left out for everybody. Then its own model reads the whole validation split in such windows. In the
shortest time each side is tried with --factors times its rate, and the best factor is used for the longer ones.

LitGPT has an environment of its own (`pip install litgpt`) and is left out where none is given. The last line of the
output is JSON: `bits_per_byte` by side, minutes and factor, `steps`, `tokens_per_second`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from reporting import print_report

LENGTH, BATCH = 256, 8
LLAMA = {"vocab_size": 4096, "hidden_size": 256, "num_layers": 4, "num_heads": 4, "intermediate_size": 688}
LEARNING_RATE = 1e-3  # of the others, times a factor
TIMED_STEPS = 16
SIDES = ("ours", "transformers", "litgpt")


def prepare(folder: Path) -> float:
    """Write the tokens of both splits; returns the bytes per token of the validation split."""
    from lit_llm.config import CorpusConfig, PrepareConfig, TokenizerTrainingConfig
    from lit_llm.data.corpus.shards import ShardedTokens
    from lit_llm.stages.prepare import prepare_data
    from lit_llm.stages.tokenizer import train_tokenizer

    corpus = CorpusConfig(path="stdlib", split="hash")
    vocabulary = LLAMA["vocab_size"]
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=vocabulary, output=str(folder / "tokenizer")))
    prepare_data(PrepareConfig(corpus, str(folder / "tokenizer"), str(folder / "shards")))
    for split in ("train", "validation"):
        tokens = ShardedTokens(folder / "shards" / split)
        np.save(folder / f"{split}.npy", tokens.read(0, len(tokens)))
    return tokens.manifest.bytes / len(tokens)


def train_ours(folder: Path, steps: int, factor: float) -> dict[str, Any]:
    """Train by the quickstart's recipe."""
    from dataclasses import replace

    import lightning as L

    from lit_llm.config import QuickstartConfig, SampleConfig
    from lit_llm.quickstart.run import pretraining
    from lit_llm.stages.pretrain import pretrain

    times: list[float] = []

    class Clock(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            times.append(time.perf_counter())

    run = pretraining(QuickstartConfig(output_root=str(folder), run_name=f"ours_{steps}_{factor}"), steps)
    rates = {name: getattr(run.optimizer, name) * factor for name in ("learning_rate", "muon_learning_rate")}
    result = pretrain(
        replace(
            run,
            optimizer=replace(run.optimizer, **rates),
            trainer=replace(run.trainer, val_every_n_steps=None, save_every_n_steps=None),
            data=replace(run.data, paths=[str(folder / "shards")], batch_size=BATCH, sequence_length=LENGTH),
            samples=SampleConfig([]),
        ),
        callbacks=[Clock()],
    )
    assert result is not None
    return {"times": times, "loss": result.metrics["val/loss"]}


def train_transformers(folder: Path, steps: int, factor: float) -> dict[str, Any]:
    """Train a Llama with transformers' Trainer, in bfloat16 where ours is."""
    import torch
    from peer_llama import peer_llama
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from lit_llm.config import preset

    tokens = np.load(folder / "train.npy").astype(np.int64)
    order = np.random.default_rng(0)
    windows = [
        {"input_ids": torch.from_numpy(tokens[at : at + LENGTH]), "labels": torch.from_numpy(tokens[at : at + LENGTH])}
        for at in order.integers(0, len(tokens) - LENGTH, steps * BATCH)
    ]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    torch.manual_seed(0)
    sizes = {**LLAMA, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": LENGTH}
    model = peer_llama(preset("llama-10m", **sizes, tie_word_embeddings=False))
    arguments = TrainingArguments(
        output_dir=str(folder / "transformers"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=LEARNING_RATE * factor,
        warmup_steps=min(50, steps // 10),
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=multiplies_bfloat16(),
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    Trainer(model, arguments, train_dataset=windows, callbacks=[Clock()]).train()
    model.eval()
    return {"times": times, "loss": loss_on(folder, lambda inputs: model(inputs).logits)}


def train_litgpt(folder: Path, steps: int, factor: float) -> dict[str, Any]:
    """Train a Llama with LitGPT's own `pretrain`; runs in LitGPT's environment."""
    import torch
    from litgpt import GPT
    from litgpt.args import EvalArgs, LogArgs, TrainArgs
    from litgpt.pretrain import setup

    times: list[float] = []
    # with its last weights it writes the options of its own command line, which it reads from this process
    sys.argv[1:] = [litgpt_config().name]
    config, rate, out = litgpt_config(), LEARNING_RATE * factor, folder / f"litgpt_{steps}_{factor}"
    setup(
        model_name=config.name,
        model_config=config,
        out_dir=out,
        precision="bf16-mixed" if multiplies_bfloat16() else "32-true",
        data=litgpt_data(Windows(folder, steps, times)),
        train=TrainArgs(
            save_interval=None,
            log_interval=1000,
            global_batch_size=BATCH,
            micro_batch_size=BATCH,
            max_tokens=steps * BATCH * LENGTH,
            max_norm=1.0,
            min_lr=rate / 10,
            lr_warmup_steps=min(50, steps // 10),
            tie_embeddings=False,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False),
        log=LogArgs(),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": rate, "weight_decay": 0.1, "betas": (0.9, 0.95)},
        },
        devices=1,
        logger_name="csv",
        seed=0,
    )
    model = GPT(config)
    # our own file, which holds the windows, too
    model.load_state_dict(torch.load(out / "final" / "lit_model.pth", weights_only=False)["model"])
    model.eval()
    return {"times": times, "loss": loss_on(folder, model)}


def litgpt_config() -> Any:
    """The Llama as LitGPT configures it."""
    from litgpt import Config

    return Config(
        name="llama-5m",
        block_size=LENGTH,
        padded_vocab_size=LLAMA["vocab_size"],
        vocab_size=LLAMA["vocab_size"],
        n_layer=LLAMA["num_layers"],
        n_head=LLAMA["num_heads"],
        n_query_groups=LLAMA["num_heads"],
        n_embd=LLAMA["hidden_size"],
        intermediate_size=LLAMA["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )


class Windows:
    """Windows at random places, as many as `steps` batches have; LitGPT writes it down with its checkpoint.

    Args:
        folder: has the tokens.
        steps: batches.
        times: gets the time at which each batch is read.
    """

    def __init__(self, folder: Path, steps: int, times: list[float]) -> None:
        self.tokens = np.load(folder / "train.npy").astype(np.int64)
        self.starts = np.random.default_rng(0).integers(0, len(self.tokens) - LENGTH - 1, (steps + 1) * BATCH)
        self.times = times

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        if row % BATCH == 0:
            self.times.append(time.perf_counter())
        return self.tokens[self.starts[row] : self.starts[row] + LENGTH + 1]


def litgpt_data(windows: Windows) -> Any:
    """Windows as LitGPT's data module; it reads a batch of them for its validation, too."""
    from litgpt.data import DataModule
    from torch.utils.data import DataLoader

    class Data(DataModule):
        def connect(self, *_: Any, **__: Any) -> None:
            pass

        def train_dataloader(self) -> DataLoader:
            return DataLoader(windows, batch_size=BATCH)

        def val_dataloader(self) -> DataLoader:
            return DataLoader([windows[row] for row in range(1, BATCH)], batch_size=BATCH)

    return Data()


def loss_on(folder: Path, logits_of: Any) -> float:
    """Mean loss of every token but the first of the validation split, in windows one after another."""
    import torch

    tokens = torch.from_numpy(np.load(folder / "validation.npy").astype(np.int64))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(tokens) - 1, 32 * LENGTH):
            inputs, targets = (
                piece.split(LENGTH) for piece in (tokens[start:-1][: 32 * LENGTH], tokens[start + 1 :][: 32 * LENGTH])
            )
            whole = [pair for pair in zip(inputs, targets, strict=True) if len(pair[0]) == LENGTH]
            rest = [pair for pair in zip(inputs, targets, strict=True) if len(pair[0]) < LENGTH]
            for pairs in (whole, rest):
                if pairs:
                    x, y = (torch.stack(list(side)) for side in zip(*pairs, strict=True))
                    logits = logits_of(x).float().flatten(0, 1)
                    total += torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="sum").item()
    return total / (len(tokens) - 1)


def multiplies_bfloat16() -> bool:
    """Whether the processor has products of bfloat16, as the quickstart asks."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def run_side(side: str, folder: Path, steps: int, factor: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train one side in a process of its own."""
    python = options.litgpt_python if side == "litgpt" else sys.executable
    command = [python, __file__, "--side", side, "--folder", folder, "--steps", steps, "--factor", factor]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, bytes_per_token: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, the short ones of each side before its longer ones."""
    runs = []
    for side in SIDES:
        if side == "litgpt" and options.litgpt_python is None:
            continue
        times = run_side(side, folder, TIMED_STEPS, 1.0, options)["times"]
        step = statistics.median(after - before for before, after in pairwise(times[3:]))
        best = options.factors[0]
        for minutes in sorted(options.minutes):
            steps = max(8, int(60 * minutes / step)) if not options.quick else 8
            tried = options.factors if minutes == min(options.minutes) else [best]
            for factor in tried:
                found = run_side(side, folder, steps, factor, options)
                bits = found["loss"] / math.log(2) / bytes_per_token
                took = found["times"][-1] - found["times"][0]
                runs.append({"side": side, "minutes": minutes, "factor": factor, "steps": steps, "bits_per_byte": bits})
                runs[-1] |= {"trained_minutes": took / 60, "tokens_per_second": (steps - 1) * BATCH * LENGTH / took}
                print(runs[-1], file=sys.stderr, flush=True)
            best = min((run for run in runs if run["side"] == side), key=lambda run: run["bits_per_byte"])["factor"]
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0], help="of training, for each side")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="of each side's rate")
    parser.add_argument("--litgpt-python", help="a Python that has litgpt")
    parser.add_argument("--quick", action="store_true", help="8 steps of each side, one factor")
    for name, kind in (("side", str), ("folder", Path), ("steps", int), ("factor", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        train = {"ours": train_ours, "transformers": train_transformers, "litgpt": train_litgpt}[options.side]
        print("\n" + json.dumps(train(options.folder, options.steps, options.factor)))
        return
    if options.quick:
        options.factors = options.factors[:1]
    with tempfile.TemporaryDirectory() as name:
        runs = measure(Path(name), prepare(Path(name)), options)
    print_report(
        f"Bits per byte of the standard library's validation split ({os.cpu_count()} cores)",
        ["side", "minutes", "factor of the rate", "steps", "tokens/s", "bits per byte"],
        [
            [
                run["side"],
                f"{run['minutes']:g}",
                f"{run['factor']:g}",
                str(run["steps"]),
                f"{run['tokens_per_second']:,.0f}",
                f"{run['bits_per_byte']:.3f}",
            ]
            for run in runs
        ],
        {"runs": runs},
    )


if __name__ == "__main__":
    main()
