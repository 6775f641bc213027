"""The quickstart's stages after pretraining: their rows, their runs, and how many steps they can afford."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from lit_llm.cli.results import show_run
from lit_llm.config import (
    ConversationDataConfig,
    CorpusConfig,
    DPOConfig,
    OptimizerConfig,
    PreferenceDataConfig,
    QuickstartConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    ScheduleConfig,
    SFTConfig,
    TrainerConfig,
    UserError,
    derived_seed,
    from_plain,
)
from lit_llm.stages.dpo import build_dpo, dpo
from lit_llm.stages.reward import build_reward, reward
from lit_llm.stages.sft import build_sft, sft

if TYPE_CHECKING:
    from torch import Tensor

    from lit_llm.model import Decoder
    from lit_llm.modules import LanguageModule
    from lit_llm.tokenizer import Tokenizer

SEQUENCE_LENGTH = 256
CONVERSATION_TOKENS = 208
"""Most tokens of a request with its function; the rest of a row is room for spoiled functions, which are longer."""
ANSWER_TOKENS = 112
"""Most tokens of a function in the training rows, and of an answer that a model writes."""
PREFERENCE_BATCH = 8
SAMPLING = SamplingConfig(max_new_tokens=ANSWER_TOKENS, temperature=0.7)
"""How answers are drawn, for the comparison and for the pairs that DPO learns from."""
FEWEST_STEPS = 4
TIMED_STEPS = 6

Run = TypeVar("Run", bound=RunConfig)

# share of a stage's time for its steps; the rest goes to rows, validation, samples and start-up
_TRAINING_SHARE = 0.8
# share of DPO's time in which the model writes what is then preferred or not
_WRITING_SHARE = 0.4
_REQUESTS_AT_ONCE = 32
_DRAWS = 4  # answers to each request
_MOST_EPOCHS = 3


@dataclass(frozen=True)
class Files:
    """The files that hold the rows of a quickstart.

    Attributes:
        folder: of the run.
    """

    folder: Path

    def pairs(self, split: str) -> Path:
        """Name the file of requests with their functions."""
        return self.folder / "pairs" / f"{split}.jsonl"

    def corrupted(self, split: str) -> Path:
        """Name the file of pairs in which a function is preferred to a spoiled one."""
        return self.folder / "preferences" / f"corrupted_{split}.jsonl"

    def sampled(self, split: str) -> Path:
        """Name the file of pairs of answers: one that parses is preferred to one that does not."""
        return self.folder / "preferences" / f"sampled_{split}.jsonl"


def stage_folder(config: QuickstartConfig, stage: str) -> Path:
    """Name the run folder of a stage."""
    return config.folder if stage == "pretrain" else config.folder / stage


def write_pairs(config: QuickstartConfig, corpus: CorpusConfig) -> None:
    """Write the rows that need no model: conversations, and pairs with spoiled functions.

    Raises:
        UserError: the corpus has no functions to learn from.
    """
    from lit_llm.data.corpus.documents import Corpus
    from lit_llm.quickstart.functions import conversation_row, corrupt, functions_of, preference_row, write_rows
    from lit_llm.tokenizer import Tokenizer

    files = Files(config.folder)
    if files.corrupted("validation").exists():  # the last one written
        return
    tokenizer = Tokenizer.load(config.folder / "tokenizer")
    for split, functions in functions_of(Corpus(corpus), tokenizer, CONVERSATION_TOKENS, ANSWER_TOKENS).items():
        write_rows(files.pairs(split), [conversation_row(function) for function in functions])
        spoiled = corrupt(functions, config.seed)
        rows = [
            preference_row(function.request, function.source, text, corruption=kind)
            for function, (text, kind) in zip(functions, spoiled, strict=True)
        ]
        write_rows(files.corrupted(split), rows)
        print(f"{split}: {len(functions):,} functions with a docstring in {files.pairs(split)}")


def sft_run(config: QuickstartConfig, steps: int) -> SFTConfig:
    """Configure SFT on writing the function that a docstring asks for."""
    files = Files(config.folder)
    return SFTConfig(
        **_common(config, "sft", steps),
        init_from=str(config.folder / "model"),
        data=ConversationDataConfig(
            paths=[str(files.pairs("train"))],
            validation_paths=[str(files.pairs("validation"))],
            sequence_length=SEQUENCE_LENGTH,
            batch_size=4,
        ),
        optimizer=_optimizer(1e-3, 0.005),
        sample_prompts=0,
    )


def reward_run(config: QuickstartConfig, steps: int) -> RewardConfig:
    """Configure a reward model that tells a function from a spoiled one."""
    return RewardConfig(
        **_common(config, "reward", steps),
        init_from=str(config.folder / "sft" / "model"),
        data=_preferences(config, Files(config.folder).corrupted),
        optimizer=_optimizer(2e-3, 0.01),
    )


def dpo_run(config: QuickstartConfig, steps: int) -> DPOConfig:
    """Configure DPO towards those of the model's own answers that parse.

    Without the cross-entropy of the preferred answers, these become less likely, too.
    """
    return DPOConfig(
        **_common(config, "dpo", steps),
        init_from=str(config.folder / "sft" / "model"),
        data=_preferences(config, Files(config.folder).sampled),
        sft_weight=1.0,
        optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.0),
        sample_prompts=0,
    )


def _common(config: QuickstartConfig, stage: str, steps: int) -> dict[str, Any]:
    return {
        "run_name": f"{config.run_name}/{stage}",
        "output_root": config.output_root,
        "seed": config.seed,
        "schedule": ScheduleConfig(name="linear", warmup_steps=min(5, steps // 4), min_ratio=0.0),
        "trainer": quick_trainer(steps),
    }


def quick_trainer(steps: int) -> TrainerConfig:
    """Configure one device, bfloat16 where that is fast, ten checkpoints, and validation halfway and at the end."""
    import torch

    from lit_llm.model.arithmetic import multiplies_bfloat16

    return TrainerConfig(
        devices=1,
        precision="bf16-mixed" if multiplies_bfloat16(torch.device(device())) else "32-true",
        max_steps=steps,
        val_every_n_steps=max(1, math.ceil(steps / 2)),
        save_every_n_steps=max(1, math.ceil(steps / 10)),
    )


def device() -> str:
    """Name the kind of device that the quickstart runs on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _optimizer(learning_rate: float, muon_learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(
        name="muon",
        learning_rate=learning_rate,
        muon_learning_rate=muon_learning_rate,
        muon_momentum_warmup_steps=0,
        weight_decay=0.0,
    )


def _preferences(config: QuickstartConfig, file: Callable[[str], Path]) -> PreferenceDataConfig:
    return PreferenceDataConfig(
        paths=[str(file("train"))],
        validation_paths=[str(file("validation"))],
        sequence_length=SEQUENCE_LENGTH,
        batch_size=PREFERENCE_BATCH,
        too_long="truncate",
    )


RUNS: dict[str, Callable[[QuickstartConfig, int], Any]] = {"sft": sft_run, "reward": reward_run, "dpo": dpo_run}
"""Makes the run of each stage after pretraining, given the quickstart and a number of steps."""
_TRAIN: dict[str, Callable[[Any], Any]] = {"sft": sft, "reward": reward, "dpo": dpo}
_BUILD: dict[str, Callable[[Any], Any]] = {"sft": build_sft, "reward": build_reward, "dpo": build_dpo}


def run_stage(config: QuickstartConfig, stage: str, seconds: float) -> None:
    """Run one of the stages after pretraining, from its start.

    Args:
        config: of the quickstart.
        stage: "sft", "reward" or "dpo"; what it starts from is there.
        seconds: what it may take in all.
    """
    began = time.monotonic()
    if stage == "dpo":
        write_sampled(config, seconds * _WRITING_SHARE)
    run = RUNS[stage](config, FEWEST_STEPS)
    step, samples = time_steps(stage, run)
    rows = len(read_rows(Path(run.data.paths[0])))
    left = seconds - (time.monotonic() - began)
    if stage == "dpo":  # the reference reads every pair once, forward alone
        left -= step / 3 * rows / run.data.batch_size
    most = max(FEWEST_STEPS, math.ceil(_MOST_EPOCHS * rows * samples / run.data.batch_size))
    _train(stage, RUNS[stage](config, min(most, affordable_steps(step, left))))


def resume_stage(config: QuickstartConfig, stage: str) -> None:
    """Go on with one of the stages after pretraining from its last checkpoint, as it was begun."""
    _train(stage, saved_run(stage_folder(config, stage), type(RUNS[stage](config, FEWEST_STEPS)), config.seed))


def _train(stage: str, run: Any) -> None:
    show_run(run, _TRAIN[stage](run))


def saved_run(folder: Path, kind: type[Run], seed: int) -> Run:
    """Read the run of a folder, to go on with it.

    Raises:
        UserError: its config.yaml is not that of such a run with this seed.
    """
    path = folder / "config.yaml"
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        run = replace(from_plain(kind, plain), ckpt_path="last_or_begin")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{path} is not the configuration of a run ({reason}); --overwrite true starts again"
        ) from error
    if run.seed != seed:
        raise UserError(f"{folder} was begun with seed {run.seed} (now: {seed}); put it back, or --overwrite true")
    print(f"{folder} goes on with the {run.trainer.max_steps} steps that it was begun with")
    return run


