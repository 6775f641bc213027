"""Invariant 9 for the stages after pretraining: each option does something, shown by a number, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from stage_runs import make_stage, run_stage
from test_bad_input import refused
from test_options import Watch, values
from test_resume import curves
from torch.distributed.tensor import DTensor

from lit_llm.config import (
    BatchConfig,
    ConversationDataConfig,
    DPOConfig,
    LoraConfig,
    ModelConfig,
    PPOConfig,
    RewardConfig,
    RowsConfig,
    RunConfig,
    SFTConfig,
    from_plain,
)

STAGES = ("sft", "reward", "dpo")
QUIET = {"max_steps": 3, "val_every_n_steps": None, "save_every_n_steps": None}
LORA = {"rank": 4}
PPO = {"data": {"batch_size": 4, "validation_rows": 2}, "update_epochs": 2}
UPDATES = 3 * 2


def quiet(stage: str, folder: Path, name: str, **groups: Any) -> Any:
    """A run of three steps that validates and saves at the last one, and writes no samples."""
    groups.setdefault("sample_prompts", 0)
    trainer = {**QUIET, **groups.pop("trainer", {})}
    return make_stage(stage, folder, name, trainer=trainer, **groups)


def numbers(config: Any) -> torch.Tensor:
    """The losses of the steps, the norms of their gradients, and the loss of the validation."""
    points = curves(config)
    names = ("train/loss", "train/gradient_norm", "val/loss")
    return torch.tensor([value for name in names for value in values(points[name])])


class Seen(Watch):
    """What passes by in a run, and how often the first block computes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def count(module: torch.nn.Module, inputs: Any) -> None:
            self.passes += module.training  # PPO writes its answers in between

        pl_module.model.blocks[0].feedforward.register_forward_pre_hook(count)
        self.seen["sharded"] = isinstance(pl_module.model.embedding.weight, DTensor)
        self.seen["reference"] = bool(getattr(pl_module, "_frozen", [])), bool(getattr(pl_module, "_table", {}))


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


