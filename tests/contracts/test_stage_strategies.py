"""Invariant 8 for the stages after pretraining: one answer on one device, replicated, sharded or split; and replay.

Conversations and answers differ in length, clipping bites, and validation rows do not divide by the ranks.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from chat_rows import save_policy
from conftest import tiny_model
from ranks import STAGES, train_on_ranks
from safetensors.torch import load_file
from stage_runs import chat_tokenizer, make_stage, run_stage
from test_resume import curves

from lit_llm.cli import main
from lit_llm.config import SampleConfig, UserError
from lit_llm.model import Decoder
from lit_llm.stages.dpo import build_dpo
from lit_llm.stages.reward import build_reward
from lit_llm.stages.sft import build_sft
from lit_llm.training.replay import ReplayReport, recorded_run, replay_step

STEPS = 8
BUILD = {"sft": build_sft, "reward": build_reward, "dpo": build_dpo}
TENSOR_PARALLEL = {"strategy": "fsdp", "tensor_parallel_size": 2}

# stage, options, trainer
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sft ddp": ("sft", {}, {"strategy": "ddp"}),
    "sft fsdp": ("sft", {"data": {"micro_batch_size": 2}}, {"strategy": "fsdp"}),
    "sft tensor parallel": ("sft", {}, TENSOR_PARALLEL),
    "sft context parallel": (
        "sft",
        {"lora": {"rank": 4}, "data": {"micro_batch_size": 2}},
        {"strategy": "fsdp", "context_parallel_size": 2},
    ),
    "reward ddp": ("reward", {}, {"strategy": "ddp"}),
    "reward fsdp": ("reward", {}, {"strategy": "fsdp", "activation_checkpointing": "full"}),
    "reward tensor parallel": ("reward", {}, TENSOR_PARALLEL),
    "dpo ddp": ("dpo", {"data": {"micro_batch_size": 2}}, {"strategy": "ddp"}),
    "dpo fsdp": ("dpo", {}, {"strategy": "fsdp", "sharded_checkpoints": True}),
    "dpo fsdp, live": ("dpo", {"reference": "live"}, {"strategy": "fsdp"}),
    "dpo tensor parallel": ("dpo", {"reference": "live"}, TENSOR_PARALLEL),
    "sft lora fsdp": ("sft", {"lora": {"rank": 4}}, {"strategy": "fsdp"}),
    "dpo lora fsdp": ("dpo", {"lora": {"rank": 4}, "reference": "base"}, {"strategy": "fsdp"}),
}
FAST = ("sft ddp", "sft tensor parallel", "reward fsdp", "dpo fsdp, live")


def run_of(stage: str, folder: Path, name: str, trainer: dict[str, Any], **options: Any) -> Any:
    policy = folder / "policy"
    if not policy.exists():
        fields = {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
        sizes = {"vocab_size": chat_tokenizer().vocab_size, "max_position_embeddings": 64}
        save_policy(policy, chat_tokenizer(), Decoder(tiny_model("qwen3-0.6b", **sizes, **fields), seed=1))
    return make_stage(
        stage,
        folder,
        name,
        # a rate and an epsilon at which Adam does not blow up the rounding of a sum in another order
        optimizer={"learning_rate": 1e-3, "eps": 1e-5},
        trainer={
            "max_steps": STEPS,
            "val_every_n_steps": 4,
            "save_every_n_steps": 4,
            "gradient_clip_val": 0.05,
            **trainer,
        },
        **options,
    )


class Kept:
    """Runs on one device, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, Any] = {}

    def __call__(self, stage: str, options: dict[str, Any]) -> Any:
        key = f"{stage} {sorted(set(options) & {'lora'})}"
        if key not in self._runs:
            lora = {name: options[name] for name in options if name in ("lora", "reference") and "lora" in options}
            self._runs[key] = run_of(stage, self.folder, f"plain{len(self._runs)}", {}, **lora)
            run_stage(self._runs[key])
        return self._runs[key]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_same_answer(name: str, plain: Kept, tmp_path: Path, free_port: int) -> None:
    stage, options, trainer = RUNS[name]
    expected_run = plain(stage, options)
    config = run_of(stage, tmp_path, "run", {"devices": 2, **trainer}, **options)
    train_on_ranks(config, 2, free_port)
    found, expected = curves(config), curves(expected_run)
    assert min(value for _, value in expected["train/gradient_norm"]) > 0.05  # every step is clipped
    names = [name for name in expected if name.startswith(("train/", "val/", "rewards/", "logps/", "learning_rate/"))]
    assert len(names) > 5
    for curve in names:
        assert [step for step, _ in found[curve]] == [step for step, _ in expected[curve]], curve
        if curve == "rewards/accuracies":  # of the first step, where all rewards are 0 up to rounding
            found[curve], expected[curve] = found[curve][1:], expected[curve][1:]
        scale = 10 if "calibration" in curve or "logps" in curve or "perplexity" in curve else 1
        assert [value for _, value in found[curve]] == pytest.approx(
            [value for _, value in expected[curve]], abs=5e-5 * scale, rel=1e-5
        ), curve
    weights, others = (load_file(run.folder / "model" / "model.safetensors") for run in (config, expected_run))
    assert weights.keys() == others.keys()
    for parameter, value in weights.items():
        torch.testing.assert_close(value, others[parameter], atol=5e-5, rtol=0.0, msg=parameter)


