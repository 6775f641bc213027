"""Texts written by a model that several ranks hold together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import tiny_model
from ranks import mesh_of, run_ranks

from lit_llm.config import ModelConfig, SamplingConfig, TrainerConfig
from lit_llm.generation import Engine
from lit_llm.model import Decoder
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.parallel import arrange

PROMPTS = [[3, 1, 4], list(range(20)), list(range(20)), [7]]


def write(model: Decoder, seed: int) -> list[list[int]]:
    """More texts than places, in chunks, one of them beyond the context."""
    engine = Engine(model, 2, prefill_chunk=8)
    ids = []
    for number, prompt in enumerate(PROMPTS):
        sampling = SamplingConfig(max_new_tokens=5 + 10 * (number % 2), temperature=1.0, seed=seed + number)
        ids.append(engine.submit(prompt, sampling, stop_tokens=[0, 5, 9]))
    done = engine.run()
    return [done[request].ids for request in ids]


def write_on_ranks(config: ModelConfig, tensor_parallel_size: int, expected: list[list[int]]) -> None:
    mesh = mesh_of(2 // tensor_parallel_size, tensor_parallel_size)
    with torch.device("meta"):
        model = Decoder(config, seed=3)
    arrange(model, TrainerConfig(strategy="fsdp", tensor_parallel_size=tensor_parallel_size), mesh)
    model.to_empty(device="cpu")
    model.tie()
    initialize_weights(model, config, 3)
    assert Engine(model, 1).cache.keys[0].size(1) == config.kv_heads // tensor_parallel_size
    assert write(model, 0) == expected
    # where ranks would choose differently, the first one's choice holds, or they would wait for each other for ever
    assert write(model, dist.get_rank()) == expected
    # training goes on with the same memory
    model.train()
    model(torch.tensor([[1, 2, 3]])).sum().backward()


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_ranks_write_what_one_device_writes(tensor_parallel_size: int, tmp_path: Path) -> None:
    config = tiny_model("llama-10m", num_key_value_heads=2, init_std=0.2)
    expected = write(Decoder(config, seed=3).eval(), 0)
    run_ranks(write_on_ranks, 2, tmp_path, config, tensor_parallel_size, expected)
