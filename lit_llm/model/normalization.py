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
        """Normalize x [..., d]; the result has the same shape, and the wider type of x and the weight."""
        if self.weight is not None:  # of a narrow x under autocast torch's would be slow, and say so at each start
            x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
        plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        lean = plain and self.weight is not None and self.weight.dtype == x.dtype and torch.is_grad_enabled()
        if lean and not torch.compiler.is_compiling():
            return _LeanRMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x)


class _LeanRMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean(x^2) + eps)^-1/2, where dx = r w g - x r^3 mean(g w x)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, scale = ctx.saved_tensors
        product = gradient * x
        grad_weight = (scale.flatten() @ product.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        share = (product @ weight).unsqueeze(-1).div_(x.size(-1)) * scale.pow(3)
        grad_x = torch.mul(gradient, weight, out=product).mul_(scale).addcmul_(x, share, value=-1)
        return grad_x, grad_weight, None


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
