"""Initial weights, the same for any device, strategy and world size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from lit_llm.config import ModelConfig, derived_seed
from lit_llm.distributed.shares import Shares, by_mesh
from lit_llm.distributed.tensors import is_spread, local_part
from lit_llm.model.normalization import OffsetRMSNorm

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Draw = Callable[[], torch.Tensor]

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

    Numbers are drawn on the CPU, one whole parameter at a time. Of a sharded model each rank draws its share of the
    parameters and sends the others their parts: every device, strategy and world size gets the same numbers, no more
    than one parameter is ever whole, and every rank must call. Parameters on the meta device are left for a later call.

    Args:
        model: a decoder, or a part of one.
        config: its configuration.
        seed: names the streams.
        chosen: whether a parameter is meant, by its name in `model`; None: every one is.
        prefix: where a part stands in a decoder, as "blocks.0.", so that it gets the weights that it would have there.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    spread: list[tuple[torch.Tensor, Draw]] = []
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta or (module_name == "head" and config.tie_word_embeddings):
                continue
            if chosen is not None and not chosen(f"{module_name}.{name}".lstrip(".")):
                continue
            value = _value(module, module_name, name, config)
            draw = partial(_drawn, parameter.shape, prefix + module_name, name, config, seed)
            if value is not None:
                local_part(parameter).fill_(value)
            elif is_spread(parameter):
                spread.append((parameter, draw))
            else:
                parameter.copy_(draw())
    _draw_by_share(spread)


def _draw_by_share(parameters: list[tuple[torch.Tensor, Draw]]) -> None:
    """Draw sharded parameters, as many at a time as there are ranks; the largest at once, so that none waits long."""
    parameters = sorted(parameters, key=lambda pair: -pair[0].numel())
    for mesh, all_numbers in by_mesh([parameter for parameter, _ in parameters]).items():
        for dtype in dict.fromkeys(parameters[number][0].dtype for number in all_numbers):
            numbers = [number for number in all_numbers if parameters[number][0].dtype == dtype]
            size = 1 if mesh is None else mesh.size()
            for some in (numbers[start : start + size] for start in range(0, len(numbers), size)):
                if mesh is None:  # a mesh of one rank
                    parts = {0: parameters[some[0]][1]()}
                else:
                    shares = Shares([cast("DTensor", parameters[number][0]) for number in some], torch.Size.numel)
                    parts = shares.deal({each: parameters[some[each]][1]() for each in shares.mine}, dtype)
                for each, part in parts.items():
                    local_part(parameters[some[each]][0]).copy_(part)


def _value(module: nn.Module, module_name: str, name: str, config: ModelConfig) -> float | None:
    """The value that every element of a parameter starts with, or None where elements are drawn."""
    value = _constant(module, name)
    if value is None and name != "lora_A" and not _standard_deviation(module_name.rpartition(".")[2], config):
        return 0.0
    return value


def _drawn(shape: torch.Size, module_name: str, name: str, config: ModelConfig, seed: int) -> torch.Tensor:
    full, generator = torch.empty(shape, dtype=torch.float32), named_generator(seed, f"{module_name}.{name}")
    if name == "lora_A":  # as PEFT, which calls it Kaiming uniform with a = sqrt(5)
        bound = full.size(1) ** -0.5
        return full.uniform_(-bound, bound, generator=generator)
    return full.normal_(0.0, _standard_deviation(module_name.rpartition(".")[2], config), generator=generator)


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
