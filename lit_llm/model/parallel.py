"""How a decoder is laid out over devices: tensor parallelism, compilation, and sharding (FSDP2), in this order.

A sharded parameter is a DTensor. Its layout is over the mesh dimensions ("data_parallel", "tensor_parallel"), or over
the first alone where tensor parallelism leaves it whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lit_llm.config import ModelConfig, TrainerConfig, UserError
from lit_llm.model.checkpointing import block_choices

if TYPE_CHECKING:
    from lit_llm.model.decoder import Block, Decoder


def arrange(model: Decoder, config: TrainerConfig, mesh: DeviceMesh | None) -> None:
    """Split, compile and shard `model` as `config` says; its parameters may still be on the meta device.

    Args:
        model: changed in place; no parameter is renamed.
        config: activation checkpointing, compilation, precision and offloading.
        mesh: "data_parallel" x "tensor_parallel" devices to shard over; None: the model stays whole.

    Raises:
        UserError: the heads or the feed-forward width cannot be divided among the tensor-parallel ranks.
    """
    if mesh is not None and mesh["tensor_parallel"].size() > 1:
        _split_products(model, mesh["tensor_parallel"])
    for block, choice in zip(_blocks(model), block_choices(config, model.config.num_layers), strict=True):
        block.checkpointing = choice
    if config.compile:
        for block in _blocks(model):
            block.compile()
    if mesh is not None:
        _shard(model, config, mesh["data_parallel"])


def _split_products(model: Decoder, mesh: DeviceMesh) -> None:
    """Give each rank its share of the heads and of the feed-forward width. Embeddings, norms and head stay whole.

    Source: Shoeybi et al. 2019 (Megatron-LM).
    """
    config, size = model.config, mesh.size()
    check_divisible(config, size)
    plan: dict[str, ColwiseParallel | RowwiseParallel | SequenceParallel] = {
        **{f"attention.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")},
        "attention.o_proj": RowwiseParallel(),
        "feedforward.up_proj": ColwiseParallel(),
        "feedforward.down_proj": RowwiseParallel(),
    }
    if config.gated:
        plan["feedforward.gate_proj"] = ColwiseParallel()
    if config.qk_norm and config.norm_weight:
        # each rank sees its own heads [b, t, n_h, d]; the weight is one for all, so its gradient is summed over ranks
        for name in ("q_norm", "k_norm"):
            plan[f"attention.{name}"] = SequenceParallel(sequence_dim=2, use_local_output=True)
    for block in _blocks(model):
        values = {}
        if block.attention.value_embedding is not None:
            values = {f"attention.{name}": ColwiseParallel() for name in ("value_embedding", "value_gate")}
        parallelize_module(block, mesh, {**plan, **values})
    model.tensor_parallel_size = size


def _blocks(model: Decoder) -> list[Block]:
    return cast("list[Block]", list(model.blocks))


def check_divisible(config: ModelConfig, tensor_parallel_size: int) -> None:
    """Refuse a number of tensor-parallel ranks that the architecture cannot be divided among.

    Raises:
        UserError: names what does not divide.
    """
    if tensor_parallel_size > 1 and config.qk_norm_width == "all":
        raise UserError("trainer.tensor_parallel_size must be 1: model.qk_norm_width all needs every head on one rank")
    for name, count in (
        ("heads", config.num_heads),
        ("key-value heads", config.kv_heads),
        ("feed-forward width", config.feedforward_size),
    ):
        if count % tensor_parallel_size:
            raise UserError(
                f"trainer.tensor_parallel_size {tensor_parallel_size} does not divide the model's {name} ({count})"
            )


def _shard(model: Decoder, config: TrainerConfig, mesh: DeviceMesh) -> None:
    # a world of one is sharded too: a sharded checkpoint loads into sharded parameters only
    half = config.precision != "32-true"
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
    )
    offload: OffloadPolicy = CPUOffloadPolicy() if config.offload else OffloadPolicy()
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=precision, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=precision, offload_policy=offload)
