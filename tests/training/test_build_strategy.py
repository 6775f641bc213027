"""Each strategy is built from its options, or refused with the one to use instead."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import logging
import os
import sys
import types
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lit_llm.config import TrainerConfig, UserError
from lit_llm.model.parallel import compiles
from lit_llm.training.checkpoint_files import damage
from lit_llm.training.sharded import ShardedStrategy
from lit_llm.training.strategies import build_strategy, data_parallel_processes, set_matmul_precision, trainer_precision


def cpu(**fields: Any) -> TrainerConfig:
    return TrainerConfig(accelerator="cpu", **fields)


def test_by_number_of_devices() -> None:
    assert build_strategy(cpu()) == "auto"
    ddp = build_strategy(cpu(devices=2, timeout_minutes=5.0))
    assert type(ddp) is DDPStrategy
    assert ddp._timeout == timedelta(minutes=5)
    # nothing of what never changes is sent in every forward pass; torch warns of the older name where there is a newer
    names = ["broadcast_buffers", "forward_sync_buffers"]
    known = [name for name in names if name in signature(DistributedDataParallel).parameters]
    assert {name: ddp._ddp_kwargs[name] for name in names if name in ddp._ddp_kwargs} == {known[-1]: False}
    assert type(build_strategy(cpu(strategy="ddp"))) is DDPStrategy


def test_fsdp_divides_the_ranks() -> None:
    config = cpu(strategy="fsdp", devices=4, num_nodes=3, tensor_parallel_size=2, sharded_checkpoints=True)
    strategy = build_strategy(config)
    assert type(strategy) is ShardedStrategy
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (6, 2)
    assert strategy._save_distributed_checkpoint
    assert data_parallel_processes(config) == 6
    with pytest.raises(UserError, match="does not divide the number of processes"):
        build_strategy(cpu(strategy="fsdp", devices=3, tensor_parallel_size=2))
    texts = cpu(strategy="fsdp", devices=8, tensor_parallel_size=2, context_parallel_size=2)
    assert build_strategy(texts)._data_parallel_size == 4  # ranks that share a text share the weights out
    assert data_parallel_processes(texts) == 2
    with pytest.raises(UserError, match=r"context_parallel_size 4 does not divide the .* / trainer.tensor_parallel_si"):
        build_strategy(cpu(strategy="fsdp", devices=4, tensor_parallel_size=2, context_parallel_size=4))


def test_sharding_casts_by_itself() -> None:
    assert trainer_precision(cpu(strategy="fsdp", precision="bf16-mixed")) == "32-true"
    assert trainer_precision(cpu(strategy="fsdp", precision="bf16-true")) == "bf16-true"
    assert trainer_precision(cpu(precision="bf16-mixed")) == "bf16-mixed"


def test_without_cuda_another_one_is_named() -> None:
    with pytest.raises(UserError, match="needs CUDA; use fsdp"):
        build_strategy(cpu(strategy="fsdp1"))


def test_offloading_needs_a_gpu() -> None:
    with pytest.raises(UserError, match=r"trainer\.offload"):
        build_strategy(cpu(strategy="fsdp", offload=True))


def test_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments only: no device is touched before a run starts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    strategy = build_strategy(TrainerConfig(strategy="fsdp1", accelerator="gpu", devices=2))
    assert isinstance(strategy, FSDPStrategy)
    assert strategy.kwargs["use_orig_params"]
    config = TrainerConfig(strategy="deepspeed", accelerator="gpu", devices=2, deepspeed_stage=3, offload=True)
    installed(monkeypatch, "deepspeed")
    options = build_strategy(config, micro_batch_size=6).config
    assert options["zero_optimization"]["stage"] == 3
    assert options["zero_optimization"]["offload_param"]["device"] == "cpu"
    # "auto" makes a second training loader and asks its sampler, which has no batch_size
    assert options["train_micro_batch_size_per_gpu"] == 6
    assert options["zero_force_ds_cpu_optimizer"] is False  # or it refuses torch's AdamW for what is offloaded


def test_deepspeed_on_the_cpu_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert build_strategy(cpu(strategy="deepspeed", devices=2)).config["zero_optimization"]["stage"] == 2
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    assert sys.modules["deepspeed"].ops.__compatible_ops__["deepspeed_shm_comm"] is False


def installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The package, or as much of it as Lightning touches before a run starts."""
    if importlib.util.find_spec(name) is None:
        package = types.ModuleType(name)
        package.__spec__ = importlib.machinery.ModuleSpec(name, None)
        package.utils = types.SimpleNamespace(logging=types.SimpleNamespace(logger=logging.getLogger(name)))
        package.ops = types.SimpleNamespace(__compatible_ops__={})
        monkeypatch.setitem(sys.modules, name, package)
        for switch in ("_DEEPSPEED_AVAILABLE", "_DEEPSPEED_GREATER_EQUAL_0_16"):
            monkeypatch.setattr(f"lightning.pytorch.strategies.deepspeed.{switch}", True)


