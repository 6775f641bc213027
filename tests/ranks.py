"""Runs a function in several processes that talk over gloo."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import conftest  # noqa: F401  # what it changes for tests holds in ranks, too
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
PRELOAD = ["lit_llm.training.run", "lit_llm.modules", "lit_llm.generation", "torch.utils.tensorboard"]

_server: int | None = None  # its process

STAGES: dict[type[RunConfig], Callable[..., Any]] = {
    PretrainConfig: pretrain,
    SFTConfig: sft,
    RewardConfig: reward,
    DPOConfig: dpo,
    PPOConfig: ppo,
}
"""What runs each kind of configuration."""


def _ensure_server() -> None:
    """Start the server anew, unless it is already that of ranks.

    A process has a single one, and whoever starts it decides what it has imported: that of a recipe's workers is light,
    and each rank would import torch and Lightning by itself.
    """
    global _server
    server = forkserver._forkserver
    if server._forkserver_pid is None or server._forkserver_pid != _server:
        server._stop()
        server.set_forkserver_preload(PRELOAD)
        server.ensure_running()
        _server = server._forkserver_pid


def _begin(rank: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # processes that load begin as under torchrun, not from the server of ranks
    multiprocessing.set_start_method("fork", force=True)
    function(rank, *arguments)


def start_ranks(
    function: Callable[..., None], world_size: int, *arguments: Any, join: bool = True
) -> multiprocessing.ProcessContext | None:
    """Call `function(rank, *arguments)` in `world_size` processes, and wait for them unless `join` is False."""
    _ensure_server()
    return multiprocessing.start_processes(
        _begin, (function, arguments), nprocs=world_size, start_method="forkserver", join=join
    )


def _enter(rank: int, function: Callable[..., None], world_size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    store = dist.FileStore(str(folder / "store"), world_size)
    # a rank that fails or hangs fails the test instead of holding it up
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timedelta(seconds=90))
    function(*arguments)
    dist.destroy_process_group()


def run_ranks(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any) -> None:
    """Call `function(*arguments)` in `world_size` processes; an exception in one of them is raised here."""
    (folder / "store").unlink(missing_ok=True)
    start_ranks(_enter, world_size, function, world_size, folder, arguments)


def tell_rank(rank: int, world_size: int, port: int) -> None:
    """Set the variables that torchrun gives to a process."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )


def _train(rank: int, config: RunConfig, world_size: int, port: int, callbacks: tuple[L.Callback, ...]) -> None:
    tell_rank(rank, world_size, port)
    STAGES[type(config)](config, callbacks)
    dist.destroy_process_group()


def start_training(
    config: RunConfig, world_size: int, port: int, *callbacks: L.Callback
) -> multiprocessing.ProcessContext:
    """A run of any stage in `world_size` processes, started as torchrun would; each gets a copy of the callbacks."""
    context = start_ranks(_train, world_size, config, world_size, port, callbacks, join=False)
    assert context is not None
    return context


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
