"""Invariant 9 for the stages after pretraining: each option does something, shown by a number, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from chat_rows import save_policy, some_talks, write_rows
from safetensors.torch import load_file
from stage_runs import chat_tokenizer, make_stage, run_stage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_bad_input import refused
from test_options import Watch, values
from test_resume import curves, final_state
from torch.distributed.tensor import DTensor

from lit_llm.config import (
    ConversationDataConfig,
    DPOConfig,
    LoraConfig,
    RewardConfig,
    RowsConfig,
    RunConfig,
    SampleConfig,
    SamplingConfig,
    SFTConfig,
    UserError,
)

STAGES = ("sft", "reward", "dpo")
QUIET = {"max_steps": 3, "val_every_n_steps": None, "save_every_n_steps": None}
LORA = {"rank": 4}


def quiet(stage: str, folder: Path, name: str, **groups: Any) -> Any:
    """A run of three steps that validates and saves at the last one, and writes no samples."""
    groups.setdefault("sample_prompts", 0)
    return make_stage(stage, folder, name, **groups, trainer={**QUIET, **groups.pop("trainer", {})})


def numbers(config: Any) -> torch.Tensor:
    """The losses of the steps, the norms of their gradients, and the loss of the validation."""
    points = curves(config)
    return torch.tensor([value for name in ("train/loss", "train/gradient_norm", "val/loss") for value in values(points[name])])


class Seen(Watch):
    """What passes by in a run, and how often the first block computes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def count(*_: Any) -> None:
            self.passes += pl_module.training

        pl_module.model.blocks[0].feed_forward.register_forward_pre_hook(count)
        self.seen["sharded"] = isinstance(pl_module.model.embedding.weight, DTensor)


class Plain:
    """Runs to compare with, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, stage: str, base: dict[str, Any]) -> torch.Tensor:
        key = f"{stage} {base}"
        if key not in self._kept:
            config = quiet(stage, self.folder, f"plain{len(self._kept)}", **base)
            run_stage(config)
            self._kept[key] = numbers(config)
        return self._kept[key]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return Plain(tmp_path_factory.mktemp("plain"))


def both(plain: Plain, stage: str, base: dict[str, Any], change: dict[str, Any], *callbacks: L.Callback) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of a run with the options `base`, and of one with those of `change`, too."""
    merged = {**base, **change}
    for name in base.keys() & change.keys():
        merged[name] = {**base[name], **change[name]}
    config = quiet(stage, plain.folder, "changed", overwrite=True, **merged)
    run_stage(config, *callbacks)
    return plain(stage, base), numbers(config)


# stages, options that a run has, and what is changed about it: the numbers have to become others
OTHERS: list[tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = [
    (STAGES, {}, {"dropout": 0.3}),
    (STAGES, {}, {"seed": 7}),
    (STAGES, {}, {"data": {"batch_size": 4}}),
    (STAGES, {}, {"data": {"validation_rows": 2}}),
    (STAGES, {}, {"trainer": {"gradient_clip_val": 0.01}, "optimizer": {"eps": 1.0}}),
    (STAGES, {}, {"trainer": {"precision": "bf16-mixed"}}),
    (STAGES, {}, {"lora": LORA}),
    (("sft",), {"lora": LORA}, {"lora": {"rank": 2}}),
    (("sft",), {"lora": LORA}, {"lora": {"alpha": 64.0}}),
    (("sft",), {"lora": LORA}, {"lora": {"dropout": 0.5}}),
    (("sft",), {"lora": LORA}, {"lora": {"targets": ["q_proj"]}}),
    (("sft",), {"lora": LORA}, {"lora": {"rslora": True}}),
    (("sft",), {"lora": LORA}, {"lora": {"dora": True}}),
    (("sft",), {"lora": LORA}, {"lora": {"quantize_base": "int4"}}),
    (("sft",), {}, {"neftune_alpha": 50.0}),
    (("sft",), {}, {"data": {"packing": False}}),
    (("sft",), {}, {"data": {"supervise": "all"}}),
    (("reward",), {}, {"centring": 1.0}),
    (("reward",), {}, {"use_margins": False}),
    (("dpo",), {}, {"beta": 0.5}),
    (("dpo",), {}, {"label_smoothing": 0.2}),
    (("dpo",), {"loss": "simpo"}, {"simpo_gamma": 1.5}),
    (("dpo",), {}, {"sft_weight": 0.5}),
    (("dpo",), {}, {"ld_alpha": 0.3}),
    (("dpo",), {"label_smoothing": 0.2}, {"loss": "robust"}),
    *((("dpo",), {}, {"loss": kind}) for kind in ("hinge", "ipo", "sigmoid_norm", "nca", "bco", "sppo")),
    *((("dpo",), {}, {"loss": kind}) for kind in ("apo_zero", "apo_down", "simpo")),
    (("dpo",), {"label_smoothing": 0.2}, {"loss": "exo"}),
]
# the same numbers in another way, which a `Watch` sees
SAME: list[tuple[tuple[str, ...], dict[str, Any], dict[str, Any], Callable[[Seen], bool]]] = [
    (STAGES, {}, {"data": {"micro_batch_size": 2}}, lambda seen: len(seen.micro_batches) == 12),
    (STAGES, {}, {"data": {"validation_batch_size": 3}}, lambda seen: len(seen.validation_batches[0]) == 3),
    (("sft", "dpo"), {}, {"data": {"num_workers": 2}}, lambda seen: seen.seen["processes"] >= 2),
    (STAGES, {}, {"trainer": {"activation_checkpointing": "full"}}, lambda seen: seen.passes == 6),
    (("sft",), {}, {"trainer": {"activation_checkpointing": "selective"}}, lambda seen: seen.passes == 6),
    (STAGES, {}, {"trainer": {"strategy": "fsdp"}}, lambda seen: seen.seen["sharded"]),
    (STAGES, {"lora": LORA}, {"trainer": {"strategy": "fsdp"}}, lambda seen: seen.seen["sharded"]),
    (("sft", "dpo"), {}, {"loss_chunk_tokens": None}, lambda seen: True),
    (("sft", "dpo"), {}, {"loss_chunk_tokens": 5}, lambda seen: True),
    (("dpo",), {}, {"reference": "live"}, lambda seen: True),
    (("dpo",), {"lora": LORA}, {"reference": "base"}, lambda seen: True),
]


def cases(table: list[Any]) -> list[Any]:
    return [pytest.param(stage, *rest, id=f"{stage} {rest[1]}") for stages, *rest in table for stage in stages]


@pytest.mark.parametrize(("stage", "base", "change"), cases(OTHERS))
def test_an_option_makes_other_numbers(stage: str, base: dict[str, Any], change: dict[str, Any], plain: Plain) -> None:
    before, after = both(plain, stage, base, change)
    assert before.isfinite().all() and after.isfinite().all()
    assert before.shape == after.shape and float((before - after).abs().max()) > 1e-4


@pytest.mark.parametrize(("stage", "base", "change", "happened"), cases(SAME))
def test_an_option_gives_the_same_numbers_in_another_way(
    stage: str, base: dict[str, Any], change: dict[str, Any], happened: Callable[[Seen], bool], plain: Plain
) -> None:
    seen = Seen()
    before, after = both(plain, stage, base, change, seen)
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)
    assert happened(seen)
