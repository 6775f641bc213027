"""What a run costs, before it is paid for: parameters and floating-point operations, counted rather than estimated."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_llm.config import ModelConfig
from lit_llm.model import Decoder


def count_parameters(config: ModelConfig) -> int:
    """Number of trainable parameters, tied weights counted once."""
    with torch.device("meta"):
        model = Decoder(config)
    return sum(parameter.numel() for parameter in model.parameters())


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Floating-point operations of one forward and backward pass, for each token of a window.

    Counted on the meta device from the operations that the decoder runs, so it holds for every architecture. Causal
    attention is counted whole, as model-FLOPs utilisation is usually quoted (PaLM, appendix B).

    Args:
        config: the decoder's configuration.
        sequence_length: tokens in a window.
    """
    with torch.device("meta"):
        model = Decoder(config)
        tokens = torch.zeros(1, sequence_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(tokens).float().sum().backward()
    return counter.get_total_flops() / sequence_length
