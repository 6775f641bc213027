"""The Lightning strategy of a run, from its configuration."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_llm.config import TrainerConfig, UserError
from lit_llm.model.decoder import Block
from lit_llm.model.float8 import check_float8
from lit_llm.training.checkpoint_io import read_checkpoint
from lit_llm.training.sharded import ShardedStrategy, full_weights

# torch 2.13 warns of the older name
_OF_DDP = inspect.signature(DistributedDataParallel).parameters
_SYNC_OF_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OF_DDP else "broadcast_buffers"


class NamedFSDPStrategy(FSDPStrategy):
    """FSDP1 that keys the optimizer's state by parameter name, as every checkpoint here does."""

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the whole state on rank 0, empty elsewhere; every rank must call."""
        state = super().optimizer_state(optimizer)
        if not state:
            return state
        return FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, self.model)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint of one file, which is first read as plain tensors: Lightning would run what it names.

        Raises:
            UserError: it is a folder, or not a whole checkpoint.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if path.is_dir():
            raise UserError(f"{path} is a sharded checkpoint, which trainer.strategy fsdp1 cannot read; use fsdp")
        read_checkpoint(path, mmap=True)
        return super().load_checkpoint(path, weights_only)


def number_of_processes(config: TrainerConfig) -> int:
    """Count the ranks that a run has."""
    devices = config.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if is_on_gpu(config) else 1
    return int(devices) * config.num_nodes


def data_parallel_processes(config: TrainerConfig) -> int:
    """Count the shares that each batch is cut into.

    Raises:
        UserError: the ranks cannot be divided into groups of `tensor_parallel_size` and `context_parallel_size`, or
            those into `fsdp_replicas`.
    """
    shares = number_of_processes(config)
    which = f"number of processes ({shares} = trainer.devices x trainer.num_nodes)"
    for name in ("tensor_parallel_size", "context_parallel_size"):
        size = getattr(config, name)
        if shares % size:
            raise UserError(f"trainer.{name} {size} does not divide the {which}")
        shares //= size
        which += f" / trainer.{name} {size}" if size > 1 else ""
    if shares % config.fsdp_replicas:
        raise UserError(
            f"trainer.fsdp_replicas {config.fsdp_replicas} does not divide the {shares} data-parallel ranks: {which}"
        )
    return shares


def writes_shards(config: TrainerConfig) -> bool:
    """Tell whether each rank writes its own shard of a checkpoint."""
    if config.sharded_checkpoints is None:
        return config.strategy == "fsdp" and number_of_processes(config) > 1
    return config.sharded_checkpoints


def is_on_gpu(config: TrainerConfig) -> bool:
    """Tell whether a run of this configuration uses CUDA on this machine."""
    return config.accelerator != "cpu" and torch.cuda.is_available()


def set_matmul_precision(config: TrainerConfig) -> None:
    """Set the precision that float32 matrix products of this process round their factors to.

    Raises:
        UserError: a rounding is asked for on the CPU, whose products are left as they are.
    """
    choice = config.float32_matmul_precision
    if is_on_gpu(config):
        torch.set_float32_matmul_precision(choice or "high")
    elif choice not in (None, "highest"):
        raise UserError(
            f"trainer.float32_matmul_precision {choice} is for CUDA; on the CPU products are float32: leave it out"
        )


def build_strategy(config: TrainerConfig, micro_batch_size: int = 1) -> Strategy | str:
    """Build the Lightning strategy that `config` asks for.

    Args:
        config: the options.
        micro_batch_size: samples that one rank holds at once; DeepSpeed counts its throughput by it.

    Raises:
        UserError: it needs a device or a package that is not here; the message names what to use instead.
    """
    on_gpu = is_on_gpu(config)
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator is gpu, but torch finds no CUDA device here; use cpu or auto")
    if config.strategy == "fsdp1" and not on_gpu:
        raise UserError("trainer.strategy fsdp1 needs CUDA; use fsdp, which runs on the CPU, too")
    if config.offload and not on_gpu:
        raise UserError("trainer.offload moves memory from a GPU to its host; without a GPU set it to false")
    if config.float8:
        check_float8("cuda" if on_gpu else "cpu")
    timeout = timedelta(minutes=config.timeout_minutes)
    if config.strategy == "fsdp":
        return ShardedStrategy(
            data_parallel_size=data_parallel_processes(config) * config.context_parallel_size,
            tensor_parallel_size=config.tensor_parallel_size,
            save_distributed_checkpoint=writes_shards(config),
            timeout=timeout,
            offload=config.offload,
            replicas=config.fsdp_replicas,
            context_parallel_size=config.context_parallel_size,
            reduce_every_micro_batch=config.reduce_every_micro_batch,
        )
    if config.strategy == "fsdp1":
        return NamedFSDPStrategy(
            auto_wrap_policy={Block}, use_orig_params=True, state_dict_type="full", timeout=timeout
        )
    if config.strategy == "deepspeed":
        return _deepspeed(config, timeout, micro_batch_size)
    if number_of_processes(config) > 1 or config.strategy == "ddp":
        # every rank makes its buffers alike, and training leaves them as they are
        return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True, **{_SYNC_OF_BUFFERS: False})
    return "auto"


def _deepspeed(config: TrainerConfig, timeout: timedelta, micro_batch_size: int) -> Strategy:
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("trainer.strategy deepspeed needs the package: pip install -e '.[deepspeed]'; or use fsdp")
    from lit_llm.training.deepspeed import AtomicDeepSpeedStrategy, prefer_cpu

    if not is_on_gpu(config):
        prefer_cpu()
    strategy = AtomicDeepSpeedStrategy(
        stage=config.deepspeed_stage,
        offload_optimizer=config.offload,
        offload_parameters=config.offload and config.deepspeed_stage == 3,
        # "auto" would make another training loader and ask its sampler
        logging_batch_size_per_gpu=micro_batch_size,
        logging_level=logging.ERROR,  # it warns of any optimizer but its own
        timeout=timeout,
    )
    # it would refuse any optimizer but its own CPU Adam for what is offloaded
    strategy.config["zero_force_ds_cpu_optimizer"] = False
    return strategy


def cluster_environment() -> list[ClusterEnvironment]:
    """Give SLURM's environment without Lightning's requeueing: GracefulStop saves, the job script requeues."""
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []


def trainer_precision(config: TrainerConfig) -> str:
    """Give Lightning's name of the precision; under fsdp the sharding itself casts, so Lightning must not."""
    if config.strategy == "fsdp" and config.precision == "bf16-mixed":
        return "32-true"
    return config.precision


def whole_weights(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Tensor]:
    """Gather the state_dict of `module.model` on rank 0, whatever shards it; every rank must call."""
    if isinstance(trainer.strategy, FSDPStrategy):
        state = trainer.strategy.lightning_module_state_dict()
        return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        from lit_llm.training.deepspeed import gathered_weights

        return gathered_weights(module.model)
    return full_weights(module.model)
