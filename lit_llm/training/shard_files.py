"""The folder of a sharded checkpoint: each rank's tensors in its own file, by torch.distributed.checkpoint.

Weights are entries "weights/NAME" and optimizer tensors "optimizer/INDEX/KEY/NAME". Everything that is not a tensor of
the model's or the optimizer's size is in one file, state.pt. Any number of ranks can read it, also one without a
process group.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    FileSystemWriter,
    Metadata,
    load,
)
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta

from lit_llm.config import UserError
from lit_llm.config.files import partial_of, sync_folder
from lit_llm.distributed.ranks import from_first, rank, several
from lit_llm.distributed.tensors import local_part
from lit_llm.training.checkpoint_files import (
    checksum,
    put_in_place,
    readable_checkpoint,
    remove,
    write_failure,
    write_file,
    write_manifest,
)
from lit_llm.training.unpickling import read_index

STATE = "state.pt"
_METADATA = ".metadata"


def weight_entry(name: str) -> str:
    """Make the key of a weight."""
    return f"weights/{name}"


def optimizer_entry(index: int, key: str, name: str) -> str:
    """Make the key of a tensor in the state of optimizer `index` for the parameter `name`."""
    return f"optimizer/{index}/{key}/{name}"


class ShardSave:
    """A sharded checkpoint that is being written.

    Making it is collective and says who writes what; `write` is this rank's part and talks to nobody, so it may run in
    a thread; `finish` is for rank 0 once every rank has written.

    Args:
        target: the folder that the checkpoint becomes.
        tensors: by entry; DTensors are written by the ranks that hold them, plain tensors once.
        state: everything else, plain; only rank 0's is written.
        copy: keep a copy of what this rank writes, because training goes on meanwhile.

    Raises:
        UserError: the folder cannot be made; on every rank.
    """

    def __init__(self, target: Path, tensors: dict[str, Tensor], state: dict[str, Any], copy: bool) -> None:
        self.target = target
        self.folder = partial_of(target)
        self.state = state
        problem = from_first(self._make_folder() if rank() == 0 else None)
        if problem is not None:
            raise UserError(problem)
        self.writer = _Writer(self.folder)
        self.planner = _SavePlanner(copy)
        self.planner.set_up_planner(tensors, is_coordinator=rank() == 0)
        self.writer.set_up_storage_writer(rank() == 0)
        self.plan, self.metadata = self._agree(self.writer.prepare_local_plan(self.planner.create_local_plan()))
        self.planner.finish_plan(self.plan)

    def _make_folder(self) -> str | None:
        try:
            remove(self.folder)
            self.folder.mkdir(parents=True)
        except OSError as error:
            return str(write_failure(self.target, error))
        return None

    def _agree(self, mine: Any) -> tuple[Any, Metadata | None]:
        """Let rank 0 decide who writes what several ranks could write."""
        if not several():
            plans, metadata = self.planner.create_global_plan([mine])
            return self.writer.prepare_global_plan(plans)[0], metadata
        first = rank() == 0
        everyones: list[Any] | None = [None] * dist.get_world_size() if first else None
        dist.gather_object(mine, everyones)
        plans, metadata = None, None
        if everyones is not None:
            plans, metadata = self.planner.create_global_plan(everyones)
            plans = self.writer.prepare_global_plan(plans)
        dealt: list[Any] = [None]
        dist.scatter_object_list(dealt, plans)
        return dealt[0], metadata

    def write(self) -> Any:
        """Write this rank's files.

        Returns:
            Where each tensor is, and the checksums of the files: what `finish` needs from every rank.
        """
        results = self.writer.write_data(self.plan, self.planner).wait()
        self.planner.copies.clear()
        names = {result.storage_data.relative_path for result in results}
        if rank() == 0:
            write_file(self.folder / STATE, lambda file: torch.save(self.state, file))
            names.add(STATE)
        return results, {name: checksum(self.folder / name) for name in sorted(names)}

    def finish(self, outcomes: list[Any]) -> None:
        """Write the index and the manifest, and give the folder its name.

        Args:
            outcomes: what `write` returned, of every rank.
        """
        assert self.metadata is not None
        self.writer.finish(self.metadata, [results for results, _ in outcomes])
        files = {name: entry for _, part in outcomes for name, entry in part.items()}
        files[_METADATA] = checksum(self.folder / _METADATA)
        write_manifest(self.folder, files)
        sync_folder(self.folder)
        put_in_place(self.folder, self.target)


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        return None  # it would name the folder by its partial name


class _SavePlanner(DefaultSavePlanner):
    """Holds on to the parts that this rank writes, copied if training goes on meanwhile."""

    def __init__(self, copy: bool) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.copy = copy
        self.copies: dict[str, Tensor] = {}

    def finish_plan(self, new_plan: Any) -> Any:
        names = {item.index.fqn for item in new_plan.items}
        parts = {name: local_part(self.state_dict[name]).detach() for name in names}
        self.copies = {name: part.to("cpu", copy=True) if self.copy else part for name, part in parts.items()}
        self.state_dict = {}
        return super().finish_plan(new_plan)

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self.copies[index.fqn]


class _Reader(FileSystemReader):
    """Executes nothing that the index names, and reads nothing outside of the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # here, as torch 2.11 goes on without an index that it fails to read, and hides why
        self._index = read_index(folder / _METADATA)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._index.storage_meta = StorageMeta(load_id=self.load_id)
        return self._index


