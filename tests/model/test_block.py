"""Blocks and attention that are used by themselves, as parts of another model would be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens

from lit_llm.config import UserError
from lit_llm.model import Attention, Block, Decoder, KVCache

WINDOWED = {
    "sliding_window": 4,
    "full_attention_every": 2,
    "rope_theta_windowed": 50.0,
    "num_layers": 2,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "windowed": ("llama-10m", WINDOWED),
    "modern": ("modern-10m", {}),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def config(request: pytest.FixtureRequest):
    name, fields = request.param
    return tiny_model(name, **fields)


def test_initial_weights_are_those_of_a_decoder(config) -> None:
    whole = Decoder(config, seed=3).state_dict()
    for layer in range(config.num_layers):
        for part, prefix in (
            (Block(config, layer, seed=3), f"blocks.{layer}."),
            (Attention(config, layer, seed=3), f"blocks.{layer}.attention."),
        ):
            state = part.state_dict()
            assert state.keys() == {name.removeprefix(prefix) for name in whole if name.startswith(prefix)}
            assert all(torch.equal(tensor, whole[prefix + name]) for name, tensor in state.items())
    first, second = (Block(config, 0, seed=seed).attention.q_proj.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def captured(decoder: Decoder, run) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each block reads and gives while `run` runs."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [block.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for block in decoder.blocks]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_a_block_alone_computes_what_it_does_in_a_decoder(config) -> None:
    decoder = random_decoder(config)
    tokens = random_tokens(config, 2, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 8 + [1] * 4])
    plain = captured(decoder, lambda: decoder(tokens))
    packed = captured(decoder, lambda: decoder(tokens, document_ids=documents))
    cache, own = KVCache(config, 2, 12), KVCache(config, 2, 12)
    decoder(tokens[:, :9], cache=cache)
    cached = captured(decoder, lambda: decoder(tokens[:, 9:], cache=cache))
    blocks = [Block(config, layer, seed=None).eval() for layer in range(config.num_layers)]
    first = own.step(9)
    for layer, block in enumerate(blocks):
        block.load_state_dict(decoder.blocks[layer].state_dict())
        x, y = plain[layer]
        needs_tokens = block.attention.value_embedding is not None
        if not needs_tokens:
            torch.testing.assert_close(block(x), y)
        torch.testing.assert_close(block(x, block.attention.context(x, tokens=tokens)), y)
        block(x[:, :9], block.attention.context(x[:, :9], tokens=tokens[:, :9], cache=first))
        x, y = packed[layer]
        context = block.attention.context(x, tokens=tokens, document_ids=documents)
        torch.testing.assert_close(block(x, context), y)
    first.advance(tokens[:, :9])
    step = own.step(3)
    for block, (x, y) in zip(blocks, cached, strict=True):
        torch.testing.assert_close(block(x, block.attention.context(x, tokens=tokens[:, 9:], cache=step)), y)


def test_positions_of_the_caller() -> None:
    """Attention looks at distances alone, so that only their differences count."""
    attention = Attention(tiny_model("llama-10m"))
    x = torch.randn(2, 6, attention.config.hidden_size, generator=torch.Generator().manual_seed(0))
    shifted = attention(x, attention.context(x, positions=torch.arange(3, 9)))
    torch.testing.assert_close(shifted, attention(x), rtol=1e-4, atol=1e-6)
    stretched = attention(x, attention.context(x, positions=3 * torch.arange(6)))
    assert (stretched - shifted).abs().max() > 100 * 1e-6
    shifted.sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())


def test_what_a_layer_alone_refuses() -> None:
    config = tiny_model("modern-10m")
    block = Block(config, config.num_layers - 1)
    x = torch.zeros(1, 4, config.hidden_size)
    with pytest.raises(ValueError, match=r"context\(x, tokens="):
        block(x)
    with pytest.raises(UserError, match="longer than the model's context"):
        block(torch.zeros(1, config.max_position_embeddings + 1, config.hidden_size))
    step = KVCache(config, 1, 8).step(4)
    with pytest.raises(ValueError, match="cannot be used together"):
        block.attention.context(x, document_ids=torch.zeros(1, 4), cache=step)
