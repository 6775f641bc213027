"""The feed-forward half of a block, plain or gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import ModelConfig


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
    "relu2": _relu_squared,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class FeedForward(nn.Module):
    """`down(act(up x))`, or `down(act(gate x) * up x)` where gated.

    Source: Shazeer 2020 (SwiGLU, GEGLU); So et al. 2021 (squared ReLU).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.feedforward_size
        self.activation = ACTIVATIONS[config.activation]
        self.gate_proj = nn.Linear(width, inner, bias=config.mlp_bias) if config.gated else None
        self.up_proj = nn.Linear(width, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [b, t, hidden]. Returns: the same shape."""
        inner: Tensor = self.up_proj(x)  # [b, t, inner]
        if self.gate_proj is None:
            return self.down_proj(self.activation(inner))
        return self.down_proj(self.activation(self.gate_proj(x)) * inner)
