"""A decoder over several ranks is the decoder of one: weights, loss, gradients, norm and updates.

To the rounding of float32; under Muon with Newton-Schulz in bfloat16, updates agree to a percent of their length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import CANCELLED, assert_same_gradients, total_norm
from collectives import pretended_ranks
from conftest import tiny_model
from ranks import mesh_of, run_ranks, spread_decoder
from torch.distributed.tensor import DTensor

from lit_llm.config import ModelConfig, OptimizerConfig, TrainerConfig, UserError
from lit_llm.distributed.tensors import is_sharded, shard_like, whole_like
from lit_llm.model import Decoder
from lit_llm.model.parallel import arrange, check_divisible
from lit_llm.optimization import build_optimizer, clip_gradients, gradient_norm

STEPS = 2
CLIP = 0.1  # which every gradient here exceeds
# Share of the way that a weight has gone by which ranks may differ from one device. Each of the five iterations of
# Newton-Schulz in bfloat16 (8 bits) rounds by up to 2^-9 what a rounding of the gradient has moved across an edge.
UPDATE_ERROR = {"auto": 2e-4, "float32": 2e-4, "bfloat16": 5 * 2**-8}

# a vocabulary of 399 cannot be divided evenly
ARCHITECTURES = {
    "llama": {"name": "llama-10m", "num_key_value_heads": 2, "vocab_size": 399},
    "gpt2": {"name": "gpt2", "dropout": 0.0},
    "qwen3": {"name": "qwen3-0.6b", "num_key_value_heads": 2, "head_dim": 8},
    "modern": {"name": "modern-1m", "intermediate_size": 64},
}


def architecture(name: str) -> ModelConfig:
    """A tiny model whose gates and shortcuts do something."""
    return tiny_model(**{"init_std": 0.2, "zero_init_projections": False, **ARCHITECTURES[name]})


def batch(config: ModelConfig) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (12, 16), generator=torch.Generator().manual_seed(0))


def named(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Those of one kind, by parameter."""
    return {name.removeprefix(f"{kind}/"): value for name, value in tensors.items() if name.startswith(f"{kind}/")}


