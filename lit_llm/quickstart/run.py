"""The quickstart: tokenizer, shards, pretraining, SFT, reward model, DPO and a report, within a budget of minutes."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.cli.results import show_run, show_shards, show_tokenizer
from lit_llm.config import (
    STAGES,
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
    UserError,
    preset,
)
from lit_llm.config.files import replace_file
from lit_llm.config.notices import with_pictures
from lit_llm.data.sources.files import find_files
from lit_llm.quickstart.comparison import compare, show, stage_is_finished
from lit_llm.quickstart.later_stages import (
    SEQUENCE_LENGTH,
    TIMED_STEPS,
    affordable_steps,
    quick_trainer,
    resume_stage,
    run_stage,
    saved_run,
    stage_folder,
    step_seconds,
    write_pairs,
)
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from lit_llm.tokenizer import Tokenizer
    from lit_llm.training.run import RunResult

BATCH_SIZE = 8
_FEWEST_STEPS = 20
PYTHON_PROMPTS = ("import os\n\ndef read(path):", "class Parser:\n    def", "def main():")

# shares of the whole time; what data and report leave of it is pretraining's
_SHARES = {"sft": 0.14, "reward": 0.09, "dpo": 0.14}
_COMPARISON_SHARE = 0.05
_NEEDS = {"sft": "pretrain", "reward": "sft", "dpo": "sft"}


def quickstart(config: QuickstartConfig) -> None:
    """Run every stage that is not finished yet, and print how good the models are."""
    started = time.monotonic()
    if config.overwrite:
        _delete(config)
    stages = _stages_to_run(config)
    _check_text(config)
    _prepare(config)
    for number, stage in enumerate(stages):
        later = [_SHARES[each] for each in stages[number + 1 :]]
        if stages[-1] != "pretrain":
            later.append(_COMPARISON_SHARE)
        left = config.minutes * 60 * (1 - sum(later)) - (time.monotonic() - started)
        print(f"stage {stage}")
        _run(config, stage, left)
    if stages[-1] != "pretrain":
        show(config, compare(config))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes in all")
    talking = [stage for stage in stages if stage in ("sft", "dpo")]
    if talking:
        folder = stage_folder(config, talking[-1])
        print(f"talk with it: python experiments/chat.py --model {shlex.quote(str(folder))}")


def _run(config: QuickstartConfig, stage: str, left: float) -> None:
    """Run a stage from its start, or go on with it."""
    begun = config.ckpt_path is not None and _is_begun(config, stage)
    if stage == "pretrain":
        if begun:
            run = saved_run(config.folder, PretrainConfig, config.seed)
        else:
            began = time.monotonic()
            run = pretraining(config, _FEWEST_STEPS)
            step = _time_pretraining(run)
            run = pretraining(config, affordable_steps(step, left - (time.monotonic() - began), _FEWEST_STEPS))
        result = pretrain(run)
        show_run(run, result)
        if result is not None:
            _compare(run, result)
    elif begun:
        resume_stage(config, stage)
    else:
        # a stage that follows finished ones does not take all the time that they have saved
        run_stage(config, stage, min(left, 2 * _SHARES[stage] * config.minutes * 60))


def _stages_to_run(config: QuickstartConfig) -> list[str]:
    """List the stages asked for that are not finished; with ckpt_path and nothing left to do, the last one once more.

    Raises:
        UserError: a stage's input is missing, or its folder holds a run and nothing says what to do with it.
    """
    stages = list(config.stages or ())
    unfinished = [stage for stage in stages if not stage_is_finished(config, stage)]
    for stage in unfinished:
        needed = _NEEDS.get(stage)
        if needed is not None and needed not in stages and not stage_is_finished(config, needed):
            raise UserError(
                f"stage {stage} starts from the model of stage {needed}, which is not in "
                f"{stage_folder(config, needed)}; add it: --stages {','.join(_with_needed(stages))}"
            )
    if config.ckpt_path == "last" and not config.folder.exists():
        raise UserError(f"there is nothing to resume: there is no {config.folder}; leave ckpt_path out")
    if config.ckpt_path is None:
        begun = [stage for stage in unfinished or stages if _is_begun(config, stage)]
        if begun:
            raise UserError(
                f"{stage_folder(config, begun[0])} already holds a run: --ckpt_path last goes on with it, "
                "--overwrite true starts again, --run_name NAME starts another"
            )
    return unfinished or stages[-1:]


def _with_needed(stages: list[str]) -> list[str]:
    """Add to the stages all that they build on, in order."""
    wanted = set(stages)
    for stage in reversed(STAGES):
        if stage in wanted and stage in _NEEDS:
            wanted.add(_NEEDS[stage])
    return [stage for stage in STAGES if stage in wanted]


def _is_begun(config: QuickstartConfig, stage: str) -> bool:
    return (stage_folder(config, stage) / "config.yaml").exists()


def _delete(config: QuickstartConfig) -> None:
    """Delete the folders of the stages asked for, and of those that build on them."""
    stages = list(config.stages or ())
    if "pretrain" in stages:
        shutil.rmtree(config.folder, ignore_errors=True)
    for stage in STAGES[1:]:
        if stage in stages or "sft" in stages:
            shutil.rmtree(stage_folder(config, stage), ignore_errors=True)


def _check_text(config: QuickstartConfig) -> None:
    """Refuse to go on with the tokenizer and the shards of another text, which are there already.

    Raises:
        UserError: the folder was begun with other options of them.
    """
    path = config.folder / "quickstart.json"
    ours = {name: getattr(config, name) for name in ("corpus", "text_field", "vocab_size")}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(ours) + "\n")
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    changed = [f"{name} {theirs.get(name)} (now: {value})" for name, value in ours.items() if theirs.get(name) != value]
    if changed:
        raise UserError(
            f"{config.folder} was begun with {', '.join(changed)}: put it back, --overwrite true starts again with "
            "pretraining, --run_name NAME starts another"
        )


def _prepare(config: QuickstartConfig) -> None:
    files = [] if config.corpus.startswith("hf:") else find_files(config.corpus, "corpus")[1]
    # The functions of Python files are learned, for which a file has to stay whole.
    split = "hash" if any(file.suffix == ".py" for file in files) else "auto"
    corpus = CorpusConfig(path=config.corpus, text_field=config.text_field, split=split)
    tokenizer, shards = config.folder / "tokenizer", config.folder / "shards"
    if not (tokenizer / "tokenizer.json").exists():
        training = TokenizerTrainingConfig(corpus, vocab_size=config.vocab_size, output=str(tokenizer))
        show_tokenizer(training, train_tokenizer(training))
    if config.stages != ["pretrain"]:
        write_pairs(config, corpus)
    if not (shards / "train" / "manifest.json").exists():
        preparation = PrepareConfig(corpus, tokenizer=str(tokenizer), output=str(shards))
        show_shards(preparation, prepare_data(preparation))


def pretraining(config: QuickstartConfig, steps: int) -> PretrainConfig:
    """Configure the pretraining of a quickstart with `steps` optimizer steps, in bfloat16 where the machine is fast."""
    prompts = list(PYTHON_PROMPTS) if config.corpus == "stdlib" else ["", "", ""]
    # what a few CPU minutes can fill: more weights would see too little text, fewer would hold too little of it
    model = preset("modern-1m", hidden_size=192, num_heads=3, max_position_embeddings=SEQUENCE_LENGTH, init_std=0.1)
    return PretrainConfig(
        run_name=config.run_name,
        output_root=config.output_root,
        seed=config.seed,
        model=model,
        data=DataConfig(paths=[str(config.folder / "shards")], sequence_length=SEQUENCE_LENGTH, batch_size=BATCH_SIZE),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=1.2e-2,
            muon_learning_rate=0.04,
            muon_momentum_warmup_steps=min(300, steps // 4),
            weight_decay=0.0,
        ),
        schedule=ScheduleConfig(name="wsd", warmup_steps=min(50, steps // 10), decay_fraction=0.9, min_ratio=0.0),
        trainer=quick_trainer(steps),
        samples=SampleConfig(prompts=prompts, sampling=SamplingConfig(max_new_tokens=120, temperature=0.7)),
    )


def _time_pretraining(run: PretrainConfig) -> float:
    """Measure the seconds that a step of the run takes."""
    import torch

    from lit_llm.modules import PretrainingModule
    from lit_llm.tokenizer import Tokenizer

    vocab_size = Tokenizer.load(Path(run.data.paths[0]) / "tokenizer").vocab_size
    module = PretrainingModule(replace(run, model=replace(run.model, vocab_size=vocab_size)))
    tokens = torch.randint(vocab_size, (run.data.batch_size, run.data.length))
    return step_seconds(module, run, [{"tokens": tokens, "targets": tokens}] * TIMED_STEPS)


def _compare(run: PretrainConfig, result: RunResult) -> None:
    """Print the model's loss beside the baselines, and the samples; add both to the report."""
    from rich.console import Console
    from rich.table import Table

    from lit_llm.evaluation.run_report import write_report
    from lit_llm.evaluation.tables import markdown_table
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
        console.print(with_pictures(text), markup=False, highlight=False)
    console.rule()
    write_report(run, result, [("Against baselines", markdown_table(header, rows))])


def comparison(run: PretrainConfig, metrics: dict[str, float], tokenizer: Tokenizer) -> list[list[str]]:
    """Make rows of (name, nats per token, bits per byte): the model, unigram frequencies, gzip and xz."""
    from lit_llm.data.corpus.shards import ShardedTokens
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
