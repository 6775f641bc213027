"""The feed-forward half of a block, plain or gated."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import ModelConfig
from lit_llm.model.linear import Linear


class _ReluSquared(torch.autograd.Function):
    """`relu(x)^2`, keeping `relu(x)` alone, which also says where the gradient is 0: two passes each way."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2.0)


def relu_squared(x: Tensor) -> Tensor:
    """Squared ReLU; the compiler fuses the plain formula by itself."""
    if torch.compiler.is_compiling():
        return F.relu(x).square()
    if not torch.is_grad_enabled():
        return F.relu(x).square_()
    return _ReluSquared.apply(x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
    "relu2": relu_squared,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _gelu_tanh,
}


class _SiluProduct(torch.autograd.Function):
    """`silu(gate) * up`, keeping only its two inputs: autograd would keep `silu(gate)` as well."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), grad_up


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU's product `silu(gate) * up`; the compiler fuses the plain formula by itself."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    return _SiluProduct.apply(gate, up)


class FeedForward(nn.Module):
    """`down(act(up x))`, or `down(act(gate x) * up x)` where gated.

    Source: Shazeer 2020 (SwiGLU, GEGLU); So et al. 2021 (squared ReLU).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.feedforward_size
        self.activation = ACTIVATIONS[config.activation]
        self.gate_proj = Linear(width, inner, bias=config.mlp_bias) if config.gated else None
        self.up_proj = Linear(width, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the feed-forward to x [b, t, hidden]; the result has the same shape."""
        inner: Tensor = self.up_proj(x)  # [b, t, inner]
        if self.gate_proj is None:
            return self.down_proj(self.activation(inner))
        gate = self.gate_proj(x)
        if self.activation is F.silu:
            return self.down_proj(silu_product(gate, inner))
        return self.down_proj(self.activation(gate) * inner)
