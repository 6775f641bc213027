"""Exchanging plain values between ranks: every rank must call; one process alone needs no process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from lit_llm.config import UserError

if TYPE_CHECKING:
    import lightning as L


def several() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if several() else 1


def gather(value: Any) -> list[Any]:
    """Collect the values of all ranks, in order, on every rank."""
    if not several():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """Give every rank the value of rank 0."""
    if not several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def failing_together() -> Iterator[None]:
    """Let no rank go on from the end of a block in which another one has failed, and wait for it for ever.

    Rank 0 raises the error, whoever made it, and the others end without a word: a user reads one line.

    Raises:
        UserError: on rank 0, of the lowest rank that has raised one.
        SystemExit: on the others, with status 0, as nothing is wrong that rank 0 does not tell.
    """
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    found = [each for each in gather(error) if each is not None]
    if found and rank() > 0:
        raise SystemExit(0)
    if found:
        raise found[0] if error is None else error


def data_parallel_rank(trainer: L.Trainer) -> tuple[int, int]:
    """Which share of each batch this process reads, and into how many shares batches are cut.

    Ranks that are tensor-parallel to each other read the same share.
    """
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", {"rank": 0, "num_replicas": 1})
    return shares["rank"], shares["num_replicas"]
