"""Invariant 1 for the stages after pretraining: killed and resumed, a run is bit-identical to one that was not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from ranks import train_on_ranks
from run_files import assert_identical
from stage_runs import make_stage, run_stage
from test_resume import Crash, curves, final_state, kill, wait_for
from test_resume_ranks import kill_when, port

from lit_llm.config import PostTrainingConfig, to_plain

DROPOUT = {"dropout": 0.2}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.2}

# 48 training rows: a pair's epoch has 6 steps, that of packed conversations 2 to 3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {**DROPOUT, "data": {"micro_batch_size": 4}}),
    "sft, noise and workers": ("sft", {"neftune_alpha": 5.0, "data": {"packing": False, "num_workers": 1}}),
    "sft, lora": ("sft", {**DROPOUT, "lora": LORA}),
    "reward": ("reward", {**DROPOUT, "data": {"micro_batch_size": 4}}),
    "reward, lora": ("reward", {"lora": {**LORA, "dora": True}, "trainer": {"precision": "bf16-mixed"}}),
    "dpo": ("dpo", {**DROPOUT, "data": {"micro_batch_size": 4}}),
    "dpo, live": ("dpo", {**DROPOUT, "reference": "live", "loss": "ipo"}),
    "dpo, base": ("dpo", {"lora": LORA, "reference": "base"}),
}
SLOW = ("sft, noise and workers", "reward, lora", "dpo, live")


def assert_same_run(straight: PostTrainingConfig, resumed: PostTrainingConfig) -> None:
    """Weights, moments, schedule, position in the data, random states and curves."""
    one, other = final_state(straight), final_state(resumed)
    assert one.keys() == other.keys() and one["global_step"] == straight.trainer.max_steps
    (data,) = (key for key in one if key.endswith("DataModule"))
    assert one[data]["samples_consumed"] == straight.trainer.max_steps * straight.data.batch_size
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", data):
        assert_identical(one[key], other[key], key)
    assert_identical(one["callbacks"]["ExactResume"], other["callbacks"]["ExactResume"], "random state")
    assert_identical(curves(straight), curves(resumed), "curves")
    assert {"train/loss", "val/loss", "train/gradient_norm"} <= curves(straight).keys()


def run_of(case: str, folder: Path, name: str, **more: Any) -> Any:
    stage, options = CASES[case]
    trainer = {"max_steps": 8, **options.get("trainer", {}), **more.pop("trainer", {})}
    return make_stage(stage, folder, name, **{**options, "trainer": trainer}, **more)


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES])
def test_a_crashed_run_goes_on_bit_identically(case: str, tmp_path: Path) -> None:
    straight = run_of(case, tmp_path, "straight")
    run_stage(straight)
    micro_batches = straight.data.batch_size // (straight.data.micro_batch_size or straight.data.batch_size)
    # once between two checkpoints, once in a later epoch, right after a validation
    for name, batch in (("between", 4 * micro_batches), ("after", 7 * micro_batches - 1)):
        with pytest.raises(RuntimeError, match="power"):
            run_stage(run_of(case, tmp_path, name), Crash(batch))
        resumed = run_of(case, tmp_path, name, ckpt_path="last")
        run_stage(resumed)
        assert_same_run(straight, resumed)
