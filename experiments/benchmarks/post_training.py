"""SFT (packed) and DPO side by side with TRL's SFTTrainer and DPOTrainer: tokens per second and peak memory.

    pip install trl
    python experiments/benchmarks/post_training.py            # some 12 minutes on two cores
    python experiments/benchmarks/post_training.py --quick    # a tiny model, three steps

Both sides start from the same Llama folder and read the same rows (docstrings and functions of the standard library),
with the same rows in a step, AdamW at one rate, float32, and DPO's reference log-probabilities computed beforehand.
Each side runs in a process of its own, in turns. A step is timed from its batch to its update, the first ones are left
out, and the median counts. Tokens are those that are not padding. Memory is the peak resident set, sampled every 2 ms,
less that before the trainer is built. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import ALLOCATOR, peak_mib
from reporting import print_report

SKIPPED_STEPS = 2
BETA = 0.1
LEARNING_RATE = 1e-5
Timings = list[tuple[float, int]]


def write_inputs(folder: Path, options: argparse.Namespace) -> None:
    """The model folder, and the rows of both stages."""
    import torch

    from lit_llm.config import CorpusConfig, TokenizerTrainingConfig, preset
    from lit_llm.data.corpus.documents import Corpus
    from lit_llm.interop import save_model_folder
    from lit_llm.model import Decoder
    from lit_llm.quickstart.functions import conversation_row, corrupt, functions_of, preference_row, write_rows
    from lit_llm.stages.tokenizer import train_tokenizer
    from lit_llm.tokenizer import Tokenizer

    corpus = CorpusConfig(path="stdlib")
    train_tokenizer(
        TokenizerTrainingConfig(corpus, vocab_size=options.vocab_size, output=str(folder / "tok"), max_bytes=4_000_000)
    )
    tokenizer = Tokenizer.load(folder / "tok")
    config = preset(
        "llama-10m",
        vocab_size=tokenizer.vocab_size,
        hidden_size=options.width,
        num_layers=options.layers,
        num_heads=max(2, options.width // 64),
        num_key_value_heads=None,
        head_dim=None,
        intermediate_size=None,
        max_position_embeddings=options.length,
    )
    torch.manual_seed(0)
    model = Decoder(config, seed=0)
    save_model_folder(folder / "base", config, model.state_dict(), tokenizer)
    functions = functions_of(Corpus(corpus), tokenizer, options.length, options.length)["train"][: options.rows_in_all]
    write_rows(folder / "conversations.jsonl", [conversation_row(each) for each in functions])
    pairs = corrupt(functions, seed=0)
    rows = [
        preference_row(each.request, each.source, spoiled) for each, (spoiled, _) in zip(functions, pairs, strict=True)
    ]
    write_rows(folder / "preferences.jsonl", rows)


class Clock:
    """Times steps, and counts their tokens."""

    def __init__(self) -> None:
        self.timings: Timings = []
        self.tokens = 0
        self._since = 0.0

    def start(self) -> None:
        self._since, self.tokens = time.perf_counter(), 0

    def stop(self) -> None:
        self.timings.append((time.perf_counter() - self._since, self.tokens))


def ours(stage: str, folder: Path, options: argparse.Namespace, clock: Clock) -> Callable[[], None]:
    """A run of `options.steps` steps by this package."""
    import lightning as L

    from lit_llm.config import (
        ConversationDataConfig,
        DPOConfig,
        OptimizerConfig,
        PreferenceDataConfig,
        ScheduleConfig,
        SFTConfig,
        TrainerConfig,
    )
    from lit_llm.objectives import IGNORE_INDEX
    from lit_llm.stages.dpo import dpo
    from lit_llm.stages.sft import sft

    class Timer(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            clock.start()
            if "lengths" in batch:
                clock.tokens = int(batch["lengths"].sum())
            else:  # every token that is read is supervised
                clock.tokens = int((batch["targets"] != IGNORE_INDEX).sum())

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            clock.stop()

    common = {
        "run_name": f"{stage}_{os.getpid()}",
        "output_root": str(folder / "runs"),
        "init_from": str(folder / "base"),
        "sample_prompts": 0,
        "optimizer": OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=0.0),
        "schedule": ScheduleConfig(name="constant", warmup_steps=0),
        "trainer": TrainerConfig(
            accelerator="cpu",
            devices=1,
            max_steps=options.steps,
            val_every_n_steps=None,
            save_every_n_steps=None,
            log_every_n_steps=10,
            enable_progress_bar=False,
        ),
    }
    data = {"sequence_length": options.length, "batch_size": options.rows, "validation_fraction": 0.0}
    if stage == "sft":
        config = SFTConfig(
            data=ConversationDataConfig(
                paths=[str(folder / "conversations.jsonl")], supervise="all", max_dropped_share=1.0, **data
            ),
            **common,
        )
        return lambda: sft(config, [Timer()])
    pairs = PreferenceDataConfig(paths=[str(folder / "preferences.jsonl")], max_dropped_share=1.0, **data)
    config = DPOConfig(data=pairs, beta=BETA, **common)
    return lambda: dpo(config, [Timer()])


def trl_options(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The options of both of TRL's trainers."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": options.rows,
        "max_steps": options.steps,
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_length": options.length,
        "max_grad_norm": 1.0,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "adam_beta2": 0.95,
        "optim": "adamw_torch_fused",
        "seed": 0,
    }


def trl(stage: str, folder: Path, options: argparse.Namespace, clock: Clock) -> Callable[[], None]:
    """The same run by TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    class Timer(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            clock.start()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.stop()

    def counted(trainer: type) -> type:
        class Counted(trainer):
            def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
                mask = inputs.get("attention_mask")
                clock.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
                return super().training_step(model, inputs, *rest)

        return Counted

    def rows(name: str) -> Dataset:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        keep = ("messages", "prompt", "chosen", "rejected")
        return Dataset.from_list([{key: row[key] for key in keep if key in row} for row in map(json.loads, lines)])

    common = trl_options(folder, options)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    if stage == "sft":
        arguments = SFTConfig(packing=True, packing_strategy=options.trl_packing, **common)
        kind, data = SFTTrainer, rows("conversations.jsonl")
    else:
        arguments = DPOConfig(beta=BETA, precompute_ref_log_probs=True, **common)
        kind, data = DPOTrainer, rows("preferences.jsonl")

    def run() -> None:
        trainer = counted(kind)(
            model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Timer()]
        )
        trainer.train()

    return run


