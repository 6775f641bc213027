"""How a decoder is laid out over devices: tensor parallelism, compilation, and sharding (FSDP2), in this order.

A sharded parameter is a DTensor. Its layout is over the mesh dimensions ("data_parallel", "tensor_parallel"), or over
the first alone where tensor parallelism leaves it whole; with replicas "replicas" comes before them.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor.parallel import ParallelStyle, SequenceParallel, parallelize_module

from lit_llm.config import ModelConfig, TrainerConfig, UserError
from lit_llm.distributed.meshes import context_group, data_mesh
from lit_llm.model.checkpointing import block_choices
from lit_llm.model.context_parallel import ContextRanks, check_context
from lit_llm.model.float8 import use_float8
from lit_llm.model.tensor_parallel import (
    ColumnEmbedding,
    ColumnLinear,
    RowLinear,
    TensorRanks,
    split,
    split_vocabulary,
    splits_vocabulary,
)

if TYPE_CHECKING:
    from lit_llm.model.decoder import Block, Decoder


def arrange(model: Decoder, config: TrainerConfig, mesh: DeviceMesh | None) -> None:
    """Split, compile and shard `model` as `config` says; its parameters may still be on the meta device.

    Args:
        model: changed in place; no parameter is renamed.
        config: attention, activation checkpointing, compilation, precision and offloading.
        mesh: of `make_mesh`, the devices to shard over; None: the model stays whole.

    Raises:
        UserError: the heads or the feed-forward width cannot be divided among the ranks that share them; or float8 is
            asked for, and torchao is missing or has nothing to do.
    """
    if mesh is not None and mesh["tensor_parallel"].size() > 1:
        _split_products(model, mesh["tensor_parallel"], config.sequence_parallel)
    if config.float8:
        use_float8(model.blocks)
    model.masks_attention = config.attention_kernel == "mask"
    if mesh is not None and config.context_parallel_size > 1:
        check_context(model.config, config)
        model.text_ranks = ContextRanks(context_group(mesh, config.context_parallel_size))
    for block, choice in zip(_blocks(model), block_choices(config, model.config.num_layers), strict=True):
        block.checkpointing = choice
    if compiles(config):
        for block in _blocks(model):
            block.compile()
    if mesh is not None:
        _shard(model, config, data_mesh(mesh))


def compiles(config: TrainerConfig) -> bool:
    """Whether blocks are compiled where a run of this configuration trains: on this machine's GPU, or its CPU."""
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    # "auto" leaves blocks as they are where there is nothing to compile them with
    asked = config.compile != "auto" or importlib.util.find_spec("triton") is not None
    return asked and config.compiles("cuda" if on_gpu else "cpu")


def _split_products(model: Decoder, mesh: DeviceMesh, splits_tokens: bool) -> None:
    """Give each rank its share of the heads, of the feed-forward width and, where it divides, of the vocabulary."""
    config, size = model.config, mesh.size()
    check_divisible(config, size, splits_tokens)
    ranks = TensorRanks(mesh, splits_tokens)
    for block in _blocks(model):
        attention, feedforward = block.attention, block.feedforward
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.value_gate):
            if layer is not None:
                split(layer, ColumnLinear, mesh, 0)
        if attention.value_embedding is not None:
            split(attention.value_embedding, ColumnEmbedding, mesh, 1)
        for layer in (feedforward.up_proj, feedforward.gate_proj):
            if layer is not None:
                split(layer, ColumnLinear, mesh, 0)
        split(attention.o_proj, RowLinear, mesh, 1)
        split(feedforward.down_proj, RowLinear, mesh, 1)
        _share_norms(block, mesh, splits_tokens)
        block.ranks = ranks
    if splits_vocabulary(config, size):
        split_vocabulary(model.embedding, model.head, mesh, config.tie_word_embeddings)
    model.ranks = ranks


def _share_norms(block: Block, mesh: DeviceMesh, splits_tokens: bool) -> None:
    """Let the gradient of a norm's weight be summed over ranks that norm heads or tokens of their own."""
    norms = {"attention.q_norm": 2, "attention.k_norm": 2}  # [b, t, n_h, d]
    if splits_tokens:
        norms |= dict.fromkeys(
            ("attention_norm", "feedforward_norm", "attention_output_norm", "feedforward_output_norm"), 1
        )
    plan: dict[str, ParallelStyle] = {}
    for name, dim in norms.items():
        norm = block.get_submodule(name) if name in dict(block.named_modules()) else None
        if norm is not None and next(norm.parameters(), None) is not None:
            plan[name] = SequenceParallel(sequence_dim=dim, use_local_output=True)
    parallelize_module(block, mesh, plan)


def _blocks(model: Decoder) -> list[Block]:
    return cast("list[Block]", list(model.blocks))


def check_divisible(config: ModelConfig, tensor_parallel_size: int, splits_tokens: bool = False) -> None:
    """Refuse a number of tensor-parallel ranks that the architecture, or its longest text, cannot be divided among.

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
    if splits_tokens and config.max_position_embeddings % tensor_parallel_size:
        raise UserError(
            f"trainer.sequence_parallel cuts texts into tensor_parallel_size {tensor_parallel_size} parts, which "
            f"does not divide model.max_position_embeddings {config.max_position_embeddings}"
        )


def _shard(model: Decoder, config: TrainerConfig, mesh: DeviceMesh) -> None:
    # a world of one is sharded too: a sharded checkpoint loads into sharded parameters only
    half = config.precision != "32-true"
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
    )
    offload: OffloadPolicy = CPUOffloadPolicy() if config.offload else OffloadPolicy()
    for block in _blocks(model):
        fully_shard(
            block,
            mesh=mesh,
            mp_policy=precision,
            offload_policy=offload,
            reshard_after_forward=config.reshard_after_forward,
        )
    # a score's three digits in bfloat16 would let pairs tie: `token_scores` computes it in the weight's own type
    for head in (model.head if model.config.output == "score" else None, model.value_head):
        if head is not None:
            fully_shard(head, mesh=mesh, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=precision, offload_policy=offload)
