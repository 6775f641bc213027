"""The linear layer of the decoder, and which library multiplies for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 128
"""Rows from which on a product is worth the choice: below, both libraries wait for the weights."""
FEWEST_WEIGHTS = 2**16
"""Elements of a weight from which on it is."""


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies float32 faster than MKL, which torch asks for it: on AMD's processors with AVX-512.

    There it took 0.67 to 0.8 of the time (2,048 rows, forward and backward); with AVX2 alone both are alike or MKL is
    faster. Other makers' processors stay with torch's choice.
    """
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False


# asked once, as the compiler does not follow the question
_PREFERS_ONEDNN = prefers_onednn()


class Linear(nn.Linear):
    """`nn.Linear`; see `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] by the weight: [..., out]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, by oneDNN where that is faster.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out], or None.

    Returns:
        [..., out].
    """
    if _PREFERS_ONEDNN and _is_for_onednn(x, weight):
        y: Tensor = _OneDnnProduct.apply(x, weight, bias)
        return y
    return F.linear(x, weight, bias)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer that adds nothing to its product."""
    return type(module) in (Linear, nn.Linear)


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if not x.dtype == weight.dtype == torch.float32 or x.numel() < FEWEST_ROWS * x.size(-1):
        return False
    # tensors that pretend, or that other ranks hold parts of, have types of their own
    return weight.numel() >= FEWEST_WEIGHTS and type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)


class _OneDnnProduct(torch.autograd.Function):
    """`x W^T + b` and its gradients, each as one of oneDNN's products with a weight that is as torch holds it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if needs_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
