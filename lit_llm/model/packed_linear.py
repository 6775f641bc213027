"""Linear layers of a model on the CPU that only writes or scores text, with weights in the order that products read.

torch hands the weight to its library as it is stored, and for one row even computes on one core. oneDNN's product with
a weight that was put into its own order beforehand is up to three times as fast for few rows, and still faster for a
thousand; for one row it uses every core.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.model.decoder import Decoder
from lit_llm.model.linear import is_plain

# for how many rows the order is chosen: what suits these was as fast as any other from 1 to 1,024
_ROWS = 16


class PackedLinear(nn.Module):
    """A linear layer on the CPU that cannot be trained, saved or moved.

    Args:
        linear: the layer, which is not changed.
        keep: hold its weight besides, for what reads it as it was.
    """

    def __init__(self, linear: nn.Linear, keep: bool = False) -> None:
        super().__init__()
        self.weight = linear.weight if keep else None
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # an opaque tensor, which is no buffer: nothing that is done to buffers can be done to it
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), _ROWS)
        self.bias: Tensor | None
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in], of the weight's type, by the weight: [..., out]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y

    def unpacked(self) -> Tensor:
        """Return the weight [out, in], as it was."""
        weight: Tensor = self.packed.to_dense()
        return weight

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        return self.packed.numel() * self.packed.element_size()

    def extra_repr(self) -> str:
        """Describe the layer in print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        raise RuntimeError("packed weights stay on the CPU and in their type; move or convert the model before it")

    def _save_to_state_dict(self, *args: Any) -> None:
        raise RuntimeError("packed weights cannot be saved; save the model before they are packed")


def pack_weights(model: Decoder, keep: bool = False) -> Decoder:
    """Pack the linear layers of a model in place, one after the other: each weight is released before the next.

    For a whole model on the CPU that is neither trained, saved nor moved from then on; on other devices, and where
    torch has no such product for its type, nothing happens. Quantized layers and those with low-rank additions stay as
    they are, as does an output layer that gives scores. One that is the embedding is packed as well, which takes its
    memory once more.

    Args:
        model: the decoder.
        keep: hold the weights as they were besides, which the compiled step for few rows reads.
    """
    weight = model.embedding.weight
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        for module, name in layers_to_pack(model):
            setattr(module, name, PackedLinear(getattr(module, name), keep))
    return model


def layers_to_pack(model: Decoder) -> list[tuple[nn.Module, str]]:
    """List the layers that `pack_weights` replaces, as modules and the names of their children."""
    modules = model.blocks.modules()
    places = [(module, name) for module in modules for name, child in module.named_children() if _is_whole(child)]
    return [*places, (model, "head")] if model.config.output == "tokens" and _is_whole(model.head) else places


def packed_layers(model: nn.Module) -> list[PackedLinear]:
    """List the packed layers of a model."""
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


def _is_whole(module: nn.Module) -> bool:
    return is_plain(module) and type(module.weight) is nn.Parameter


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's torch multiplies packed weights of a type, and rightly: a small product is tried."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(48, 33, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        x = torch.randn(3, 2, 48, generator=generator).to(dtype)
        try:
            packed = PackedLinear(linear)
            same = torch.equal(packed.unpacked(), linear.weight)
            return same and torch.allclose(packed(x), F.linear(x, linear.weight, linear.bias), rtol=0.02, atol=0.02)
        except (RuntimeError, AttributeError):  # NotImplementedError is a RuntimeError
            return False