def both(
    plain: Plain, stage: str, base: dict[str, Any], change: dict[str, Any], *callbacks: L.Callback
) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of a run with the options `base`, and of one with those of `change`, too."""
    merged = {**base, **change}
    for name in base.keys() & change.keys():
        if isinstance(base[name], dict):
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
    *(
        (("ppo",), PPO, change)
        for change in (
            {"dropout": 0.3},
            {"seed": 7},
            {"lora": LORA},
            {"trainer": {"precision": "bf16-mixed"}},
            {"discount": 0.5},
            {"gae_lambda": 0.3},
            {"clip_range": 0.01},
            {"value_clip_range": 0.001},
            {"value_coefficient": 1.0},
            {"whiten_advantages": False},
            {"whiten_rewards": True},
            {"kl_coefficient": 1.0},
            {"kl_estimator": "k3"},
            {"kl_target": 0.001, "kl_horizon": 10},
            {"temperature": 1.5},
            {"max_new_tokens": 5},
            {"group_size": 2},
            {"update_epochs": 1},
            {"minibatches": 2},
            {"missing_eos_penalty": 1.0},
            {"reward_weights": [2.0]},
            {"learns_values_by": "head"},
        )
    ),
    (("ppo",), {**PPO, "kl_target": 0.001}, {"kl_horizon": 10}),
    (("ppo",), {**PPO, "group_size": 2}, {"algorithm": "grpo"}),
    (("ppo",), {**PPO, "group_size": 2, "algorithm": "grpo"}, {"clip_range": 0.01}),
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
    (("ppo",), PPO, {"update_micro_batch_size": 2}, lambda seen: seen.passes == 2 * UPDATES),
    (("ppo",), PPO, {"rollout_batch_size": 2}, lambda seen: True),
    (("ppo",), PPO, {"loss_chunk_tokens": 5}, lambda seen: True),
    (("ppo",), PPO, {"data": {"num_workers": 2}}, lambda seen: seen.seen["processes"] >= 2),
    (("ppo",), PPO, {"trainer": {"activation_checkpointing": "full"}}, lambda seen: seen.passes == 2 * UPDATES),
    (("ppo",), PPO, {"trainer": {"strategy": "fsdp"}}, lambda seen: seen.seen["sharded"]),
    (("dpo",), {}, {"reference": "live"}, lambda seen: seen.seen["reference"] == (True, False)),
    (("dpo",), {"lora": LORA}, {"reference": "base"}, lambda seen: seen.seen["reference"] == (False, False)),
]


# changes that one stage shows for all, or that tests of losses, adapters and PPO show, too
SLOW = (
    *(f"dpo {{'loss': '{kind}'}}" for kind in ("sigmoid_norm", "nca", "bco", "sppo", "apo_zero", "apo_down", "exo")),
    *(f"sft {{'lora': {change}}}" for change in ({"alpha": 64.0}, {"rslora": True}, {"targets": ["q_proj"]})),
    *(
        f"{stage} {change}"
        for stage in ("reward", "dpo", "ppo")
        for change in (
            {"seed": 7},
            {"data": {"batch_size": 4}},
            {"data": {"validation_rows": 2}},
            {"data": {"num_workers": 2}},
            {"data": {"validation_batch_size": 3}},
            {"trainer": {"precision": "bf16-mixed"}},
            {"trainer": {"activation_checkpointing": "full"}},
        )
    ),
    *(
        f"ppo {change}"
        for change in (
            {"dropout": 0.3},
            {"gae_lambda": 0.3},
            {"value_clip_range": 0.001},
            {"value_coefficient": 1.0},
            {"whiten_advantages": False},
            {"whiten_rewards": True},
            {"kl_estimator": "k3"},
            {"update_epochs": 1},
            {"minibatches": 2},
            {"reward_weights": [2.0]},
            {"rollout_batch_size": 2},
            {"loss_chunk_tokens": 5},
        )
    ),
)


def cases(table: list[Any]) -> list[Any]:
    named = [(f"{stage} {rest[1]}", stage, *rest) for stages, *rest in table for stage in stages]
    return [pytest.param(*rest, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, *rest in named]


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


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_loss_chunk_tokens(stage: str, plain: Plain) -> None:
    whole, found = None, {}
    for chunk in (None, 5):
        whole, found[chunk] = both(plain, stage, {}, {"loss_chunk_tokens": chunk})
        torch.testing.assert_close(found[chunk], whole, atol=2e-5, rtol=1e-4)
    assert not torch.equal(found[5], found[None])  # sums in another order, so the option has reached the loss


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("stage", STAGES)
def test_compile(stage: str, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo traces the blocks; its eager backend needs no C++ compiler."""
    import torch._dynamo

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager"))
    plain(stage, {})
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    before, after = both(plain, stage, {}, {"trainer": {"compile": True}})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("dpo", {"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing has no effect on loss hinge"),
    ("dpo", {"simpo_gamma": 1.0}, "simpo_gamma has no effect on loss sigmoid"),
    ("dpo", {"loss": "simpo", "reference": "live"}, "simpo has no reference"),
    ("dpo", {"loss": "simpo", "reference_model": "x"}, "simpo has no reference"),
    ("dpo", {"loss": "exo"}, "exo needs label_smoothing"),
    ("dpo", {"reference": "base"}, "give lora.rank"),
    ("dpo", {"reference": "base", "lora": LORA, "reference_model": "x"}, "leave reference_model out"),
    ("dpo", {"reference": "base", "lora": {"adapter": "x"}}, "a folder in which the adapter is merged"),
    *((stage, {"lora": {"alpha": 8.0}}, "lora.alpha has no effect while lora.rank is 0") for stage in STAGES),
    *((stage, {"lora": LORA, "trainer": {"strategy": "fsdp", "tensor_parallel_size": 2}}, "lora") for stage in STAGES),
    ("dpo", {"trainer": {"strategy": "fsdp", "context_parallel_size": 2}}, "for pretrain and sft"),
    ("sft", {"lora": {**LORA, "quantize_base": "int8"}, "trainer": {"strategy": "fsdp"}}, "lora.quantize_base"),
    (
        "sft",
        {"lora": {**LORA, "dora": True}, "trainer": {"strategy": "fsdp", "precision": "bf16-mixed"}},
        "lora.dora with trainer.strategy fsdp",
    ),
    *(
        (stage, {"data": {"validation_paths": ["x"], "validation_fraction": 0.5}}, "with data.validation_paths")
        for stage in STAGES
    ),
    *((stage, {"model": {"hidden_size": 48}}, "model.hidden_size has no effect") for stage in STAGES),
    *((stage, {"model": {"dropout": 0.5}}, "model.dropout has no effect") for stage in STAGES),
    ("sft", {"model": {"output": "score", "tie_word_embeddings": False}}, "model.tie_word_embeddings has no effect"),
    ("sft", {"model": {"logits_softcap": 5.0}}, "model.logits_softcap has no effect"),
    ("sft", {"neftune_alpha": -1.0}, "neftune_alpha is -1.0"),
    ("reward", {"centring": -1.0}, "centring is -1.0"),
    ("dpo", {"beta": 0.0}, "beta is 0.0"),
    ("dpo", {"ld_alpha": 1.5}, "ld_alpha is 1.5"),
    ("dpo", {"sft_weight": -0.1}, "sft_weight is -0.1"),
    *((stage, {"epochs": 0.0}, "epochs is 0.0") for stage in STAGES),
    *((stage, {"dropout": 1.0}, "dropout is 1.0") for stage in STAGES),
]


@pytest.mark.parametrize(("stage", "options", "part"), REFUSED)
def test_an_option_without_effect_is_refused(stage: str, options: dict[str, Any], part: str, tmp_path: Path) -> None:
    if "model" in options:
        options = {**options, "model": from_plain(ModelConfig, options["model"])}
    refused(lambda: run_stage(quiet(stage, tmp_path, "run", **options)), part)
    assert not (tmp_path / "run").exists()


ELSEWHERE = {
    "paths": "every test",
    "add_chat_tokens": "test_stage_bad_input",
    "samples": "test_samples",
    "rewards": "test_rewards",
    "score_margin_scale": "test_reward",
    "data": "its fields",
    "lora": "its fields",
    "optimizer": "test_options_run",
    "schedule": "test_options_run",
    "run_name": "test_options_run",
}


@pytest.mark.parametrize(
    "kind", [SFTConfig, RewardConfig, DPOConfig, PPOConfig, ConversationDataConfig, LoraConfig, RowsConfig]
)
def test_every_option_is_tried(kind: type) -> None:
    """A new option has to be, too."""
    inherited = {field.name for base in (RunConfig, BatchConfig) if issubclass(kind, base) for field in fields(base)}
    here = Path(__file__)
    text = here.read_text() + here.with_name("test_stage_options_run.py").read_text()
    for field in fields(kind):
        assert (
            field.name in inherited or field.name in ELSEWHERE or f'"{field.name}"' in text or f"{field.name}=" in text
        )
