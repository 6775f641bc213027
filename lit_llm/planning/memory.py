"""Memory of each device, for every strategy and every choice of what a block keeps.

What a training step holds at each moment comes from a rehearsal of it. What a strategy shards, copies and gathers is
reckoned from the strategies' sources: replicas (DDP keeps its buckets, of which the gradients are views, from step to
step), FSDP2 as `lit_llm.model.parallel` sets it up, and ZeRO (Rajbhandari et al. 2020, with the bucket sizes of
Lightning's strategy).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from lit_llm.config import ModelConfig, OptimizerConfig, PretrainConfig, from_plain, to_plain
from lit_llm.config.trainer import sends_each_time
from lit_llm.model import Decoder
from lit_llm.model.tensor_parallel import splits_vocabulary
from lit_llm.planning.rehearsal import Arithmetic, Moment, Rehearsal, Step, rehearse

Device = Literal["accelerator", "cpu"]
"""Whose kernels are meant; "accelerator" stands for CUDA."""
Checkpointing = Literal["none", "selective", "every_n", "full"]
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "every_n", "full")
"""What a block may keep: from "none", which keeps most, to "full", which keeps least and computes most again."""

# As in lit_llm.optimization: the smallest side of a Muon matrix, and the most numbers orthogonalised at once.
_SMALLEST_MUON_SIDE = 16
_MUON_STACK = 64 * 2**20
# Numbers in a reduction bucket and in gathered weights: the defaults of Lightning's DeepSpeedStrategy.
_DEEPSPEED_BUCKET = 200_000_000
_DEEPSPEED_LIVE_WEIGHTS = 1_050_000_000
_REDUCED_WIDTH = 4  # FSDP2 keeps and sends gradients as float32
_BLOCKS_GATHERED = 3  # FSDP2: the block at work, the next one, and the buffer that the next one arrives in


@dataclass(frozen=True)
class Placement:
    """How a run is spread over devices, and what each of them reads."""

    name: str
    """Name of the strategy in the tables, as "fsdp x tp 2"."""
    kind: Literal["replicas", "fsdp", "deepspeed"]
    """How weights are spread; a single device counts as replicas."""
    data_parallel: int
    """Number of shares that a batch is cut into, one for each group of tensor-parallel ranks."""
    rows: int
    """Windows in a micro-batch of one device."""
    accumulation: int
    """Micro-batches in an optimizer step."""
    tensor_parallel: int = 1
    """Number of ranks that share each matrix product of a block."""
    context_parallel: int = 1
    """Number of ranks that share each window."""
    stage: int = 0
    """ZeRO stage of deepspeed."""
    replicas: int = 1
    """Number of copies of the shards (HSDP); each is spread over `shares` groups."""
    memory: float | None = None
    """Bytes of a GPU, which decide what `trainer.reduce_every_micro_batch` null means; None: of a CPU."""

    @property
    def shares(self) -> int:
        """Number of parts that the weights are cut into, each for a group of tensor-parallel ranks."""
        return self.data_parallel * self.context_parallel // self.replicas


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device at the moment that it holds most."""

    weights: int
    """The weights, or the shard of them, that the device owns."""
    gradients: int
    """Gradients that are complete and wait for the optimizer."""
    optimizer: int
    """State of the optimizer, such as AdamW's two moments."""
    activations: int
    """What the forward pass keeps for the backward pass, with the bfloat16 copies of weights that autocast makes."""
    loss: int
    """A chunk of logits, and the gradients of head and hidden states that the loss computes at once."""
    temporary: int
    """What the backward pass or the optimizer step holds for a moment."""
    communication: int
    """Weights gathered from, and buckets sent to, other devices."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters on one tensor-parallel rank."""

    outer: int
    """Parameters outside the blocks: embeddings, final norm and head."""
    blocks: int
    """Parameters inside the blocks."""
    largest_block: int
    """Parameters of the largest block."""
    muon: int
    """Parameters of the blocks that Muon updates."""
    largest_matrix: int = 0
    """Parameters of the largest of those."""

    @property
    def all(self) -> int:
        """Number of all parameters."""
        return self.outer + self.blocks


def device_memory(
    config: PretrainConfig,
    placement: Placement,
    checkpointing: Checkpointing,
    device: Device = "accelerator",
) -> DeviceMemory:
    """Work out what one device holds at the peak of an optimizer step that is not the first of the run.

    Memory that libraries take for themselves, fragmentation and validation are not in it. Compiled blocks are counted
    as eager ones; they keep less.

    Args:
        config: the recipe; `config.model.vocab_size` must be set.
        placement: the strategy and the size of a micro-batch.
        checkpointing: what a block keeps.
        device: whose kernels are meant.
    """
    rehearsal = rehearsed(config, placement, checkpointing, device)
    optimizer = replace(config.optimizer, muon_ns_dtype=config.optimizer.newton_schulz_dtype(device))
    config = replace(config, optimizer=optimizer)
    plan = {"replicas": _replicas, "fsdp": _fsdp, "deepspeed": _deepspeed}[placement.kind]
    at = plan(config, placement, sizes_of(model_of_rank(config, placement)))
    return max((at(moment) for moment in rehearsal.moments), key=lambda memory: memory.total)


