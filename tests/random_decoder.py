"""Decoders in which every parameter matters, for tests that compare two ways of computing the same thing."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lit_llm.config import LoraConfig, ModelConfig
from lit_llm.model import Decoder
from lit_llm.model.lora import add_lora, prepare_dora

# Mixes and strengths that start where their mechanism does nothing.
CENTRES = {"stream_share": 0.9, "shortcut_share": 0.4, "strength": 0.7}


@torch.no_grad()
def random_decoder(config: ModelConfig, seed: int = 0, std: float = 0.2) -> Decoder:
    """A decoder in evaluation mode, with large weights, uneven norms and biases, and gates that are open."""
    model = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2]
        noise = std * torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            noise += CENTRES.get(kind, 0.0 if kind == "bias" else 1.0)
        parameter.copy_(noise)
    return model


def random_tokens(config: ModelConfig, *shape: int, seed: int = 1) -> torch.Tensor:
    """Token ids of any shape."""
    assert config.vocab_size is not None
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert one.shape == other.shape
    return float((one - other).detach().abs().max())


def alone(decoder: Decoder, texts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each text [t] read by itself, without document ids or a cache."""
    with torch.no_grad():
        return [decoder(text.unsqueeze(0))[0] for text in texts]


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is trained: with low-rank additions these, and a new head. Sharded as in the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def add_random_lora(model: Decoder, config: LoraConfig, seed: int) -> dict[str, torch.Tensor]:
    """Low-rank additions that matter, as they are after training; returns their tensors."""
    add_lora(model, config, seed=seed)
    prepare_dora(model)
    generator = torch.Generator().manual_seed(seed)
    for value in trained_state(model).values():
        value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return trained_state(model)