def time_steps(stage: str, run: Any, count: int = TIMED_STEPS) -> tuple[float, float]:
    """Measure, on the few held-out rows, the seconds of a step and the number of samples that each row makes.

    Args:
        stage: "sft", "reward" or "dpo".
        run: its configuration.
        count: how many steps are measured, at least 3: the first two only warm up.
    """
    rows = replace(run.data, paths=run.data.validation_paths, validation_paths=[], validation_fraction=0.0)
    timed = replace(run, data=rows)
    if stage == "dpo":
        timed.loss = "simpo"  # which computes the same, but has no reference
    module, data, _ = _BUILD[stage](timed)
    size = run.data.batch_size
    rows_of = [[place % data.num_samples for place in range(i * size, (i + 1) * size)] for i in range(count)]
    batches = [data.train_dataset.__getitems__(places) for places in rows_of]
    return step_seconds(module, run, batches), data.num_samples / data.num_rows


def step_seconds(module: LanguageModule, run: RunConfig, batches: Sequence[dict[str, Tensor]]) -> float:
    """Measure the seconds of an optimizer step on this machine: the median over `batches` but the first two."""
    import torch

    from lit_llm.optimization import build_optimizer

    where = device()
    module.to(where)
    optimizer = build_optimizer(module.trained, run.optimizer)
    times = []
    for batch in batches:
        began = time.perf_counter()
        moved = {name: value.to(where) for name, value in batch.items()}
        with torch.autocast(where, torch.bfloat16, enabled=run.trainer.precision == "bf16-mixed"):
            loss, count = module.token_loss(moved, training=True)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        if where == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    # the first steps also warm up
    return statistics.median(times[2:])


