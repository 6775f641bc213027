"""The norm over hidden states: torch's own, with a leaner gradient for RMSNorm on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import ModelConfig
from lit_llm.model.arithmetic import at_least_float32


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`, which on the CPU is a chain of operations that keeps three tensors for its gradient.

    Here one is kept, the input, and the gradient takes half the passes over it. Other devices and types run torch's.

    Source: Zhang and Sennrich 2019.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., d]; the result has the same shape, and on the CPU in training the same type."""
        plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in _LEAN_DTYPES
        known = self.weight is None or self.weight.dtype in (x.dtype, torch.float32)
        if plain and known and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _LeanRMSNorm.apply(x, self.weight, self.eps)
        if self.weight is not None:  # of a narrow x under autocast torch's would be slow, and say so at each start
            x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
        return super().forward(x)


_LEAN_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


class _LeanRMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean(x^2) + eps)^-1/2, where dx = r w g - x r^3 mean(g w x); w is 1 where there is none.

    The arithmetic is float32 for bfloat16 inputs.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        y = torch.mul(x, scale)
        return (y if weight is None else y.mul_(weight)).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, scale = ctx.saved_tensors
        grad_weight = None
        if weight is None:
            product = gradient * x
            share = product.sum(-1, keepdim=True, dtype=scale.dtype)
            grad_x = torch.mul(gradient, scale, out=product if product.dtype == scale.dtype else None)
        else:
            product = torch.mul(gradient, x).to(scale.dtype)
            share = (product @ weight.to(scale.dtype)).unsqueeze(-1)
            if ctx.needs_input_grad[1]:
                grad_weight = (scale.flatten() @ product.flatten(0, -2)).to(weight.dtype)
            grad_x = torch.mul(gradient, weight, out=product).mul_(scale)
        grad_x.addcmul_(x, share.div_(x.size(-1)).mul_(scale.pow(3)), value=-1)
        return grad_x.to(x.dtype), grad_weight, None


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm whose weight is the distance of its scale from 1, and starts at 0 (Gemma); at least float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., d]; the result has the same shape."""
        scale = 1.0 + at_least_float32(self.weight)
        return F.rms_norm(at_least_float32(x), self.normalized_shape, scale, self.eps).type_as(x)


def make_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The configured norm over the residual stream; RMSNorm over `width` dimensions of heads where that is given."""
    if config.norm_unit_offset:
        return OffsetRMSNorm(width or config.hidden_size, eps=config.norm_eps)
    if width is not None or config.norm == "rmsnorm":
        return RMSNorm(width or config.hidden_size, eps=config.norm_eps, elementwise_affine=config.norm_weight)
    return nn.LayerNorm(
        config.hidden_size, eps=config.norm_eps, elementwise_affine=config.norm_weight, bias=config.norm_bias
    )
