"""Exchanging plain values between ranks: every rank must call; one process alone needs no process group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    import lightning as L


def several() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(value: Any) -> list[Any]:
    """Collect the values of all ranks, in order, on every rank."""
    if not several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """Give every rank the value of rank 0."""
    if not several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def data_parallel_rank(trainer: L.Trainer) -> tuple[int, int]:
    """Which share of each batch this process reads, and into how many shares batches are cut.

    Ranks that are tensor-parallel to each other read the same share.
    """
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", {"rank": 0, "num_replicas": 1})
    return shares["rank"], shares["num_replicas"]