# replay

# any step above the mean of those before is written down
NOTICED = {"spike_window": 4, "spike_sigmas": 1e-6, "save_every_n_steps": 1, "keep_last_checkpoints": 9}
REPLAYED: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"dropout": 0.2, "data": {"micro_batch_size": 4}}),
    "sft, noise": ("sft", {"neftune_alpha": 5.0, "epochs": 3}),
    "sft, lora": ("sft", {"dropout": 0.2, "lora": {"rank": 4, "dropout": 0.2}}),
    "reward": ("reward", {"dropout": 0.2}),
    "reward, bf16": ("reward", {"trainer": {"precision": "bf16-mixed"}, "lora": {"rank": 4, "dora": True}}),
    "dpo": ("dpo", {"dropout": 0.2, "data": {"micro_batch_size": 4}}),
    "dpo, live": ("dpo", {"dropout": 0.2, "reference": "live"}),
    "dpo, base": ("dpo", {"lora": {"rank": 4}, "reference": "base"}),
    "dpo, simpo": ("dpo", {"loss": "simpo", "beta": 0.1}),
}

QUICK = ("sft, noise", "sft, lora", "reward", "dpo", "dpo, live")


def replayed(stage: str, file: Path, **options: Any) -> ReplayReport:
    kind = next(kind for kind, run in STAGES.items() if run.__name__ == stage)
    record, config = recorded_run(kind(replay=str(file), **options))
    return replay_step(record, config, *BUILD[stage](config))


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in REPLAYED]
)
def test_the_recorded_loss_comes_out_again_bit_for_bit(case: str, tmp_path: Path) -> None:
    stage, options = REPLAYED[case]
    trainer = {**NOTICED, **options.get("trainer", {})}
    config = make_stage(stage, tmp_path, "run", **{**options, "trainer": trainer})
    run_stage(config)
    before = {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()}
    files = sorted((config.folder / "replay").glob("*.json"))
    assert files
    report = replayed(stage, files[-1])
    assert report.reproduced and report.same_weights and report.loss == report.record.loss
    assert report.gradient_norm == pytest.approx(report.record.gradient_norm, rel=1e-5)
    assert {each.index for each in report.samples} == {each.index for each in report.record.samples}
    assert "run.jsonl, row " in report.place and report.excerpt
    assert {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()} == before


class Poison(L.Callback):
    """Makes a weight infinite before step 3."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 2:
            with torch.no_grad():
                pl_module.model.blocks[1].feedforward_norm.weight[0] = math.inf


@pytest.mark.parametrize("stage", BUILD)
def test_a_step_that_is_not_finite(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the weights are written once they are refused
    config = make_stage(stage, tmp_path, "bad", samples=SampleConfig([]), trainer={"save_every_n_steps": None})
    with pytest.raises(UserError, match="step 3 is not finite") as error:
        run_stage(config, Poison())
    (file,) = (config.folder / "replay").glob("*.json")
    assert f"--replay {file}" in str(error.value)
    capsys.readouterr()
    kind = type(config)
    main(kind, STAGES[kind], ["--replay", str(file)])  # and does not exit with an error
    out = capsys.readouterr().out
    assert "blocks.1" in out and "worst sample" in out and "not finite: blocks.1.feedforward_norm.weight" in out
    # an option that is not the run's is refused
    with pytest.raises(SystemExit):
        main(kind, STAGES[kind], ["--replay", str(file), "--dropout", "0.5"])
    assert "dropout is 0.5, but the run that is replayed had 0.0" in capsys.readouterr().err
    assert json.loads(file.read_text())["step"] == 3
