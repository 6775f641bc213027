"""Runs a function in several processes that talk over gloo."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lit_llm.config import (
    DPOConfig,
    ModelConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
    TrainerConfig,
)
from lit_llm.model import Decoder
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.parallel import arrange
from lit_llm.stages.dpo import dpo
from lit_llm.stages.ppo import ppo
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.reward import reward
from lit_llm.stages.sft import sft

# Ranks are forked from a server that has imported what they need and started no thread: a fork of the test process
# itself would inherit locks that its threads hold, and cannot use CUDA.
START_METHOD = "forkserver"
multiprocessing.set_forkserver_preload(
    ["conftest", "lit_llm.training.run", "lit_llm.modules", "lit_llm.generation", "torch.utils.tensorboard"]
)

STAGES: dict[type[RunConfig], Callable[..., Any]] = {
    PretrainConfig: pretrain,
    SFTConfig: sft,
    RewardConfig: reward,
    DPOConfig: dpo,
    PPOConfig: ppo,
}
"""What runs each kind of configuration."""


def _enter(rank: int, function: Callable[..., None], world_size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    store = dist.FileStore(str(folder / "store"), world_size)
    # a rank that fails or hangs fails the test instead of holding it up
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timedelta(seconds=90))
    function(*arguments)
    dist.destroy_process_group()


def run_ranks(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any) -> None:
    """Call `function(*arguments)` in `world_size` processes; an exception in one of them is raised here."""
    (folder / "store").unlink(missing_ok=True)
    multiprocessing.start_processes(
        _enter, (function, world_size, folder, arguments), nprocs=world_size, start_method=START_METHOD
    )


def _train(rank: int, config: RunConfig, world_size: int, port: int, callbacks: tuple[L.Callback, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    STAGES[type(config)](config, callbacks)
    dist.destroy_process_group()


def start_training(
    config: RunConfig, world_size: int, port: int, *callbacks: L.Callback
) -> multiprocessing.ProcessContext:
    """A run of any stage in `world_size` processes, started as torchrun would; each gets a copy of the callbacks."""
    return multiprocessing.start_processes(
        _train, (config, world_size, port, callbacks), nprocs=world_size, start_method=START_METHOD, join=False
    )


def train_on_ranks(
    config: RunConfig, world_size: int, port: int, *callbacks: L.Callback, timeout: float = 200.0
) -> None:
    """Wait for `start_training`.

    Raises:
        AssertionError: the ranks wait for each other for ever.
        ProcessRaisedException: one of them failed.
    """
    context = start_training(config, world_size, port, *callbacks)
    deadline = time.monotonic() + timeout
    while not context.join(timeout=1.0):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise AssertionError(f"{world_size} ranks did not finish in {timeout} s")


def mesh_of(data_parallel: int, tensor_parallel: int) -> DeviceMesh:
    """The mesh that the fsdp strategy makes."""
    return init_device_mesh(
        "cpu", (data_parallel, tensor_parallel), mesh_dim_names=("data_parallel", "tensor_parallel")
    )


def spread_decoder(config: ModelConfig, trainer: TrainerConfig, mesh: DeviceMesh, seed: int) -> Decoder:
    """A decoder over the ranks of a mesh, with the initial weights of its seed, of which each rank makes its part."""
    with torch.device("meta"):
        model = Decoder(config, seed=seed)
    arrange(model, trainer, mesh)
    model.to_empty(device="cpu")
    model.tie()
    initialize_weights(model, config, seed)
    return model
