"""Invariant 8: a run is the same on one device, replicated, sharded, split, cut into micro-batches or recomputed.

Rows have ragged supervision, clipping bites, and each run validates, writes samples and saves while all ranks take
part: one that leaves a collective out would hang, and `train_on_ranks` fails after a while instead.

The same to the rounding of float32. Muon with Newton-Schulz in bfloat16 keeps each update to a percent only: what holds
in each arithmetic is tested in tests/model/test_parallel.py.
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

from lit_llm.config import PretrainConfig
from lit_llm.stages.pretrain import pretrain

STEPS = 24
CURVES = ("train/loss", "train/gradient_norm", "val/loss", "val/bits_per_byte", "learning_rate/adamw_decay")

# name: (ranks, fields of the trainer, fields of the data)
RUNS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "ddp": (2, {"strategy": "ddp"}, {}),
    "fsdp": (2, {"strategy": "fsdp"}, {"micro_batch_size": 2}),
    "tensor parallel": (2, {"strategy": "fsdp", "tensor_parallel_size": 2}, {}),
    "accumulation": (1, {}, {"micro_batch_size": 2}),
    "checkpointing": (1, {"activation_checkpointing": "selective"}, {}),
    "fsdp, checkpointing": (2, {"strategy": "fsdp", "activation_checkpointing": "full"}, {}),
    "fsdp on one": (1, {"strategy": "fsdp", "activation_checkpointing": "every_n"}, {}),
    "context parallel": (4, {"strategy": "fsdp", "context_parallel_size": 2, "fsdp_replicas": 2}, {}),
    "hybrid": (4, {"strategy": "fsdp", "tensor_parallel_size": 2, "sharded_checkpoints": True}, {}),
}
SLOW = ("fsdp, checkpointing", "fsdp on one", "context parallel", "hybrid")


def run_of(make_run: MakeRun, name: str, shards: Path, trainer: dict[str, Any], data: dict[str, Any]) -> PretrainConfig:
    return make_run(
        name,
        architecture="qwen3-0.6b",
        model={"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False},
        data={"paths": [str(shards)], "mask_documents": True, "batch_size": 8, "validation_windows": 7, **data},
        # a rate and an epsilon at which Adam does not blow up the rounding of a sum in another order
        optimizer={"learning_rate": 1e-3, "eps": 1e-5},
        trainer={
            "max_steps": STEPS,
            "val_every_n_steps": 8,
            "save_every_n_steps": 12,
            "gradient_clip_val": 0.3,
            **trainer,
        },
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PretrainConfig]:
    """The run on one device, once it has been made."""
    return {}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RUNS])
def test_same_answer(
    name: str, make_run: MakeRun, short_documents: Path, free_port: int, reference: dict[str, PretrainConfig]
) -> None:
    if "plain" not in reference:
        reference["plain"] = run_of(make_run, "plain", short_documents, {}, {})
        pretrain(reference["plain"])
    plain = reference["plain"]
    ranks, trainer, data = RUNS[name]
    config = run_of(make_run, "other", short_documents, {"devices": ranks, **trainer}, data)
    if config.trainer.strategy == "auto":
        pretrain(config)
    else:
        train_on_ranks(config, ranks, free_port)

    points, expected = curves(config), curves(plain)
    norms = [value for _, value in expected["train/gradient_norm"]]
    assert len(norms) == STEPS
    assert min(norms) > 0.3  # every step is clipped
    for curve in CURVES:
        assert [step for step, _ in points[curve]] == [step for step, _ in expected[curve]], curve
        differences = torch.tensor([a - b for (_, a), (_, b) in zip(points[curve], expected[curve], strict=True)]).abs()
        assert differences.max() < 5e-5, curve
        assert differences.mean() < 1e-5, curve
    weights, others = (load_file(run.folder / "model" / "model.safetensors") for run in (config, plain))
    for parameter, value in weights.items():
        torch.testing.assert_close(value, others[parameter], atol=5e-5, rtol=0.0, msg=parameter)
    assert (
        torch.cat([value.flatten() for value in weights.values()])
        .sub(torch.cat([value.flatten() for value in others.values()]))
        .abs()
        .mean()
        < 2e-6
    )
