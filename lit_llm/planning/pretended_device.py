"""Meta tensors that behave as if they lay on a device: its kernels, its autocast, none of its memory.

The decoder chooses some of its kernels by device, and torch has no autocast for the meta device. Inside
`PretendedDevice` both come out as they would on the device that is pretended, so that what a training step keeps can
be counted where neither the device nor the memory is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
_DEVICE_OF = torch.Tensor.device.__get__  # type: ignore[attr-defined]


class PretendedDevice(TorchFunctionMode):
    """A block of code whose meta tensors say that they lie on a CPU or on an accelerator.

    Every tensor made inside is a meta tensor, whatever device is asked for. On an accelerator RMSNorm, dropout and
    attention are the fused CUDA kernels, as far as what they keep for the gradient goes; on the CPU they are torch's.

    Args:
        kind: "accelerator" stands for CUDA.
    """

    def __init__(self, kind: Literal["accelerator", "cpu"]) -> None:
        super().__init__()
        # not "cuda": torch refuses its autocast, which checkpointing switches on again, where there is no CUDA device
        self.device = torch.device("xpu" if kind == "accelerator" else "cpu")
        self.keeps_casts = True
        """Autocast casts a weight once in a forward pass. Set to False once that pass is over."""
        self._casts: dict[int, Tensor] = {}  # by id of the weight
        self._handlers: dict[Callable[..., Any], Callable[..., Any]] = {
            _DEVICE_OF: self._device_of,
            torch.Tensor.nonzero: _all_nonzero,
            F.scaled_dot_product_attention: self._attention,
        }
        for product in (F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            self._handlers[product] = self._autocast(product)
        if kind == "accelerator":
            self._handlers |= {F.rms_norm: _rms_norm, F.dropout: _dropout}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` as the pretended device would."""
        kwargs = dict(kwargs or {})
        handler = self._handlers.get(func)
        if handler is not None:
            return handler(*args, **kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = META
        if func is torch.Tensor.to:
            args = tuple(META if isinstance(word, torch.device) else word for word in args)
        return func(*args, **kwargs)

    def autocast_has_ended(self) -> None:
        """Let go of the casts of weights, as leaving autocast does."""
        self._casts.clear()
        self.keeps_casts = False

    def _device_of(self, tensor: Tensor, *_: Any) -> torch.device:
        return self.device

    def _autocast(self, product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Compute `product` of its operands in the type of autocast, where that is on."""

        def run(*operands: Any, **options: Any) -> Tensor:
            if torch.is_autocast_enabled(self.device.type):
                dtype = torch.get_autocast_dtype(self.device.type)
                operands = tuple(self._cast(x, dtype) if isinstance(x, Tensor) else x for x in operands)
            return product(*operands, **options)

        return run

    def _cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if not (self.keeps_casts and x.is_leaf and x.requires_grad and x.dtype == torch.float32):
            return x.to(dtype)
        if id(x) not in self._casts:
            self._casts[id(x)] = x.to(dtype)
        return self._casts[id(x)]

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self.device.type == "cpu" and dropout_p > 0.0:
            # the CPU has no fused kernel with dropout, and the meta device no fused kernel at all
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=META)  # fused kernels add their mask
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        # keeps what CUDA's kernels keep: q, k, v, the output and the log-normaliser of each row in float32
        return fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _all_nonzero(x: Tensor) -> Tensor:
    """Answer as if every token were supervised, which is the most that a batch can hold."""
    return torch.empty(x.numel(), x.dim(), dtype=torch.long, device=META)


class _FusedRMSNorm(torch.autograd.Function):
    """Keep what CUDA's kernel keeps for the backward pass: its input, and one number in float32 for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1], dtype=torch.float32, device=META))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return _FusedRMSNorm.apply(x, weight)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return x
    return torch.native_dropout(x, p, True)[0]  # keeps one byte a number
