"""What a run leaves on the disk, for every test of runs."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lit_llm.config import RunConfig
from lit_llm.training.checkpoint_files import saved_checkpoints

# The files of a run that crashes and goes on within a second are told apart by a counter alone, and are read in the
# order of their names, in which 10 comes before 9: it starts where its length stays the same.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)

# Curves that the clock and the machine have a part in: they differ from run to run.
TIMED = {f"throughput/{name}" for name in ("tokens_per_second", "data_wait_share", "peak_memory_gib", "mfu")}


def event_folder(config: RunConfig) -> Path:
    """Where TensorBoard's files are: the one folder in tensorboard/, which is named after the stage."""
    (folder,) = (config.folder / "tensorboard").iterdir()
    return folder


def tensorboard_events(config: RunConfig) -> EventAccumulator:
    """All that TensorBoard shows of a run."""
    events = EventAccumulator(str(event_folder(config)), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def all_curves(config: RunConfig) -> dict[str, list[tuple[int, float]]]:
    """Every logged value as (step, value), as TensorBoard shows it."""
    events = tensorboard_events(config)
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def checkpoints(config: RunConfig) -> dict[int, Path]:
    """The run's checkpoints by step."""
    return saved_checkpoints(config.folder / "checkpoints")


def last_state(config: RunConfig) -> dict[str, Any]:
    """The newest checkpoint."""
    return torch.load(list(checkpoints(config).values())[-1], weights_only=True)


def assert_equal_weights(one: RunConfig, other: RunConfig) -> None:
    """Bit-identical weights and optimizer states at the end of two runs."""
    first, second = last_state(one), last_state(other)
    assert first["global_step"] == second["global_step"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    states = [state["optimizer_states"][0]["state"] for state in (first, second)]
    for number, moments in states[0].items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][number][name])), (number, name)


def assert_identical(one: Any, other: Any, where: str = "") -> None:
    """Equality of nested containers, to the bit for tensors."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_identical(left, right, f"{where}/{number}")
    else:
        assert one == other, where


@contextmanager
def largest_file(size: int) -> Iterator[Callable[[], None]]:
    """Gives a function after which no file grows beyond `size` bytes, as on a full disk, and takes that back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
