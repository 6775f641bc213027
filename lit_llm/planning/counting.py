"""Parameters and floating-point operations, counted rather than estimated."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_llm.config import ModelConfig
from lit_llm.model import Decoder

_PARTS = (
    # the first word found in a parameter's name says what it belongs to
    ("position_embedding", "position embedding"),
    ("value_embedding", "value embeddings"),
    ("value_gate", "gates and shares"),
    ("smear", "gates and shares"),
    ("_share", "gates and shares"),
    ("norm", "norms"),
    ("attention", "attention"),
    ("feedforward", "feed-forward"),
    ("value_head", "value head"),
    ("head", "head"),
    ("embedding", "embedding"),
)


def count_parameters(config: ModelConfig) -> int:
    """Count the trainable parameters, tied weights once."""
    return sum(parameters_by_part(config).values())


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Count the trainable parameters of each part that the model has.

    A head tied to the embedding counts as "embedding". A run asks several times for the same model, which is made once.
    """
    key = f"{config}"
    if key not in _parts:
        with torch.device("meta"):
            model = Decoder(config)
        counts: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            part = next(part for word, part in _PARTS if word in name)
            counts[part] = counts.get(part, 0) + parameter.numel()
        _parts[key] = counts
    return dict(_parts[key])


_parts: dict[str, dict[str, int]] = {}


def training_flops_per_token(config: ModelConfig, sequence_length: int, frozen: bool = False) -> float:
    """Count the floating-point operations of a forward and backward pass for each token of a window.

    Counted on the meta device from the operations that the decoder runs, so it holds for every architecture. Causal
    attention is counted whole, as model-FLOPs utilisation is usually quoted (PaLM, appendix B).

    Args:
        config: the decoder's configuration.
        sequence_length: tokens in a window.
        frozen: the weights get no gradients, which are a third of all; that of the embedding is passed back through
            every block, as adapters need it. What these compute themselves is not counted.
    """
    # blocks repeat with a period of at most two (value embeddings), so a deep model follows from two shallow ones
    shallow = 2 + config.num_layers % 2
    if config.num_layers <= shallow + 2:
        return _count(config, sequence_length, frozen) / sequence_length
    few, more = (
        _count(replace(config, num_layers=layers), sequence_length, frozen) for layers in (shallow, shallow + 2)
    )
    return (few + (config.num_layers - shallow) // 2 * (more - few)) / sequence_length


def _outputs(model: Decoder, hidden: Tensor, head: nn.Linear) -> Tensor:
    """Run a model and join the outputs of all of its heads [b, t, outputs]."""
    outputs = [head(hidden)] if model.value_head is None else [head(hidden), model.value_head(hidden)]
    return torch.cat(outputs, dim=-1)


def _count(config: ModelConfig, sequence_length: int, frozen: bool = False) -> int:
    """Count the operations of one window, and remember them: the runs of a process often have the same model."""
    key = f"{config} {sequence_length} {frozen}"
    if key not in _counted:
        _counted[key] = _count_anew(config, sequence_length, frozen)
    return _counted[key]


_counted: dict[str, int] = {}


def _count_anew(config: ModelConfig, sequence_length: int, frozen: bool) -> int:
    with torch.device("meta"):
        model = Decoder(config)
        model.masks_attention = True  # whole, also where a kernel leaves out what no token sees
        if frozen:
            model.requires_grad_(False)
            model.embedding.register_forward_hook(lambda module, inputs, embedded: embedded.requires_grad_())
        tokens = torch.zeros(1, sequence_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(tokens, head=partial(_outputs, model)).sum().backward()
    return counter.get_total_flops()
