"""Initial weights, the same for any device, strategy and world size."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from lit_llm.config import ModelConfig

# Projections that write into the residual stream, 2 in each block.
RESIDUAL_PROJECTIONS = ("o_proj", "down_proj")
# Gates that start half open, whatever they read.
GATES = ("value_gate", "gate")


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU random stream that depends on the seed and the name alone."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def initialize_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Normal weights of `config.init_std`, residual projections scaled down by depth, zero biases, unit norms.

    Numbers are drawn on the CPU and copied, so every device gets the same ones. Parameters on the meta device are
    left for a later call.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    for module_name, module in model.named_modules():
        kind = module_name.rpartition(".")[2]
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        if module.weight.is_meta or (module_name == "head" and config.tie_word_embeddings):
            continue
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.zero_()
        std = config.init_std
        if kind in RESIDUAL_PROJECTIONS:
            std = 0.0 if config.zero_init_projections else std / (2 * config.num_layers) ** 0.5
        if kind in GATES:
            std = 0.0
        _fill_normal(module.weight, std, named_generator(seed, f"{module_name}.weight"))


def _fill_normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    if std == 0.0:
        weight.zero_()
        return
    weight.copy_(torch.empty(weight.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))
