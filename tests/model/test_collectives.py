"""How often ranks exchange something in a micro-batch, counted by one that stands for the first of many."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from collectives import Collectives, pretended_ranks
from conftest import tiny_model

from lit_llm.config import ModelConfig, TrainerConfig
from lit_llm.distributed.gathering import gathered_once
from lit_llm.distributed.meshes import make_mesh
from lit_llm.model import Decoder
from lit_llm.model.parallel import arrange
from lit_llm.training.sharded import ShardedStrategy

BLOCKS = 2
GATHERS = (
    2 * BLOCKS + 1
)  # a block's weights for each pass; what is outside the blocks stays until the backward pass ends


def spread(config: ModelConfig, ranks: int, **fields: Any) -> tuple[Decoder, ShardedStrategy]:
    """A decoder on the first of many ranks, and the strategy that has arranged it."""
    trainer = TrainerConfig(strategy="fsdp", **fields)
    tensor, replicas = trainer.tensor_parallel_size, trainer.fsdp_replicas
    mesh = make_mesh("cpu", ranks // tensor // replicas, tensor, replicas=replicas)
    with torch.device("meta"):
        model = Decoder(config)
    arrange(model, trainer, mesh)
    model.to_empty(device="cpu")
    model.tie()
    strategy = ShardedStrategy(
        data_parallel_size=ranks // tensor,
        tensor_parallel_size=tensor,
        replicas=replicas,
        reduce_every_micro_batch=trainer.reduce_every_micro_batch,
    )
    strategy._lightning_module = model
    return model, strategy


def exchanged(model: Decoder, strategy: ShardedStrategy, last: bool, group_size: int | None = None) -> dict[str, int]:
    tokens = torch.zeros(2, 16, dtype=torch.long)
    with nullcontext() if last else strategy.block_backward_sync(), Collectives(group_size) as seen:
        model(tokens, head=lambda hidden, head: hidden.sum() + head.weight.sum()).backward()
    return dict(seen.counts)


@pytest.mark.parametrize(
    ("fields", "first", "last"),
    [
        ({}, {}, {"reduce_scatter": BLOCKS + 1}),
        ({"reduce_every_micro_batch": True}, *[{"reduce_scatter": BLOCKS + 1}] * 2),
        ({"fsdp_replicas": 2}, {}, {"reduce_scatter": BLOCKS + 1, "all_reduce": BLOCKS + 1}),
        # only what is reduced inside a copy already travels between copies, and once
        (
            {"fsdp_replicas": 2, "reduce_every_micro_batch": True},
            {"reduce_scatter": BLOCKS + 1},
            {"reduce_scatter": BLOCKS + 1, "all_reduce": BLOCKS + 1},
        ),
    ],
)
def test_gradients_are_sent_once_in_an_accumulated_step(
    fields: dict[str, Any], first: dict[str, int], last: dict[str, int]
) -> None:
    with pretended_ranks(8):
        model, strategy = spread(tiny_model(), 8, **fields)
        for _ in range(2):  # steps
            for _ in range(2):
                assert exchanged(model, strategy, last=False) == {"all_gather": GATHERS, **first}
            assert exchanged(model, strategy, last=True) == {"all_gather": GATHERS, **last}


def test_weights_that_are_kept_are_gathered_once() -> None:
    with pretended_ranks(8):
        model, strategy = spread(tiny_model(), 8, reshard_after_forward=False)
        assert exchanged(model, strategy, last=True)["all_gather"] == BLOCKS + 1


def test_texts_are_written_with_weights_that_are_gathered_once() -> None:
    def write(model: Decoder) -> int:
        tokens = torch.zeros(1, 3, dtype=torch.long)
        with torch.no_grad(), Collectives() as seen:
            for _ in range(3):  # tokens
                model(tokens)
        return seen.counts["all_gather"]

    with pretended_ranks(8):
        model, _ = spread(tiny_model(), 8)
        each_time = write(model)
        assert each_time == 3 * BLOCKS + 1
        with gathered_once(model):
            assert write(model) == BLOCKS  # what is outside of them is still there
            assert write(model) == 0
        assert write(model) == each_time