def loss_of(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens[:, :-1]).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def one_device(config: ModelConfig, optimizer: OptimizerConfig) -> dict[str, torch.Tensor]:
    """Weights before, gradients, their norm and weights after two steps, on one device."""
    model = Decoder(config, seed=3)
    found = {f"initial/{name}": value.detach().clone() for name, value in model.named_parameters()}
    steps = build_optimizer(model, optimizer)
    for step in range(STEPS):
        loss_of(model, batch(config)).backward()
        if step == 0:
            found.update({f"gradient/{name}": value.grad.clone() for name, value in model.named_parameters()})
            found["norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            found["clipped norm"] = torch.nn.utils.get_total_norm([value.grad for value in model.parameters()])
        steps.step()
        steps.zero_grad()
    return found | {f"final/{name}": value.detach().clone() for name, value in model.named_parameters()}


def compare(config: ModelConfig, optimizer: OptimizerConfig, trainer: TrainerConfig, data: int, expected: dict) -> None:
    """What `one_device` does, in one rank of many."""
    mesh = mesh_of(data, trainer.tensor_parallel_size)
    model = spread_decoder(config, trainer, mesh, seed=3)
    assert is_sharded(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())

    found = {f"initial/{name}": value.full_tensor().clone() for name, value in model.named_parameters()}
    rows = batch(config).chunk(data)[mesh["data_parallel"].get_local_rank()]
    steps = build_optimizer(model, optimizer)
    for step in range(STEPS):
        loss_of(model, rows).backward()
        if step == 0:
            found.update(
                {f"gradient/{name}": value.grad.full_tensor().clone() for name, value in model.named_parameters()}
            )
            found["norm"] = clip_gradients(model.parameters(), CLIP)
            found["clipped norm"] = gradient_norm([value.grad for value in model.parameters()])
        steps.step()
        steps.zero_grad()
    found.update({f"final/{name}": value.full_tensor().clone() for name, value in model.named_parameters()})
    assert found.keys() == expected.keys()
    for name in named(expected, "initial"):
        assert torch.equal(found[f"initial/{name}"], expected[f"initial/{name}"]), name
    assert_same_gradients(named(found, "gradient"), named(expected, "gradient"))
    for name in ("norm", "clipped norm"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=0.0)
    assert float(found["clipped norm"]) == pytest.approx(CLIP, rel=1e-4)
    # AdamW divides by the gradient's size, but by no less than eps: so far may the rounding of one that cancels go
    noise = CANCELLED * total_norm(named(expected, "gradient")) / optimizer.eps * optimizer.learning_rate * STEPS
    for name, value in named(expected, "final").items():
        way = float((value - expected[f"initial/{name}"]).norm())
        allowed = (UPDATE_ERROR[optimizer.muon_ns_dtype] if value.ndim == 2 else UPDATE_ERROR["float32"]) * way
        assert float((found[f"final/{name}"] - value).norm()) <= allowed + noise, name


@pytest.mark.parametrize(
    ("name", "data", "tensor", "ns_dtype"),
    [
        ("llama", 2, 1, "auto"),
        ("llama", 1, 2, "auto"),
        ("modern", 2, 2, "auto"),
        ("modern", 2, 1, "bfloat16"),
        pytest.param("qwen3", 2, 2, "auto", marks=pytest.mark.slow),
        pytest.param("gpt2", 1, 2, "auto", marks=pytest.mark.slow),
        pytest.param("modern", 3, 1, "auto", marks=pytest.mark.slow),
        pytest.param("gpt2", 4, 1, "auto", marks=pytest.mark.slow),
        pytest.param("llama", 1, 1, "auto", marks=pytest.mark.slow),
    ],
)
def test_ranks_are_one_device(name: str, data: int, tensor: int, ns_dtype: Any, tmp_path: Path) -> None:
    config = architecture(name)
    kind = "muon" if name == "modern" else "adamw"
    optimizer = OptimizerConfig(name=kind, eps=1e-5, learning_rate=1e-3, muon_ns_dtype=ns_dtype)
    trainer = TrainerConfig(strategy="fsdp", tensor_parallel_size=tensor)
    expected = one_device(config, optimizer)
    run_ranks(compare, data * tensor, tmp_path, config, optimizer, trainer, data, expected)


def cut_and_join() -> None:
    mesh = mesh_of(2, 2)
    config = architecture("qwen3")
    with torch.device("meta"):
        model = Decoder(config)
    arrange(model, TrainerConfig(strategy="fsdp", tensor_parallel_size=2), mesh)
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        full = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        part = shard_like(full, parameter)
        assert part.placements == parameter.placements, name
        assert part.to_local().shape == parameter.to_local().shape, name
        assert torch.equal(part.full_tensor(), full), name
        assert torch.equal(whole_like(part.to_local(), parameter), full), name


def test_a_part_is_this_ranks_slice(tmp_path: Path) -> None:
    run_ranks(cut_and_join, 4, tmp_path)


def test_a_norm_over_all_heads_cannot_be_divided() -> None:
    with pytest.raises(UserError, match=r"tensor_parallel_size must be 1: model\.qk_norm_width all"):
        check_divisible(tiny_model("olmo2-1b"), 2)
    check_divisible(tiny_model("olmo2-1b"), 1)


def test_heads_that_cannot_be_divided_are_refused() -> None:
    refused = pytest.raises(UserError, match=r"tensor_parallel_size 3 does not divide the model's heads \(4\)")
    with pretended_ranks(3), refused:
        arrange(Decoder(tiny_model()), TrainerConfig(strategy="fsdp", tensor_parallel_size=3), mesh_of(1, 3))


def test_plain_tensors_are_left_alone() -> None:
    full = torch.randn(3, 4)
    assert shard_like(full, torch.empty(3, 4)) is full
    assert whole_like(full, torch.empty(3, 4)) is full
    assert not is_sharded(Decoder(tiny_model()))