def affordable_steps(step: float, seconds: float, fewest: int = FEWEST_STEPS) -> int:
    """Count the steps of `step` seconds each that fit in `seconds`, beside what else a run does."""
    return max(fewest, int(seconds * _TRAINING_SHARE / step))


def write_sampled(config: QuickstartConfig, seconds: float) -> None:
    """Let the fine-tuned model answer requests several times, and write down answers that parse as preferred.

    With true functions as the preferred ones, DPO moves the model away from its answers without raising the share that
    parses. Where too few of its own parse, functions preferred to spoiled ones make up a batch.

    Args:
        config: of the quickstart.
        seconds: to spend on the training requests; at least a few are answered.
    """
    from lit_llm.interop import load_model_folder
    from lit_llm.quickstart.functions import write_rows

    files = Files(config.folder)
    model, tokenizer = load_model_folder(config.folder / "sft" / "model", device=device())
    rows = {split: read_rows(files.corrupted(split)) for split in ("train", "validation")}
    for split in rows:
        Random(derived_seed(config.seed, split)).shuffle(rows[split])
    found: dict[str, list[Any]] = {"train": [], "validation": []}
    found["validation"] = _answer_pairs(model, tokenizer, rows["validation"][:_REQUESTS_AT_ONCE], config.seed)
    began = time.monotonic()
    for start in range(0, len(rows["train"]), _REQUESTS_AT_ONCE):
        if start and time.monotonic() - began > seconds:
            break
        asked = rows["train"][start : start + _REQUESTS_AT_ONCE]
        found["train"] += _answer_pairs(model, tokenizer, asked, derived_seed(config.seed, "train", start))
    for split, pairs in found.items():
        filled = rows[split][: max(0, PREFERENCE_BATCH - len(pairs))]
        more = f", and {len(filled)} of functions, as few answers parse," if filled else ""
        print(f"{split}: {len(pairs):,} pairs of answers{more} in {files.sampled(split)}")
        pairs += filled
    for split in ("validation", "train"):
        write_rows(files.sampled(split), found[split])


def _answer_pairs(model: Decoder, tokenizer: Tokenizer, rows: Sequence[Any], seed: int) -> list[Any]:
    """Pair answers that parse with answers that do not, each answer in one pair at most."""
    from lit_llm.evaluation.held_out import write_answers
    from lit_llm.quickstart.code import parses
    from lit_llm.quickstart.functions import preference_row

    requests = [row["prompt"][0]["content"] for row in rows for _ in range(_DRAWS)]
    answers = [answer.text for answer in write_answers(model, tokenizer, requests, replace(SAMPLING, seed=seed))]
    pairs = []
    for start in range(0, len(requests), _DRAWS):
        drawn = [text for text in dict.fromkeys(answers[start : start + _DRAWS]) if text.strip()]
        good, bad = [text for text in drawn if parses(text)], [text for text in drawn if not parses(text)]
        pairs += [preference_row(requests[start], *pair) for pair in zip(good, bad, strict=False)]
    return pairs


def read_rows(path: Path) -> list[Any]:
    """Read the rows of a .jsonl file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
