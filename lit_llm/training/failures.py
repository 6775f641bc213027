"""Failures of the machine, said in one line: memory that is not enough, and ranks that are lost."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_llm.config import PostTrainingConfig, PPOConfig, PretrainConfig, RewardConfig, RunConfig, UserError
from lit_llm.training.strategies import data_parallel_processes, is_on_gpu, number_of_processes

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED", re.I
)
# gloo raises a plain RuntimeError
_LOST = re.compile(r"by peer|gloo/transport|Timed out waiting \d+ms|NCCL (error|communicator)|Watchdog caught", re.I)


@contextmanager
def readable_failures(config: RunConfig) -> Iterator[None]:
    """Turn what runs out of memory, and what loses another rank, into one line that says what to change.

    A NCCL timeout ends the process from another thread and never comes here: it leaves the flight recorder's dump.

    Raises:
        UserError: instead of the error of torch; anything else passes.
        KeyboardInterrupt: for Ctrl-C, which Lightning turns into an exit status of 1.
    """
    try:
        yield
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stopped
        raise
    except (RuntimeError, MemoryError) as error:
        line = _explain(error, config)
        if line is None:
            raise
        raise UserError(line) from error


def _explain(error: Exception, config: RunConfig) -> str | None:
    text = str(error)
    on_device = isinstance(error, torch.OutOfMemoryError) or "CU" in text
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(text):
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.I)
        where = "the GPU" if on_device else "this machine"
        return f"{where} has no memory left{f' for {asked[1]} more' if asked else ''}: {advice_on_memory(config)}"
    reason = reason_of_lost_ranks(error)
    return None if reason is None else _advice_on_lost_ranks(reason, config)


def reason_of_lost_ranks(error: Exception) -> str | None:
    """What torch says of the loss of another rank, in a line; None where an error is about something else."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not _LOST.search(text):
        return None
    # without the line of gloo's source before it and the general remarks after it
    return re.sub(r"^\[\S+:\d+\] ", "", text.partition("\n")[0]).partition(" This is typically")[0][:160].rstrip(".")


def advice_on_memory(config: RunConfig) -> str:
    """Say what to change so that the run needs less memory: what costs least first, without what is done already."""
    trainer, data = config.trainer, config.data
    knobs = list(_smaller_parts(config))
    if trainer.activation_checkpointing != "full":
        knobs.append("trainer.activation_checkpointing to full")
    if isinstance(config, PretrainConfig | PostTrainingConfig) and not isinstance(config, RewardConfig):
        chunk = config.loss_chunk("cuda" if is_on_gpu(trainer) else "cpu")
        if chunk is None or chunk > 512:
            knobs.append("loss_chunk_tokens to 512")
    if number_of_processes(trainer) > 1 and trainer.strategy in ("auto", "ddp"):
        knobs.append("trainer.strategy to fsdp")
    if trainer.precision == "32-true":
        knobs.append("trainer.precision to bf16-mixed")
    if trainer.strategy in ("fsdp", "deepspeed") and is_on_gpu(trainer) and not trainer.offload:
        knobs.append("trainer.offload to true")
    if data.length > 1:
        knobs.append(f"data.sequence_length below {data.length}")
    first, *rest = knobs or ["the model smaller"]
    return f"set {first}" + (f"; if that is not enough, {', '.join(rest)}" if rest else "")


def _smaller_parts(config: RunConfig) -> Iterator[str]:
    """Name the options that say how much of a batch is worked on at once, where they can be lower."""
    at_once = config.data.batch_size // data_parallel_processes(config.trainer)
    if isinstance(config, PPOConfig):
        answers = at_once * config.group_size
        update = answers // config.minibatches
        sizes = {
            "update_micro_batch_size": min(update, config.update_micro_batch_size or update),
            "rollout_batch_size": min(answers, config.rollout_batch_size),
        }
    else:
        sizes = {"data.micro_batch_size": config.data.micro_batch_size or at_once}
    for name, size in sizes.items():
        if size > 1:
            smaller = max(each for each in range(1, size) if size % each == 0)
            yield f"{name} to {smaller} (from {size}; the batch and the result stay the same)"


def _advice_on_lost_ranks(reason: str, config: RunConfig) -> str:
    rank = dist.get_rank() if dist.is_initialized() else rank_zero_only.rank or 0
    return (
        f"rank {rank} lost the other ranks ({reason}): look at what they printed, the first error is the cause; if "
        f"none failed, one was busy for longer than trainer.timeout_minutes ({config.trainer.timeout_minutes:g}); on "
        f"CUDA {config.folder / 'flight_recorder'} holds what each was waiting for"
    )


def distributed_defaults(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Give the environment that makes NCCL's flight recorder write each rank's last collectives on a timeout.

    `python -m torch.distributed.flight_recorder.fr_trace FOLDER/flight_recorder` reads the dumps.

    Args:
        folder: the run folder.
        environment: what is set already; it is left alone, under torch's older names too.

    Returns:
        Variables to add. Source: FlightRecorder.hpp and ProcessGroupNCCL.hpp of torch 2.11 to 2.13.
    """
    wanted = {
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",
        ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"): str(folder.resolve() / "flight_recorder/rank_"),
    }
    return {names[0]: value for names, value in wanted.items() if not any(name in environment for name in names)}


def set_distributed_defaults(config: RunConfig) -> None:
    """Put `distributed_defaults` in place for ranks on CUDA; NCCL reads them when the process group is made."""
    if is_on_gpu(config.trainer) and number_of_processes(config.trainer) > 1:
        os.environ.update(distributed_defaults(config.folder, os.environ))
        (config.folder / "flight_recorder").mkdir(parents=True, exist_ok=True)
