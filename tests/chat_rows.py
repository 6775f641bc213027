"""Tiny model folders, rows and runs for the tests of the stages after pretraining."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import tiny_model

from lit_llm.config import (
    ConversationDataConfig,
    DPOConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    PPOConfig,
    PreferenceDataConfig,
    PromptDataConfig,
    RewardConfig,
    SampleConfig,
    SamplingConfig,
    ScheduleConfig,
    SFTConfig,
    TrainerConfig,
    from_plain,
)
from lit_llm.interop import save_model_folder
from lit_llm.model import Decoder
from lit_llm.tokenizer import Message, Tokenizer, train_bpe

LETTERS = "bcdfghjk"
"""Letters of synthetic texts; none is in the name of a role, so each is a token of its own."""


def letter_tokenizer() -> Tokenizer:
    """A byte-level BPE of 271 tokens whose only merges make "user" and "assistant": each chat turn costs four tokens
    and its letters."""
    return train_bpe(["user\nassistant\n" * 4], vocab_size=256 + 11 + 4, show_progress=False)


def save_policy(folder: Path, tokenizer: Tokenizer, model: ModelConfig | Decoder | None = None, **fields: Any) -> Path:
    """A model folder to start from: `model`, or a llama of width 32 with 64 positions, whose `fields` may differ."""
    if not isinstance(model, Decoder):
        sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64, **fields}
        model = Decoder(model or tiny_model("llama-10m", **sizes), seed=1)
    save_model_folder(folder, model.config, model.state_dict(), tokenizer)
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A .jsonl file; several ranks may write the same one at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}")
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own.replace(path)
    return str(path)


def talk(question: str, *answers: str) -> dict[str, Any]:
    """A conversation: a question, its answer, and for each further answer another question."""
    turns = [Message("user", question)]
    for answer in answers:
        turns += [Message("assistant", answer), Message("user", question[::-1])]
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in turns[:-1]]}


def pair(prompt: str, chosen: str, rejected: str, **fields: Any) -> dict[str, Any]:
    """A preference; `margin` may be among the fields."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **fields}


def letters(chance: random.Random, shortest: int, longest: int, alphabet: str = LETTERS) -> str:
    """A word of random letters."""
    return "".join(chance.choices(alphabet, k=chance.randint(shortest, longest)))


def some_talks(count: int, seed: int = 0, longest: int = 9) -> list[dict[str, Any]]:
    """Conversations with answers of 1 to `longest` letters; every third has two answers."""
    chance = random.Random(seed)
    return [
        talk(letters(chance, 3, 5), *(letters(chance, 1, longest) for _ in range(1 + (n % 3 == 0))))
        for n in range(count)
    ]


def some_pairs(count: int, seed: int = 0, longest: int = 9) -> list[dict[str, Any]]:
    """Preferences between answers of 1 to `longest` letters; chosen ones begin with b, rejected ones with c."""
    chance = random.Random(seed)
    return [
        pair(letters(chance, 3, 5), "b" + letters(chance, 0, longest - 1), "c" + letters(chance, 0, longest - 1))
        for _ in range(count)
    ]


def make_sft(folder: Path, init_from: Path, rows: Sequence[dict[str, Any]], **groups: Any) -> SFTConfig:
    """A run of six steps; keywords like `data` and `trainer` replace single fields, others whole ones."""
    return _make(SFTConfig, ConversationDataConfig, folder, init_from, rows, groups)


def make_reward(folder: Path, init_from: Path, rows: Sequence[dict[str, Any]], **groups: Any) -> RewardConfig:
    """See `make_sft`."""
    return _make(RewardConfig, PreferenceDataConfig, folder, init_from, rows, groups, samples=SampleConfig([]))


def make_dpo(folder: Path, init_from: Path, rows: Sequence[dict[str, Any]], **groups: Any) -> DPOConfig:
    """See `make_sft`."""
    return _make(DPOConfig, PreferenceDataConfig, folder, init_from, rows, groups)


def make_ppo(folder: Path, init_from: Path, rows: Sequence[dict[str, Any]], **groups: Any) -> PPOConfig:
    """See `make_sft`; answers have at most 8 tokens."""
    groups.setdefault("max_new_tokens", 8)
    return _make(PPOConfig, PromptDataConfig, folder, init_from, rows, groups)


def _make(
    kind: type,
    data_kind: type,
    folder: Path,
    init_from: Path,
    rows: Sequence[dict[str, Any]],
    groups: dict[str, Any],
    samples: SampleConfig | None = None,
) -> Any:
    name = groups.pop("run_name", "run")
    path = write_rows(folder / "rows" / f"{name}.jsonl", rows)

    def group(group_kind: type, key: str, **defaults: Any) -> Any:
        return from_plain(group_kind, {**defaults, **groups.pop(key, {})})

    share = 0.0 if groups.get("data", {}).get("validation_paths") else 0.2
    config: dict[str, Any] = {
        "data": group(data_kind, "data", paths=[path], sequence_length=48, batch_size=8, validation_fraction=share),
        "optimizer": group(OptimizerConfig, "optimizer", learning_rate=3e-3, weight_decay=0.0),
        "schedule": group(ScheduleConfig, "schedule", warmup_steps=0),
        "trainer": group(
            TrainerConfig,
            "trainer",
            accelerator="cpu",
            devices=1,
            max_steps=6,
            val_every_n_steps=3,
            save_every_n_steps=2,
            log_every_n_steps=1,
            enable_progress_bar=False,
        ),
        "samples": groups.pop("samples", samples or SampleConfig([], SamplingConfig(max_new_tokens=4))),
    }
    if "lora" in groups:
        config["lora"] = group(LoraConfig, "lora")
    if kind is not RewardConfig:
        groups.setdefault("sample_prompts", 1)
    return kind(run_name=name, output_root=str(folder), init_from=str(init_from), **config, **groups)
