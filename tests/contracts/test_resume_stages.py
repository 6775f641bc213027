"""Invariant 1 for the stages after pretraining: killed and resumed, a run is bit-identical to one that was not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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
FEW = {"data": {"batch_size": 4, "validation_rows": 2}}
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
    "ppo": ("ppo", {"update_epochs": 2, "minibatches": 2, "kl_target": 0.5, **FEW}),
    "ppo, head": ("ppo", {"learns_values_by": "head", "whiten_rewards": True, "lora": LORA, **FEW}),
    "grpo": ("ppo", {"algorithm": "grpo", "group_size": 2, **FEW}),
}
# PPO at one rank is in tests/modules/test_ppo.py, too
SLOW = ("sft, noise and workers", "reward, lora", "dpo, live", "dpo, base", "ppo", "ppo, head", "grpo")


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
    # in the middle of step 4, between two checkpoints; and, once resumed, in a later epoch after a validation
    with pytest.raises(RuntimeError, match="power"):
        run_stage(run_of(case, tmp_path, "crashed"), Crash(4 * micro_batches))
    with pytest.raises(RuntimeError, match="power"):
        run_stage(run_of(case, tmp_path, "crashed", ckpt_path="last"), Crash(5 * micro_batches))
    resumed = run_of(case, tmp_path, "crashed", ckpt_path="last")
    run_stage(resumed)
    assert_same_run(straight, resumed)


def test_a_reference_that_was_kept_no_longer_is_computed_again(tmp_path: Path) -> None:
    straight = run_of("dpo", tmp_path, "straight")
    run_stage(straight)
    with pytest.raises(RuntimeError, match="power"):
        run_stage(run_of("dpo", tmp_path, "crashed"), Crash(8))
    kept = list((tmp_path / "reference_log_probs").iterdir())
    assert len(kept) == 2  # of the rows of the two splits, which are the same in both runs
    kept[0].write_bytes(b"damaged")
    kept[1].unlink()
    resumed = run_of("dpo", tmp_path, "crashed", ckpt_path="last")
    run_stage(resumed)
    assert_same_run(straight, resumed)


def launch(config: PostTrainingConfig, stage: str, *arguments: str) -> subprocess.Popen[bytes]:
    """The real script, in a process of its own."""
    recipe = config.folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(to_plain(config)))
    command = [sys.executable, str(ROOT / "experiments" / f"{stage}.py"), "--config", str(recipe), *arguments]
    # sums over another number of threads end in other bits
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dpo", "sft, lora"])
def test_sigkill_of_the_script(case: str, tmp_path: Path) -> None:
    """Killed while or after a checkpoint is written, wherever the process then is."""
    stage = CASES[case][0]
    steps = {"max_steps": 24, "val_every_n_steps": 10}
    straight = run_of(case, tmp_path, "straight", trainer=steps)
    run_stage(straight)
    killed = run_of(case, tmp_path, "killed", trainer=steps)
    checkpoints = killed.folder / "checkpoints"

    process = launch(killed, stage)
    wait_for(lambda: list(checkpoints.glob("step_*.ckpt")), process)
    kill(process)
    process = launch(killed, stage, "--ckpt_path", "last")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert_same_run(straight, killed)


RANKS = ("sft", "reward", "dpo", "sft, lora", "dpo, base", "ppo", "grpo")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c != "dpo" else c for c in RANKS])
def test_killed_ranks_go_on_bit_identically(case: str, tmp_path: Path) -> None:
    trainer = {"max_steps": 20, "val_every_n_steps": 8, "devices": 2, "strategy": "ddp"}
    straight = run_of(case, tmp_path, "straight", trainer=trainer)
    train_on_ranks(straight, 2, port())
    killed = run_of(case, tmp_path, "killed", trainer=trainer)
    kill_when(killed, lambda: list((killed.folder / "checkpoints").glob("step_*.ckpt")))
    killed.ckpt_path = "last"
    train_on_ranks(killed, 2, port())
    assert_same_run(straight, killed)


@pytest.mark.parametrize("stage", ["sft", pytest.param("reward", marks=pytest.mark.slow), "dpo"])
def test_a_run_of_two_ranks_goes_on_at_one(stage: str, tmp_path: Path) -> None:
    options = {"schedule": {"name": "constant", "warmup_steps": 0}, "optimizer": {"learning_rate": 1e-3, "eps": 1e-5}}
    straight = make_stage(stage, tmp_path, "straight", trainer={"max_steps": 8}, **options)
    run_stage(straight)
    train_on_ranks(
        make_stage(stage, tmp_path, "moved", trainer={"max_steps": 4, "devices": 2, "strategy": "ddp"}, **options),
        2,
        port(),
    )
    time.sleep(1.0)  # TensorBoard reads the files of two processes in the order of the seconds they were made in
    moved = make_stage(stage, tmp_path, "moved", trainer={"max_steps": 8}, ckpt_path="last", **options)
    run_stage(moved)
    for name in ("train/loss", "train/gradient_norm", "learning_rate/adamw_decay"):
        found, expected = curves(moved)[name], curves(straight)[name]
        assert [step for step, _ in found] == [step for step, _ in expected] == list(range(1, 9))
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=5e-5)
