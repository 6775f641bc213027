"""Runs of PPO on a tiny model, for its tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import tiny_model

from lit_llm.config import (
    LoraConfig,
    OptimizerConfig,
    PPOConfig,
    PromptDataConfig,
    SampleConfig,
    ScheduleConfig,
    TrainerConfig,
    from_plain,
)
from lit_llm.interop import save_model_folder
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import with_chat_tokens

MakePPO = Callable[..., PPOConfig]


def write_policy(folder: Path, tokenizer: Tokenizer, output: str = "tokens", seed: int = 0) -> Path:
    """A model folder with chat tokens."""
    tokenizer = with_chat_tokens(tokenizer)
    config = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=64)
    model = Decoder(config.as_score() if output == "score" else config, seed=seed)
    save_model_folder(folder, model.config, model.state_dict(), tokenizer)
    return folder


def write_prompts(path: Path, count: int = 40) -> Path:
    """Prompts of different lengths, each with a field for a reward to read."""
    rows = ({"prompt": "x " * (number % 5) + f"{number}", "wanted": number % 7} for number in range(count))
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def make_ppo(folder: Path, tokenizer: Tokenizer, name: str = "run", **groups: Any) -> PPOConfig:
    """A run in `folder`; keywords like `data`, `trainer` replace single fields."""
    policy = folder / "policy"
    if not policy.exists():
        write_policy(policy, tokenizer)
        write_prompts(folder / "prompts.jsonl")

    def group(kind: type, key: str, **defaults: Any) -> Any:
        return from_plain(kind, {**defaults, **groups.pop(key, {})})

    options: dict[str, Any] = {
        "init_from": str(policy),
        "data": group(
            PromptDataConfig,
            "data",
            paths=[str(folder / "prompts.jsonl")],
            sequence_length=40,
            batch_size=8,
            validation_rows=3,
        ),
        "optimizer": group(OptimizerConfig, "optimizer", learning_rate=1e-2, weight_decay=0.0),
        "schedule": group(ScheduleConfig, "schedule", name="constant", warmup_steps=0),
        "lora": group(LoraConfig, "lora"),
        "trainer": group(
            TrainerConfig,
            "trainer",
            accelerator="cpu",
            devices=1,
            max_steps=4,
            val_every_n_steps=2,
            save_every_n_steps=1,
            log_every_n_steps=1,
            enable_progress_bar=False,
        ),
        "rewards": ["reward_functions:letters"],
        "samples": SampleConfig(prompts=[]),
        "sample_prompts": 0,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "update_epochs": 2,
    }
    return PPOConfig(run_name=name, output_root=str(folder), **{**options, **groups})
