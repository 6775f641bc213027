"""Processes that share an evaluation: those that torchrun or SLURM has started, or some that are started here."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from lit_llm.config import EvaluateConfig, UserError
from lit_llm.distributed.ranks import gather, rank, several
from lit_llm.stages.loading import device_of
from lit_llm.training.failures import reason_of_lost_ranks

_LONGEST_WAIT = timedelta(days=7)  # of one that has answered its share, for the slowest


@contextlib.contextmanager
def connected(config: EvaluateConfig) -> Iterator[None]:
    """Connect the processes of an evaluation while a block runs; rank 0 alone prints in it.

    Where there is but one, nothing is done. Each holds the whole model, on a GPU of its own where there are GPUs, and
    they exchange questions and answers over gloo.

    Raises:
        UserError: the processes are not as many as are asked for, have no GPU each, are to share what cannot be shared,
            or one of them was lost.
    """
    connects = not dist.is_initialized()
    if connects:
        here, machines = _processes(config)
        if here * machines == 1:
            yield
            return
        _connect(config, here, machines)
    config.check_shared(several())
    try:
        with _silent_unless_first():
            yield
            gather(None)  # nobody ends before all have put away their files
    except RuntimeError as error:
        reason = reason_of_lost_ranks(error)
        if reason is None:
            raise
        raise UserError(
            f"rank {rank()} lost the other ranks ({reason}): look at what they printed, the first error is the cause; "
            "the answers are kept, and the same command goes on from them"
        ) from error
    except KeyboardInterrupt:
        if rank() > 0:
            raise SystemExit(0) from None  # rank 0 says it
        raise
    finally:
        if connects:
            dist.destroy_process_group()


def _processes(config: EvaluateConfig) -> tuple[int, int]:
    """How many processes there are on each machine, and how many machines.

    Raises:
        UserError: a launcher has started others than `config.devices`.
    """
    variables = os.environ
    if dist.is_torchelastic_launched():
        here, everywhere = int(variables["LOCAL_WORLD_SIZE"]), int(variables["WORLD_SIZE"])
        launcher = "torchrun"
    elif int(variables.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in variables:
        machines = int(variables.get("SLURM_NNODES", 1))
        here, everywhere = int(variables["SLURM_NTASKS"]) // machines, int(variables["SLURM_NTASKS"])
        launcher = "srun"
    else:
        return config.devices, 1
    if config.devices not in (1, here):
        raise UserError(
            f"devices is {config.devices}, but {launcher} has started {here} processes on this machine: leave it out"
        )
    return here, everywhere // here


def _connect(config: EvaluateConfig, here: int, machines: int) -> None:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    device = device_of(config)
    if device == "cuda" and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes on a machine are to have a GPU each, and here are {torch.cuda.device_count()}: lower "
            "devices"
        )
    strategy = DDPStrategy(process_group_backend="gloo", timeout=_LONGEST_WAIT)
    Fabric(accelerator=device, devices=here, num_nodes=machines, strategy=strategy).launch()


@contextlib.contextmanager
def _silent_unless_first() -> Iterator[None]:
    if rank() == 0:
        yield
        return
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
