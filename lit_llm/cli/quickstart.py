"""The quickstart: tokenizer, shards, pretraining and a report, in one go and within a budget of minutes."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_llm.cli.stages import prepare_data, pretrain, train_tokenizer
from lit_llm.config import (
    CorpusConfig,
    DataConfig,
    OptimizerConfig,
    PrepareConfig,
    PretrainConfig,
    QuickstartConfig,
    SampleConfig,
    SamplingConfig,
    ScheduleConfig,
    TokenizerTrainingConfig,
    TrainerConfig,
    UserError,
    from_plain,
    preset,
)

if TYPE_CHECKING:
    from lit_llm.tokenizer import Tokenizer
    from lit_llm.training.run import RunResult

SEQUENCE_LENGTH = 256
BATCH_SIZE = 8
PYTHON_PROMPTS = ("import os\n\ndef read(path):\n", "class Parser:\n    def ", "def main():\n")
_TIMED_STEPS = 6
# share of the time budget for training steps; the rest goes to data, validation, samples and start-up
_TRAINING_SHARE = 0.8
_FEWEST_STEPS = 20


def quickstart(config: QuickstartConfig) -> None:
    """Run every stage whose result is not there yet, train, and print how good the model is."""
    started = time.monotonic()
    folder = config.folder
    if config.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    _refuse_second_run(config)
    _prepare(config)
    if config.ckpt_path is not None and (folder / "config.yaml").exists():
        run = from_plain(PretrainConfig, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
        run = replace(run, ckpt_path="last")
    else:
        run = pretraining(config, steps=_FEWEST_STEPS)
        left = config.minutes * 60 - (time.monotonic() - started)
        run = pretraining(config, _affordable_steps(run, left))
    result = pretrain(run)
    _compare(run, result)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes in all")


def _refuse_second_run(config: QuickstartConfig) -> None:
    if (config.folder / "config.yaml").exists() and config.ckpt_path is None:
        raise UserError(
            f"{config.folder} already holds a run: --ckpt_path last goes on with it, --overwrite true starts again, "
            "--run_name NAME starts another"
        )


def _prepare(config: QuickstartConfig) -> None:
    path = Path(config.corpus)
    one_text = path.is_file() and path.name.removesuffix(".gz").endswith(".txt")
    corpus = CorpusConfig(path=config.corpus, text_field=config.text_field, split="tail" if one_text else "hash")
    tokenizer, shards = config.folder / "tokenizer", config.folder / "shards"
    if not (tokenizer / "tokenizer.json").exists():
        train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=config.vocab_size, output=str(tokenizer)))
    if not (shards / "train" / "manifest.json").exists():
        prepare_data(PrepareConfig(corpus, tokenizer=str(tokenizer), output=str(shards)))


def pretraining(config: QuickstartConfig, steps: int) -> PretrainConfig:
    """The pretraining run of a quickstart with `steps` optimizer steps, in bfloat16 where the machine is fast at it."""
    import torch

    from lit_llm.model.arithmetic import multiplies_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision: Any = "bf16-mixed" if multiplies_bfloat16(device) else "32-true"
    prompts = list(PYTHON_PROMPTS) if config.corpus == "stdlib" else ["", "", ""]
    # what a few CPU minutes can fill: more weights would see too little text, fewer would hold too little of it
    model = preset("modern-1m", hidden_size=192, num_heads=3, max_position_embeddings=SEQUENCE_LENGTH, init_std=0.1)
    return PretrainConfig(
        run_name=config.run_name,
        output_root=config.output_root,
        seed=config.seed,
        ckpt_path=config.ckpt_path,
        model=model,
        data=DataConfig(paths=[str(config.folder / "shards")], sequence_length=SEQUENCE_LENGTH, batch_size=BATCH_SIZE),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=4e-3,
            muon_learning_rate=0.02,
            muon_momentum_warmup_steps=min(300, steps // 4),
            weight_decay=0.0,
        ),
        schedule=ScheduleConfig(name="wsd", warmup_steps=min(50, steps // 10), decay_fraction=0.9, min_ratio=0.0),
        trainer=TrainerConfig(
            devices=1,
            precision=precision,
            max_steps=steps,
            val_every_n_steps=max(1, math.ceil(steps / 2)),
            save_every_n_steps=max(1, math.ceil(steps / 10)),
        ),
        samples=SampleConfig(prompts=prompts, sampling=SamplingConfig(max_new_tokens=120, temperature=0.7)),
    )


def _affordable_steps(run: PretrainConfig, seconds: float) -> int:
    """Optimizer steps that fit in `seconds`, from the time of a few steps of the very model on this machine."""
    import torch

    from lit_llm.modules import PretrainingModule
    from lit_llm.optimization import build_optimizer
    from lit_llm.tokenizer import Tokenizer

    vocab_size = Tokenizer.load(Path(run.data.paths[0]) / "tokenizer").vocab_size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = PretrainingModule(replace(run, model=replace(run.model, vocab_size=vocab_size))).to(device)
    optimizer = build_optimizer(module.model, run.optimizer)
    tokens = torch.randint(vocab_size, (run.data.batch_size, run.data.sequence_length), device=device)
    batch = {"tokens": tokens, "targets": tokens}
    times = []
    for _ in range(_TIMED_STEPS):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=run.trainer.precision == "bf16-mixed"):
            loss, count = module.token_loss(batch, training=True)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    # the first steps also warm up; the median of the others is what a step takes
    step_seconds = sorted(times[2:])[len(times[2:]) // 2]
    return max(_FEWEST_STEPS, int(seconds * _TRAINING_SHARE / step_seconds))


def _compare(run: PretrainConfig, result: RunResult) -> None:
    """Print the model's loss beside the baselines, and the samples; add both to the report."""
    from rich.console import Console
    from rich.table import Table

    from lit_llm.evaluation.report import markdown_table, write_report
    from lit_llm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(result.model_folder)
    rows = comparison(run, result.metrics, tokenizer)
    header = ["on the validation text", "nats per token", "bits per byte"]
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for text in result.samples:
        console.rule("sample")
        console.print(text, markup=False, highlight=False)
    console.rule()
    write_report(run, result, [("Against baselines", markdown_table(header, rows))])


def comparison(run: PretrainConfig, metrics: dict[str, float], tokenizer: Tokenizer) -> list[list[str]]:
    """Rows of (name, nats per token, bits per byte): the model, unigram frequencies, gzip and xz."""
    from lit_llm.data.shards import ShardedTokens
    from lit_llm.evaluation.baselines import compressor_bits_per_byte, unigram_loss

    shards = Path(run.data.paths[0])
    train, validation = ShardedTokens(shards / "train"), ShardedTokens(shards / "validation")
    ids = validation.read(0, len(validation))
    text = tokenizer.decode(ids.tolist(), skip_special=True).encode()
    bytes_per_token = len(text) / len(validation)

    def bits(nats_per_token: float) -> float:
        return nats_per_token / math.log(2) / bytes_per_token

    def row(name: str, nats: float | None, bits_per_byte: float) -> list[str]:
        return [name, "" if nats is None else f"{nats:.3f}", f"{bits_per_byte:.3f}"]

    unigram = unigram_loss(train, validation, tokenizer.vocab_size)
    rows = [
        row("this model", metrics["val/loss"], metrics["val/bits_per_byte"]),
        row("unigram", unigram, bits(unigram)),
    ]
    rows += [row(name, None, value) for name, value in compressor_bits_per_byte(text).items()]
    difference: Any = metrics["val/bits_per_byte"] - compressor_bits_per_byte(text)["xz -9e"]
    rows.append(row("model minus xz", None, difference))
    return rows
