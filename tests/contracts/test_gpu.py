"""What only a CUDA device can show: each strategy, precision and compilation on one, exact resume, and less memory."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun, tiny_model
from ranks import train_on_ranks
from test_resume import Crash, assert_same_run, curves

from lit_llm.config import PretrainConfig, SampleConfig, TrainerConfig
from lit_llm.model import Decoder
from lit_llm.model.parallel import arrange
from lit_llm.stages.pretrain import pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def on_gpu(make_run: MakeRun, name: str, trainer: dict[str, Any], **groups: Any) -> PretrainConfig:
    exact = {"float32_matmul_precision": "highest"}  # the default rounds to TF32
    fields = {"accelerator": "gpu", "devices": 1, "max_steps": 8, **exact, **trainer}
    return make_run(name, trainer=fields, optimizer={"learning_rate": 1e-3, "eps": 1e-5}, **groups)


def losses(config: PretrainConfig) -> torch.Tensor:
    return torch.tensor([value for _, value in curves(config)["train/loss"]])


@pytest.mark.parametrize(
    ("trainer", "tolerance"),
    [
        ({}, 1e-4),
        ({"compile": True}, 1e-3),
        ({"activation_checkpointing": "selective"}, 1e-4),
        ({"precision": "bf16-mixed"}, 0.05),
        ({"precision": "bf16-mixed", "compile": True, "activation_checkpointing": "full"}, 0.05),
        ({"precision": "bf16-true"}, 0.2),
    ],
)
def test_one_gpu_is_the_cpu(trainer: dict[str, Any], tolerance: float, make_run: MakeRun) -> None:
    cpu = on_gpu(make_run, "cpu", {"accelerator": "cpu"})
    gpu = on_gpu(make_run, "gpu", trainer)
    pretrain(cpu)
    pretrain(gpu)
    assert (losses(cpu) - losses(gpu)).abs().max() < tolerance


@pytest.mark.parametrize(
    "trainer",
    [
        {"strategy": "ddp"},
        {"strategy": "fsdp"},
        {"strategy": "fsdp", "precision": "bf16-mixed", "compile": True},
        {"strategy": "fsdp", "offload": True},
        {"strategy": "fsdp", "sharded_checkpoints": True, "async_checkpoints": True},
        {"strategy": "fsdp1"},
        {"strategy": "deepspeed", "deepspeed_stage": 1},
        {"strategy": "deepspeed", "deepspeed_stage": 2, "offload": True},
        {"strategy": "deepspeed", "deepspeed_stage": 3},
    ],
    ids=lambda trainer: ",".join(map(str, trainer.values())),
)
def test_each_strategy_on_one_gpu(trainer: dict[str, Any], make_run: MakeRun, free_port: int) -> None:
    if trainer["strategy"] == "deepspeed":
        pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    alone = on_gpu(make_run, "alone", {}, samples=SampleConfig(prompts=[]))
    config = on_gpu(make_run, "strategy", trainer, samples=SampleConfig(prompts=[]))
    pretrain(alone)
    train_on_ranks(config, 1, free_port)
    assert (losses(alone) - losses(config)).abs().max() < (0.05 if "precision" in trainer else 1e-3)
    longer: dict[str, Any] = {"ckpt_path": "last", "resume_changed": True}  # the rates fall until the last step
    resumed = on_gpu(make_run, "strategy", {**trainer, "max_steps": 10}, samples=SampleConfig(prompts=[]), **longer)
    train_on_ranks(resumed, 1, free_port)
    assert [step for step, _ in curves(resumed)["train/loss"]] == list(range(1, 11))


def test_resume_is_exact(make_run: MakeRun) -> None:
    options: dict[str, Any] = {"model": {"dropout": 0.1}, "data": {"micro_batch_size": 2}}
    trainer = {"deterministic": True, "precision": "bf16-mixed"}
    straight = on_gpu(make_run, "straight", trainer, **options)
    pretrain(straight)
    crash: L.Callback = Crash(9)
    with pytest.raises(RuntimeError, match="power"):
        pretrain(on_gpu(make_run, "crashed", trainer, **options), callbacks=[crash])
    resumed = on_gpu(make_run, "crashed", trainer, **options, ckpt_path="last")
    pretrain(resumed)
    assert_same_run(straight, resumed)


def test_checkpointing_needs_less_memory() -> None:
    peaks = {}
    for choice in ("none", "selective", "every_n", "full"):
        config = tiny_model(hidden_size=512, num_layers=8, intermediate_size=2048, max_position_embeddings=1024)
        model = Decoder(config).cuda()
        arrange(model, TrainerConfig(activation_checkpointing=choice), None)
        torch.cuda.reset_peak_memory_stats()
        model(torch.zeros(8, 1024, dtype=torch.long, device="cuda")).float().mean().backward()
        peaks[choice] = torch.cuda.max_memory_allocated()
        del model
        torch.cuda.empty_cache()
    assert peaks["full"] < peaks["every_n"] < peaks["none"]
    assert peaks["full"] < peaks["selective"] < peaks["none"]