def test_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default where it pays: on CUDA, in a run that is not over before."""
    assert [TrainerConfig(max_steps=steps).compiles("cuda") for steps in (499, 500)] == [False, True]
    assert not TrainerConfig(max_steps=500).compiles("cpu")
    assert [TrainerConfig(compile=asked).compiles("cpu") for asked in (True, False)] == [True, False]
    assert not TrainerConfig(compile=False).compiles("cuda")
    long = TrainerConfig(max_steps=500)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not compiles(long)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert compiles(long) and not compiles(cpu(max_steps=500))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not compiles(long) and compiles(TrainerConfig(compile=True))


def test_products_on_cuda_are_tf32_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    set_matmul_precision(cpu())
    set_matmul_precision(cpu(float32_matmul_precision="highest"))
    assert seen == []  # oneDNN would round by it, on processors that can
    with pytest.raises(UserError, match="float32_matmul_precision high is for CUDA"):
        set_matmul_precision(cpu(float32_matmul_precision="high"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for choice in (None, "highest", "high", "medium"):
        set_matmul_precision(TrainerConfig(float32_matmul_precision=choice))
    assert seen == ["high", "highest", "high", "medium"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size above 1 needs trainer.strategy fsdp"),
        ({"context_parallel_size": 2}, "context_parallel_size needs trainer.strategy fsdp"),
        ({"sharded_checkpoints": True}, "sharded_checkpoints needs trainer.strategy fsdp"),
        ({"offload": True, "strategy": "ddp"}, "offload needs trainer.strategy fsdp or deepspeed"),
        ({"deepspeed_stage": 3}, "deepspeed_stage needs trainer.strategy deepspeed"),
        ({"strategy": "deepspeed", "spike_action": "skip"}, "spike_action skip needs the gradient"),
    ],
)
def test_options_without_effect_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        TrainerConfig(**fields)


def test_what_fsdp1_and_deepspeed_cannot_do(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="muon needs whole matrices"):
        make_run(optimizer={"name": "muon"}, trainer={"strategy": "deepspeed"})
    with pytest.raises(UserError, match=r"samples\.prompts to \[\]"):
        make_run(trainer={"strategy": "fsdp1"})


def test_a_deepspeed_folder_is_marked_as_whole(tmp_path: Path) -> None:
    from lit_llm.training.deepspeed import mark_whole

    partial, target = tmp_path / ".step_00000002.ckpt.partial", tmp_path / "step_00000002.ckpt"
    (partial / "checkpoint").mkdir(parents=True)
    (partial / "checkpoint" / "zero_pp_rank_0.pt").write_bytes(b"12345")
    mark_whole(partial, target)
    assert not partial.exists()
    assert damage(target) is None
    assert json.loads((target / "manifest.json").read_text())["files"]["checkpoint/zero_pp_rank_0.pt"]["bytes"] == 5
    (target / "checkpoint" / "zero_pp_rank_0.pt").write_bytes(b"1234")
    assert "another size" in damage(target)
