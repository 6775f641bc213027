"""Tiny runs of each stage after pretraining, by the name of the stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
from chat_rows import letter_tokenizer, make_dpo, make_ppo, make_reward, make_sft, save_policy, some_pairs, some_talks
from ranks import STAGES

from lit_llm.config import PostTrainingConfig
from lit_llm.tokenizer import Tokenizer
from lit_llm.training.run import RunResult

MakeStage = Callable[..., Any]
MAKERS: dict[str, Callable[..., Any]] = {"sft": make_sft, "reward": make_reward, "dpo": make_dpo, "ppo": make_ppo}


@cache
def chat_tokenizer() -> Tokenizer:
    """The tokenizer of `chat_rows`, trained once."""
    return letter_tokenizer()


def count_letters(prompts: Sequence[Any], completions: Sequence[str], **fields: Any) -> list[float]:
    """A reward function: the characters of an answer that are ASCII, of which a policy without training writes some."""
    return [float(sum(letter.isascii() for letter in text)) for text in completions]


def rows_of(stage: str, count: int = 60, **options: Any) -> list[dict[str, Any]]:
    """Rows that the stage can read; every second pair has a margin."""
    if stage != "reward":
        return some_talks(count, **options) if stage in ("sft", "ppo") else some_pairs(count, **options)
    return [{**row, **({"margin": 0.5} if n % 2 else {})} for n, row in enumerate(some_pairs(count, **options))]


def make_stage(stage: str, folder: Path, name: str = "run", **groups: Any) -> Any:
    """The configuration of a run in `folder`, from a model folder there that is made when it is missing."""
    init_from = groups.pop("init_from", None) or folder / "policy"
    if not Path(init_from).exists():
        save_policy(Path(init_from), chat_tokenizer())
    rows = groups.pop("rows", None) or rows_of(stage)
    if stage == "ppo":
        groups.setdefault("rewards", ["stage_runs:count_letters"])
    return MAKERS[stage](folder, Path(init_from), rows, run_name=name, **groups)


def run_stage(config: PostTrainingConfig, *callbacks: L.Callback) -> RunResult:
    """Train as the script of the stage does."""
    return STAGES[type(config)](config, callbacks)