def measure(side: str, stage: str, folder: Path, options: argparse.Namespace) -> None:
    """One side in this process; the last line of its output is JSON."""
    import lightning  # noqa: F401 -- imports are charged to neither side
    import torch

    torch.set_num_threads(options.threads)
    clock = Clock()
    run = {"ours": ours, "trl": trl}[side](stage, folder, options, clock)
    peak = peak_mib(lambda: run, "cpu", steps=1)
    timed = clock.timings[SKIPPED_STEPS:]
    speed = statistics.median(tokens / seconds for seconds, tokens in timed)
    print(json.dumps({"tokens_per_second": speed, "peak_mib": peak, "tokens": sum(tokens for _, tokens in timed)}))


def in_process(side: str, stage: str, folder: Path, arguments: list[str]) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--side", side, "--stage", stage, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ALLOCATOR})
    if done.returncode:
        raise SystemExit(f"{side} {stage}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320, help="hidden size")
    parser.add_argument("--layers", type=int, default=6, help="blocks")
    parser.add_argument("--vocab-size", type=int, default=8192, help="size of the tokenizer")
    parser.add_argument("--length", type=int, default=512, help="most tokens in a row")
    parser.add_argument("--rows", type=int, default=8, help="rows, or pairs, in a step")
    parser.add_argument("--rows-in-all", type=int, default=600, help="rows of data")
    parser.add_argument("--steps", type=int, default=10, help="steps of a run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads")
    parser.add_argument("--stages", nargs="+", choices=("sft", "dpo"), default=["sft", "dpo"], help="what to compare")
    parser.add_argument("--trl-packing", choices=("bfd", "wrapped"), default="bfd", help="how TRL packs")
    parser.add_argument("--quick", action="store_true", help="a tiny model, three steps")
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=("sft", "dpo"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.width, options.layers, options.vocab_size, options.length = 64, 2, 512, 256
        options.rows, options.rows_in_all, options.steps, options.repeats = 4, 60, SKIPPED_STEPS + 2, 1
    if options.side:
        measure(options.side, options.stage, options.folder, options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options)
        figures: dict[str, Any] = {"tokens_per_second": {}, "peak_mib": {}, "ratio": {}, "memory_ratio": {}}
        for stage in options.stages:
            found: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
            for _ in range(options.repeats):
                for side, results in found.items():
                    results.append(in_process(side, stage, folder, sys.argv[1:]))
            speed = {side: max(each["tokens_per_second"] for each in results) for side, results in found.items()}
            peak = {side: min(each["peak_mib"] for each in results) for side, results in found.items()}
            figures["tokens_per_second"][stage] = {side: round(value, 1) for side, value in speed.items()}
            figures["peak_mib"][stage] = {side: round(value) for side, value in peak.items()}
            figures["ratio"][stage] = round(speed["ours"] / speed["trl"], 3)
            figures["memory_ratio"][stage] = round(peak["ours"] / peak["trl"], 3)
    print_report(
        f"{options.rows} rows of at most {options.length} tokens, width {options.width}, {options.layers} layers, "
        f"vocabulary {options.vocab_size}, float32",
        ["stage", "ours tok/s", "TRL tok/s", "ratio", "ours MiB", "TRL MiB", "ratio"],
        [
            [
                stage,
                *(f"{figures['tokens_per_second'][stage][side]:,.0f}" for side in ("ours", "trl")),
                f"{figures['ratio'][stage]:.2f}",
                *(f"{figures['peak_mib'][stage][side]:,}" for side in ("ours", "trl")),
                f"{figures['memory_ratio'][stage]:.2f}",
            ]
            for stage in options.stages
        ],
        figures,
    )


if __name__ == "__main__":
    main()
