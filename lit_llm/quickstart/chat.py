"""The chat quickstart: a small model that answers, measured, fine-tuned, aligned and measured again."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from typing import Any

from lit_llm.cli.results import show_run
from lit_llm.config import (
    ConversationDataConfig,
    DPOConfig,
    LoraConfig,
    OptimizerConfig,
    PreferenceDataConfig,
    QuickstartChatConfig,
    ScheduleConfig,
    SFTConfig,
    UserError,
)
from lit_llm.config.files import replace_file
from lit_llm.quickstart.chat_report import Measurement, measured, write_chat_report
from lit_llm.quickstart.chat_rows import ChatFiles, most_tokens, write_chat_rows
from lit_llm.quickstart.later_stages import affordable_steps, quick_trainer, saved_run, time_steps
from lit_llm.stages.dpo import dpo
from lit_llm.stages.fetch_model import fetch_model
from lit_llm.stages.loading import find_model
from lit_llm.stages.sft import sft

STAGES = ("sft", "dpo")
RECORD = "quickstart_chat.json"
SFT_BATCH, DPO_BATCH = 8, 4
_FEWEST_STEPS = 2
_TIMED_STEPS = 3
_SFT_SHARE = 0.55  # of the time that is left for both stages
_REFERENCE = 4 / 3  # a step of DPO also goes forward through the model without its additions


def quickstart_chat(config: QuickstartChatConfig) -> None:
    """Run what is not finished yet, and say how good the model was and is, and how to talk with it."""
    from lit_llm.interop import load_tokenizer

    started = time.monotonic()
    _begin(config)
    if config.model is None:
        fetch_model(config.fetched)
    start = find_model(config.start)
    write_chat_rows(config, load_tokenizer(start))
    began = time.monotonic()
    found: dict[str, Measurement] = {"before": measured(config, "before", start)}
    measuring = time.monotonic() - began
    for number, stage in enumerate(STAGES):
        left = config.minutes * 60 - (time.monotonic() - started) - measuring * (len(STAGES) - number)
        _run(config, stage, left * (_SFT_SHARE if number == 0 else 1.0))
        found[stage] = measured(config, stage, config.folder / stage / "model")
    minutes = (time.monotonic() - started) / 60
    write_chat_report(config, found, minutes)
    print(f"{minutes:.1f} minutes in all")
    model = config.folder / STAGES[-1]
    print(
        f"talk with it: python experiments/serve.py --model {shlex.quote(str(model))}, then open http://localhost:8000"
    )
    print(f"  or in the terminal: python experiments/chat.py --model {shlex.quote(str(model))}")


def _begin(config: QuickstartChatConfig) -> None:
    """Look at what an earlier run left: refuse it, delete it, or see that it was begun with the same options.

    Raises:
        UserError: there is a run, and nothing says what to do with it, or it was begun with other options.
    """
    path = config.folder / RECORD
    if config.overwrite:
        shutil.rmtree(config.folder, ignore_errors=True)
    if config.ckpt_path == "last" and not path.exists():
        raise UserError(f"there is nothing to resume: there is no {path}; leave ckpt_path out")
    ours = {"model": config.start, "instructions": config.instructions, "preferences": config.preferences}
    ours |= {"seed": config.seed}
    if not path.exists():
        if config.folder.exists() and any(config.folder.iterdir()):
            raise UserError(f"{config.folder} holds something else; give another --run_name, or --overwrite true")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(ours) + "\n")
        return
    if config.ckpt_path is None:
        raise UserError(
            f"{config.folder} already holds a run: --ckpt_path last goes on with it, --overwrite true starts again, "
            "--run_name NAME starts another"
        )
    theirs = json.loads(path.read_text(encoding="utf-8"))
    changed = [f"{name} {theirs.get(name)} (now: {value})" for name, value in ours.items() if theirs.get(name) != value]
    if changed:
        raise UserError(
            f"{config.folder} was begun with {', '.join(changed)}: put it back, --overwrite true starts again, "
            "--run_name NAME starts another"
        )


def _run(config: QuickstartChatConfig, stage: str, seconds: float) -> None:
    """Run a stage from its start, or go on with it, unless it has left its model.

    Args:
        config: of the quickstart.
        stage: "sft" or "dpo".
        seconds: what it may take in all.
    """
    folder = config.folder / stage
    if (folder / "model" / "config.json").exists():
        return
    print(f"stage {stage}")
    make, train = (sft_run, sft) if stage == "sft" else (dpo_run, dpo)
    if (folder / "config.yaml").exists():
        run: Any = saved_run(folder, SFTConfig if stage == "sft" else DPOConfig, config.seed)
    else:
        began = time.monotonic()
        step, _ = time_steps(stage, make(config, _FEWEST_STEPS), _TIMED_STEPS)
        step *= _REFERENCE if stage == "dpo" else 1.0
        left = seconds - (time.monotonic() - began)
        run = make(config, affordable_steps(step, left, _FEWEST_STEPS))
        print(f"{run.trainer.max_steps} steps of {step:.1f} s")
    show_run(run, train(run))


def sft_run(config: QuickstartChatConfig, steps: int) -> SFTConfig:
    """Configure SFT with LoRA on the conversations."""
    files = ChatFiles(config.folder)
    return SFTConfig(
        **_common(config, "sft", steps),
        init_from=str(find_model(config.start)),
        data=ConversationDataConfig(
            paths=[str(files.conversations("train"))],
            validation_paths=[str(files.conversations("validation"))],
            sequence_length=most_tokens(config),
            batch_size=SFT_BATCH,
            too_long="truncate",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0),
    )


def dpo_run(config: QuickstartChatConfig, steps: int) -> DPOConfig:
    """Configure DPO with LoRA on the preferences; the reference is the model without its additions.

    Without the cross-entropy of the preferred answers, these become less likely, too.
    """
    files = ChatFiles(config.folder)
    return DPOConfig(
        **_common(config, "dpo", steps),
        init_from=str(config.folder / "sft" / "model"),
        data=PreferenceDataConfig(
            paths=[str(files.preferences("train"))],
            validation_paths=[str(files.preferences("validation"))],
            sequence_length=most_tokens(config),
            batch_size=DPO_BATCH,
            too_long="truncate",
        ),
        reference="base",
        sft_weight=1.0,
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.0),
    )


def _common(config: QuickstartChatConfig, stage: str, steps: int) -> dict[str, Any]:
    trainer = quick_trainer(steps)
    trainer.val_every_n_steps = steps  # the models are measured in between, too
    return {
        "run_name": f"{config.run_name}/{stage}",
        "output_root": config.output_root,
        "seed": config.seed,
        "lora": LoraConfig(rank=16, alpha=32.0),
        "schedule": ScheduleConfig(name="linear", warmup_steps=min(3, steps // 4), min_ratio=0.0),
        "trainer": trainer,
        "sample_prompts": 0,
    }