def read_state(folder: Path) -> dict[str, Any]:
    """Read what a sharded checkpoint holds besides tensors.

    Raises:
        UserError: it cannot be read, or holds more than plain values and tensors; so do the functions below.
    """
    with readable_checkpoint(folder):
        return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def read_sizes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Read the shape and type of every entry."""
    with readable_checkpoint(folder):
        entries = _Reader(folder).read_metadata().state_dict_metadata
    return {name: (entry.size, entry.properties.dtype) for name, entry in entries.items()}


def read_into(folder: Path, targets: dict[str, Tensor]) -> None:
    """Fill tensors in place; of a DTensor each rank reads its own part. Ranks need not wait for each other."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with readable_checkpoint(folder), warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process.*")
        load(dict(targets), storage_reader=_Reader(folder), planner=planner, no_dist=True)


def read_weights(folder: Path, state: dict[str, Any]) -> dict[str, Tensor]:
    """Read the whole weights by name, on the CPU; `state` is what `read_state` gives."""
    sizes = read_sizes(folder)
    prefix = weight_entry("")
    wanted = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in sizes.items() if name.startswith(prefix)}
    read_into(folder, wanted)
    weights = {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}
    return {**weights, **{alias: weights[name] for alias, name in state["tied"].items()}}


def read_optimizer(
    folder: Path, index: int, rest: dict[str, Any], like: Callable[[str, torch.Size, torch.dtype], Tensor]
) -> dict[str, Any]:
    """Read the state of one optimizer, by parameter name.

    Args:
        folder: the checkpoint.
        index: which optimizer.
        rest: what state.pt holds of it.
        like: makes the tensor to read into, from a parameter's name, the shape and the type.

    Returns:
        "state" and "param_groups", as in a checkpoint of one file.
    """
    prefix = optimizer_entry(index, "", "").rstrip("/") + "/"
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in rest["state"].items()}
    targets = {}
    for entry, (size, dtype) in read_sizes(folder).items():
        if entry.startswith(prefix):
            key, _, name = entry.removeprefix(prefix).partition("/")
            targets[entry] = state.setdefault(name, {})[key] = like(name, size, dtype)
    read_into(folder, targets)
    return {"state": state, "param_groups": rest["param_groups"]}


def read_whole(folder: Path, keys: Iterable[str] = ("state_dict", "optimizer_states")) -> dict[str, Any]:
    """Read a sharded checkpoint as the dict that a checkpoint of one file holds.

    Args:
        folder: the checkpoint.
        keys: which of the two large parts are wanted.
    """
    state = read_state(folder)
    checkpoint = {name: value for name, value in state.items() if name not in ("tied", "optimizer_states")}
    if "state_dict" in keys:
        checkpoint["state_dict"] = read_weights(folder, state)
    if "optimizer_states" in keys:
        checkpoint["optimizer_states"] = [
            read_optimizer(folder, index, rest, lambda name, size, dtype: torch.empty(size, dtype=dtype))
            for index, rest in enumerate(state["optimizer_states"])
        ]
    return checkpoint