def rehearsed(
    config: PretrainConfig,
    placement: Placement,
    checkpointing: Checkpointing,
    device: Device = "accelerator",
) -> Rehearsal:
    """Rehearse a micro-batch of `placement` and the optimizer step after it; the result is remembered."""
    step = Step(
        rows=placement.rows,
        length=config.data.length,
        arithmetic=_arithmetic(config, placement),
        checkpointing=checkpointing,
        every_n_blocks=config.trainer.checkpoint_every_n_blocks,
        # sharded gradients are not kept whole between micro-batches
        accumulated=placement.accumulation > 1 and placement.kind == "replicas",
        documents=config.data.mask_documents,
        masks_attention=config.trainer.attention_kernel == "mask",
        loss_chunk_tokens=config.loss_chunk(device),
        z_loss=config.z_loss,
        tensor_parallel=placement.tensor_parallel,
        splits_tokens=config.trainer.sequence_parallel and placement.tensor_parallel > 1,
        context_parallel=placement.context_parallel,
    )
    return _rehearse(model_of_rank(config, placement), step, device)


def model_of_rank(config: PretrainConfig, placement: Placement) -> str:
    """Give the model that one tensor-parallel rank has, as text: a dataclass that may change is no key of a cache."""
    return json.dumps(to_plain(_local(config.model, placement.tensor_parallel)))


@lru_cache(maxsize=1024)
def _rehearse(model: str, step: Step, device: Device) -> Rehearsal:
    return rehearse(from_plain(ModelConfig, json.loads(model)), step, device)


def reduces_every_micro_batch(config: PretrainConfig, placement: Placement) -> bool:
    """Tell whether the gradients of a sharded run are sent in each micro-batch."""
    numbers = sizes_of(model_of_rank(config, placement)).all
    return sends_each_time(config.trainer.reduce_every_micro_batch, numbers, placement.memory)


def _arithmetic(config: PretrainConfig, placement: Placement) -> Arithmetic:
    if config.trainer.precision == "32-true":
        return "float32"
    # FSDP2 and DeepSpeed hand bfloat16 weights to the model, so there is nothing to cast
    mixed = config.trainer.precision == "bf16-mixed" and placement.kind == "replicas"
    return "autocast" if mixed else "bfloat16"


