"""FSDP2 with this package's checkpoints: full ones like those of one device, or sharded; each loads at any number of
ranks and any tensor parallelism, and the other strategies load both."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchmetrics import Metric

from lit_llm.config import UserError
from lit_llm.config.trainer import sends_each_time
from lit_llm.distributed.meshes import data_mesh, make_mesh
from lit_llm.distributed.ranks import from_first, rank
from lit_llm.distributed.tensors import local_part, shard_like, whole_like
from lit_llm.training.checkpoint_files import copy_to_cpu
from lit_llm.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lit_llm.training.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name
from lit_llm.training.shard_files import (
    ShardSave,
    optimizer_entry,
    read_into,
    read_optimizer,
    read_sizes,
    read_state,
    weight_entry,
)

# gathering over two dimensions takes two collectives, which torch finds worth a warning in every run
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def tied_names(module: nn.Module) -> dict[str, str]:
    """Map the further names of parameters that have several to the first name of each."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    everyone = module.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in everyone if name != first[id(parameter)]}


@torch.no_grad()
def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Gather the whole `module.state_dict()` on the CPU of rank 0; empty elsewhere. Every rank must call.

    One weight after another is gathered, so a device holds no more than its shards and the largest weight.
    """
    tied = tied_names(module)
    weights: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if name not in tied:
            _gather(tensor, weights, name)
    return {name: weights[tied.get(name, name)] for name in module.state_dict()} if weights else {}


@torch.no_grad()
def full_optimizer_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer_state_by_name` with whole tensors on the CPU, on rank 0; empty elsewhere. Every rank must call."""
    named = optimizer_state_by_name(module, optimizer)
    state: dict[str, dict[str, Any]] = {}
    for name, values in named["state"].items():
        whole: dict[str, Any] = {}
        for key, value in values.items():
            _gather(value, whole, key)
        if whole:
            state[name] = whole
    return {"state": state, "param_groups": copy_to_cpu(named["param_groups"])} if rank() == 0 else {}


def _gather(value: Any, kept: dict[str, Any], name: str) -> None:
    """Put a copy of a whole tensor, or a plain value, into `kept` on rank 0."""
    # by its part, because what is offloaded to the host has to come to the device to be gathered
    whole = whole_like(value.to_local(), value) if isinstance(value, DTensor) else value
    if rank() == 0:
        # a mesh of one rank gives its own memory out as the whole
        kept[name] = whole.detach().to("cpu", copy=True) if isinstance(whole, Tensor) else whole


