"""DeepSpeed's ZeRO over two ranks on the CPU is one device: losses, norms, weights; and it goes on from its own folder.

Rows have ragged supervision over two ranks and two micro-batches, and every step is clipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun
from ranks import train_on_ranks
from safetensors.torch import load_file
from test_resume import curves

from lit_llm.config import PretrainConfig, SampleConfig
from lit_llm.stages.pretrain import pretrain

STEPS = 6
CLIP = 0.3
# bfloat16 has 8 bits; ZeRO reads bfloat16 weights where one device rounds float32 ones in each product
DIFFERENCE = {"32-true": 5e-5, "bf16-mixed": 2**-6}


def run_of(make_run: MakeRun, name: str, shards: Path, trainer: dict[str, Any], **groups: Any) -> PretrainConfig:
    return make_run(
        name,
        data={"paths": [str(shards)], "mask_documents": True, "batch_size": 8, "micro_batch_size": 2},
        optimizer={"learning_rate": 1e-3, "eps": 1e-5},
        trainer={"max_steps": STEPS, "gradient_clip_val": CLIP, "val_every_n_steps": 3, **trainer},
        samples=SampleConfig(prompts=[]),
        **groups,
    )


def assert_same(config: PretrainConfig, plain: PretrainConfig, difference: float) -> None:
    points, expected = curves(config), curves(plain)
    for curve in ("train/loss", "train/gradient_norm", "val/loss"):
        assert [step for step, _ in points[curve]] == [step for step, _ in expected[curve]], curve
        pairs = zip(points[curve], expected[curve], strict=True)
        assert max(abs(a / b - 1) for (_, a), (_, b) in pairs) < difference, curve
    assert min(norm for _, norm in points["train/gradient_norm"]) > CLIP
    weights, others = (load_file(run.folder / "model" / "model.safetensors") for run in (config, plain))
    for parameter, value in weights.items():
        torch.testing.assert_close(value.float(), others[parameter].float(), atol=difference, rtol=0.0, msg=parameter)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"), [(1, "32-true"), (2, "32-true"), (3, "32-true"), (1, "bf16-mixed"), (2, "bf16-mixed")]
)
def test_ranks_are_one_device(
    stage: int, precision: str, make_run: MakeRun, short_documents: Path, free_port: int
) -> None:
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    plain = run_of(make_run, "plain", short_documents, {"precision": precision})
    pretrain(plain)
    trainer = {"strategy": "deepspeed", "deepspeed_stage": stage, "devices": 2, "precision": precision}
    config = run_of(make_run, "zero", short_documents, trainer)
    train_on_ranks(config, 2, free_port)
    assert_same(config, plain, DIFFERENCE[precision])
    if precision == "32-true":
        fourth = str(config.folder / "checkpoints" / "step_00000004.ckpt")
        train_on_ranks(run_of(make_run, "zero", short_documents, trainer, ckpt_path=fourth), 2, free_port)
        assert_same(config, plain, DIFFERENCE[precision])