def _local(config: ModelConfig, tensor_parallel: int) -> ModelConfig:
    """Shrink a model to one tensor-parallel rank's share of the blocks and, where it divides, of the vocabulary."""
    if tensor_parallel == 1:
        return config
    if splits_vocabulary(config, tensor_parallel):
        config = replace(config, vocab_size=config.padded_vocab_size // tensor_parallel, pad_vocab_to_multiple_of=1)
    return replace(
        config,
        num_heads=config.num_heads // tensor_parallel,
        num_key_value_heads=config.kv_heads // tensor_parallel,
        head_dim=config.width_per_head,
        intermediate_size=config.feedforward_size // tensor_parallel,
    )


@lru_cache(maxsize=1024)
def sizes_of(model_key: str) -> Sizes:
    """Count the parameters of a model as `model_of_rank` gives it."""
    with torch.device("meta"):
        model = Decoder(from_plain(ModelConfig, json.loads(model_key)))
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    muon = [
        module.weight.numel()
        for module in model.blocks.modules()
        if isinstance(module, nn.Linear) and min(module.weight.shape) >= _SMALLEST_MUON_SIDE
    ]
    outer = sum(p.numel() for p in model.parameters()) - sum(blocks)
    return Sizes(outer, sum(blocks), max(blocks), sum(muon), max(muon, default=0))


def _state_numbers(config: OptimizerConfig, sizes: Sizes) -> int:
    """Count the numbers in the optimizer's state: two for each parameter, one where Muon updates it."""
    return 2 * sizes.all - (sizes.muon if config.name == "muon" else 0)


def _step_bytes(
    config: OptimizerConfig, sizes: Sizes, width: int, shares: int = 1, data_parallel: int = 1, tensor_parallel: int = 1
) -> int:
    """Count the temporary bytes of an optimizer step.

    Args:
        config: the optimizer.
        sizes: of one tensor-parallel rank.
        width: bytes of a number of the weights.
        shares: ranks that the weights are spread over.
        data_parallel: those times the replicas.
        tensor_parallel: ranks that share each matrix.
    """
    temporary = 0
    if config.fused is False:
        temporary += sizes.all * width // shares  # AdamW over lists of tensors makes its denominators all at once
    if config.name == "muon":
        # every direction, and a stack that is orthogonalised with two products under way
        ns_width = 2 if config.muon_ns_dtype == "bfloat16" else 4
        temporary += sizes.muon * width // shares
        if data_parallel * tensor_parallel == 1 or shares == 1 == tensor_parallel:
            temporary += min(_MUON_STACK, sizes.muon) * (width + 3 * ns_width)
        else:
            # what is sent; and of the matrices that the rank works on what comes in, the whole and the result
            own = max(sizes.muon // data_parallel, sizes.largest_matrix * tensor_parallel)
            stack = min(max(_MUON_STACK, sizes.largest_matrix * tensor_parallel), own)
            temporary += (sizes.muon // shares + 3 * own + 4 * stack) * ns_width
    return temporary


def _replicas(config: PretrainConfig, placement: Placement, sizes: Sizes) -> Callable[[Moment], DeviceMemory]:
    width = 2 if config.trainer.precision == "bf16-true" else 4
    buckets = sizes.all * width if placement.data_parallel > 1 else 0
    state = _state_numbers(config.optimizer, sizes) * width
    step = _step_bytes(config.optimizer, sizes, width)

    def at(moment: Moment) -> DeviceMemory:
        return DeviceMemory(
            weights=sizes.all * width,
            gradients=buckets or moment.outer_gradients + moment.block_gradients,
            optimizer=state,
            activations=moment.activations,
            loss=moment.loss,
            temporary=step if moment.phase == "step" else moment.temporary,
            communication=0,
        )

    return at


def _fsdp(config: PretrainConfig, placement: Placement, sizes: Sizes) -> Callable[[Moment], DeviceMemory]:
    shares, trainer = placement.shares, config.trainer
    width = 2 if trainer.precision == "bf16-true" else 4  # of a shard
    whole = 4 if trainer.precision == "32-true" else 2  # of a gathered weight, and of its gradient
    on_device = 0 if trainer.offload else 1
    shard = sizes.all * width // shares
    accumulated = placement.accumulation > 1
    # whole gradients wait for the last micro-batch, in the type that they are reduced in
    kept = sizes.all * (_REDUCED_WIDTH if accumulated and not reduces_every_micro_batch(config, placement) else 0)
    forward = sizes.outer * whole + _BLOCKS_GATHERED * sizes.largest_block * whole
    if not trainer.reshard_after_forward:
        forward = sizes.all * whole
    # a block's whole gradient, and the float32 buffers that it and the block before are reduced from
    backward = forward + sizes.largest_block * (whole + 2 * _REDUCED_WIDTH)
    gathered = {"forward": forward, "loss": forward, "backward": backward, "step": 0}
    copies = placement.replicas * shares
    step = _step_bytes(config.optimizer, sizes, width, shares, copies, placement.tensor_parallel) * on_device

    def at(moment: Moment) -> DeviceMemory:
        is_step = moment.phase == "step"
        finished = moment.block_gradients // whole * width // shares
        shards = shard if is_step or (accumulated and not kept) else finished
        if kept and not is_step:
            shards = 0  # the last micro-batch turns a block's whole gradient into its shard, which is smaller
        # those outside the blocks stay whole until the backward pass is over
        unreduced = 0 if is_step else kept or moment.outer_gradients
        return DeviceMemory(
            weights=shard * on_device,
            gradients=shards * on_device + unreduced,
            optimizer=_state_numbers(config.optimizer, sizes) * width // shares * on_device,
            activations=moment.activations,
            loss=moment.loss,
            temporary=step if is_step else moment.temporary,
            communication=gathered[moment.phase],
        )

    return at


def _deepspeed(config: PretrainConfig, placement: Placement, sizes: Sizes) -> Callable[[Moment], DeviceMemory]:
    shares, stage = placement.data_parallel, placement.stage
    width = 4 if config.trainer.precision == "32-true" else 2
    shard = -(-sizes.all // shares)
    # float32 weights beside the state, and at the step the float32 gradient of the shard
    state = (sizes.all * 4 + _state_numbers(config.optimizer, sizes) * 4) // shares
    buckets = 2 * min(_DEEPSPEED_BUCKET, sizes.all) * width if shares > 1 else 0
    gathered = min(_DEEPSPEED_LIVE_WEIGHTS, sizes.all) * width if stage == 3 else 0
    weights = (shard if stage == 3 else sizes.all) * width
    offload_weights = config.trainer.offload and stage == 3

    def at(moment: Moment) -> DeviceMemory:
        whole = moment.outer_gradients + moment.block_gradients
        if placement.accumulation > 1:
            whole = sizes.all * width
        is_step = moment.phase == "step"
        return DeviceMemory(
            weights=0 if offload_weights else weights,
            gradients=whole if stage == 1 else shard * width,
            optimizer=0 if config.trainer.offload else state,
            activations=moment.activations,
            loss=moment.loss,
            temporary=moment.temporary if not is_step else 0 if config.trainer.offload else shard * 4,
            communication=0 if is_step else buckets + gathered,
        )

    return at
