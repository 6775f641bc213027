"""Initial weights, the same for any device, strategy and world size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lit_llm.config import ModelConfig, derived_seed
from lit_llm.distributed.tensors import shard_like
from lit_llm.model.normalization import OffsetRMSNorm

# Projections that write into the residual stream, 2 in each block.
RESIDUAL_PROJECTIONS = ("o_proj", "down_proj")
# Gates that start half open, whatever they read.
GATES = ("value_gate", "gate")
# Learned numbers that are no matrices: the token smear starts off, a block reads the stream and not its shortcut.
# A low-rank addition starts at zero; `lit_llm.model.lora.prepare_dora` sets the lengths beside it.
CONSTANTS = {"strength": 0.0, "stream_share": 1.0, "shortcut_share": 0.0, "lora_B": 0.0, "lora_magnitude": 1.0}


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU random stream that depends on the seed and the name alone."""
    return torch.Generator().manual_seed(derived_seed(seed, name))


@torch.no_grad()
def initialize_weights(
    model: nn.Module, config: ModelConfig, seed: int, chosen: Callable[[str], bool] | None = None, prefix: str = ""
) -> None:
    """Draw normal weights of `config.init_std`; residual projections shrink with depth, biases are 0, norms 1.

    Numbers are drawn on the CPU, one whole parameter at a time, and each rank keeps its part: every device, strategy
    and world size gets the same ones, and no more than one parameter is ever whole. Parameters on the meta device are
    left for a later call.

    Args:
        model: a decoder, or a part of one.
        config: its configuration.
        seed: names the streams.
        chosen: whether a parameter is meant, by the last part of its name; None: every one is.
        prefix: where a part stands in a decoder, as "blocks.0.", so that it gets the weights that it would have there.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta or (module_name == "head" and config.tie_word_embeddings):
                continue
            if chosen is not None and not chosen(name):
                continue
            full = torch.empty(parameter.shape, dtype=torch.float32)
            _fill(full, module, prefix + module_name, name, config, seed)
            parameter.copy_(shard_like(full.to(parameter.dtype), parameter))


def _fill(full: torch.Tensor, module: nn.Module, module_name: str, name: str, config: ModelConfig, seed: int) -> None:
    generator = named_generator(seed, f"{module_name}.{name}")
    value = _constant(module, name)
    if value is not None:
        full.fill_(value)
    elif name == "lora_A":  # as PEFT, which calls it Kaiming uniform with a = sqrt(5)
        bound = full.size(1) ** -0.5
        full.uniform_(-bound, bound, generator=generator)
    else:
        std = _standard_deviation(module_name.rpartition(".")[2], config)
        full.normal_(0.0, std, generator=generator) if std else full.zero_()


def _constant(module: nn.Module, name: str) -> float | None:
    """The value that every element of a parameter starts with, or None where elements are drawn."""
    if name == "bias":
        return 0.0
    if isinstance(module, OffsetRMSNorm):
        return 0.0
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return 1.0
    return CONSTANTS.get(name)


def _standard_deviation(kind: str, config: ModelConfig) -> float:
    if kind in GATES:
        return 0.0
    if kind in RESIDUAL_PROJECTIONS:
        return 0.0 if config.zero_init_projections else config.init_std / (2 * config.num_layers) ** 0.5
    if kind == "value_head" or (kind == "head" and config.output == "score"):
        return (config.hidden_size + 1) ** -0.5  # Stiennon et al. 2020, appendix B.1
    return config.init_std