def _roots(module: nn.Module) -> list[FSDPModule]:
    """List the outermost sharded modules, such as a policy and its critic."""
    if isinstance(module, FSDPModule):
        return [module]
    return [root for child in module.children() for root in _roots(child)]


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 and tensor parallelism over DTensors, with optimizer state by parameter name in every checkpoint.

    Lightning's own formats number the optimizer's parameters in the order of the model, which is wrong for an
    optimizer of several groups, write over the checkpoint of the same name, and cannot be read by another strategy.

    Args:
        offload: the shards lie in host memory between uses; they have been made there.
        context_parallel_size: ranks that read the same rows, each some of the tokens; they are data-parallel otherwise.
        replicas: groups of data-parallel ranks that each hold a copy of all shards (HSDP); 1: every rank has its own.
        reduce_every_micro_batch: whether gradients are sent in each micro-batch of an optimizer step, so that none is
            kept whole, or in the last one alone; None: by the memory of the first rank's device.
        data_parallel_size, tensor_parallel_size, save_distributed_checkpoint, timeout: as in `ModelParallelStrategy`.
            Whether a checkpoint is written in the background is up to the `AtomicCheckpointIO` that the Trainer gets.
    """

    checkpoint_io: AtomicCheckpointIO

    def __init__(
        self,
        *,
        offload: bool = False,
        context_parallel_size: int = 1,
        replicas: int = 1,
        reduce_every_micro_batch: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.offload = offload
        self.context_parallel_size = context_parallel_size
        self.replicas = replicas
        self.reduce_every_micro_batch = reduce_every_micro_batch

    def setup_environment(self) -> None:
        """Start the process group, and arrange the ranks as replicas, shards and tensor-parallel groups."""
        super().setup_environment()
        if self.replicas > 1:
            shards = int(self._data_parallel_size) // self.replicas
            self._device_mesh = make_mesh(
                self.root_device.type, shards, int(self._tensor_parallel_size), replicas=self.replicas
            )
            assert self.lightning_module is not None
            self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Tell which share of a batch this rank reads, and how many there are."""
        mesh = data_mesh(self.device_mesh)
        sizes, place = list(mesh.shape), mesh.get_coordinate()
        assert place is not None
        number = place[0] if len(sizes) == 1 else place[0] * sizes[1] + place[1]
        return {"num_replicas": mesh.size() // self.context_parallel_size, "rank": number // self.context_parallel_size}

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Run a micro-batch that is not the last of its optimizer step.

        Its gradient stays on the rank: whole, and in the type that gradients are reduced in. With
        `reduce_every_micro_batch` it is reduced to the shard at once, and only replicas wait for the last micro-batch.
        """
        assert self.lightning_module is not None
        roots = _roots(self.lightning_module)
        self._set_sync(roots, last=False)
        try:
            yield
        finally:
            self._set_sync(roots, last=True)

    def _set_sync(self, roots: list[FSDPModule], last: bool) -> None:
        if self.reduce_every_micro_batch is None:
            self.reduce_every_micro_batch = from_first(self._sends_each_time(roots))
        for root in roots:
            if self.reduce_every_micro_batch:
                root.set_requires_all_reduce(last)
            else:
                root.set_requires_gradient_sync(last)

    def _sends_each_time(self, roots: list[FSDPModule]) -> bool:
        parameters = [each for root in roots for each in cast(nn.Module, root).parameters()]
        numbers = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        one = parameters[0]  # where it is offloaded it lies on the CPU, but its mesh does not; gathered, it has none
        on_gpu = (one.device_mesh.device_type if isinstance(one, DTensor) else one.device.type) == "cuda"
        memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if on_gpu else None
        return sends_each_time(None, numbers // int(self._tensor_parallel_size), memory)

    def model_to_device(self) -> None:
        """Move everything to the device but shards that are kept in host memory."""
        if not self.offload:
            super().model_to_device()
            return
        assert self.model is not None
        # what `to` of the whole module would do besides moving its parameters
        self.model._device = self.root_device
        for module in self.model.modules():
            if isinstance(module, Metric):
                module.to(self.root_device)
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Give the weights: this rank's DTensors for a sharded checkpoint, else whole ones on rank 0."""
        assert self.lightning_module is not None
        if self._save_distributed_checkpoint:
            return dict(self.lightning_module.state_dict())
        return full_weights(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Give the state by name: this rank's DTensors for a sharded checkpoint, else whole tensors on rank 0."""
        assert self.lightning_module is not None
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        gather = optimizer_state_by_name if self._save_distributed_checkpoint else full_optimizer_state
        return gather(self.lightning_module, plain)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Start to write a checkpoint. `AtomicCheckpointIO.settle` finishes it."""
        path, io = Path(self.broadcast(str(filepath))), self.checkpoint_io
        copied = ("state_dict", "optimizer_states")
        rest = {name: value for name, value in checkpoint.items() if name not in copied}
        if io.background:
            rest = copy_to_cpu(rest)
        if not self._save_distributed_checkpoint:
            if self.is_global_zero:
                io.write({**rest, **{name: checkpoint[name] for name in copied if name in checkpoint}}, path)
            return
        assert self.lightning_module is not None
        tied = tied_names(self.lightning_module)
        tensors = {weight_entry(name): t for name, t in checkpoint["state_dict"].items() if name not in tied}
        rest = {**rest, "tied": tied, "optimizer_states": []}
        for index, state in enumerate(checkpoint.get("optimizer_states", [])):
            small = {"state": {}, "param_groups": copy_to_cpu(state["param_groups"])}
            for name, values in state["state"].items():
                for key, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[optimizer_entry(index, key, name)] = value
                    else:
                        small["state"].setdefault(name, {})[key] = value
            rest["optimizer_states"].append(small)
        save = ShardSave(path, tensors, rest, copy=io.background)
        io.start(path, save.write, save.finish)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what is not sharded; the weights and the optimizer follow once the module has accepted the checkpoint.

        Raises:
            UserError: there is nothing at the path, or it is not a whole checkpoint.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        self._loaded_from = path
        return read_checkpoint(path, keys=(), mmap=True)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of the weights and, in training, of the optimizer state.

        Raises:
            UserError: the checkpoint is of another model, or its optimizer of other groups.
        """
        assert self.lightning_module is not None
        if self._loaded_from.is_dir():
            self._load_folder(self._loaded_from, strict)
            return
        weights = self.lightning_module.state_dict()
        _check_names(set(weights), set(checkpoint["state_dict"]), strict)
        for name in weights.keys() & checkpoint["state_dict"].keys():
            part = shard_like(checkpoint["state_dict"][name], weights[name])
            local_part(weights[name]).copy_(local_part(part))
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            load_optimizer_state_by_name(self.lightning_module, optimizer, state, place=_part_of)

    def _load_folder(self, folder: Path, strict: bool) -> None:
        assert self.lightning_module is not None
        state = read_state(folder)
        weights = self.lightning_module.state_dict()
        prefix = weight_entry("")
        saved = {entry.removeprefix(prefix) for entry in read_sizes(folder) if entry.startswith(prefix)}
        _check_names(set(weights), saved | state["tied"].keys(), strict)
        read_into(folder, {weight_entry(name): weights[name] for name in saved & weights.keys()})
        parameters = dict(self.lightning_module.named_parameters())

        def like(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
            parameter = parameters.get(name)
            if parameter is not None and parameter.shape == size:
                return torch.zeros_like(parameter, dtype=dtype)
            return torch.zeros(size, dtype=dtype)

        for index, optimizer in enumerate(self.optimizers):
            named = read_optimizer(folder, index, state["optimizer_states"][index], like)
            load_optimizer_state_by_name(self.lightning_module, optimizer, named)


def _part_of(value: Tensor, parameter: nn.Parameter) -> Tensor:
    part = shard_like(value, parameter) if value.shape == parameter.shape else value
    return part.clone()  # else it would stay a window into the file


def _check_names(ours: set[str], saved: set[str], strict: bool) -> None:
    missing, unexpected = sorted(ours - saved), sorted(saved - ours)
    if strict and (missing or unexpected):
        raise UserError(
            f"the checkpoint is of another model: it lacks {missing[:3]} and has {unexpected[:3]} in addition"
        )
