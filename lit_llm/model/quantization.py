"""Weights in 8 or 4 bits, for a model that writes text and is not trained any more.

- int8: each row of a weight has one scale; products run in the model's own type. Faster in bfloat16 on the CPU, smaller
  everywhere.
- int8_dynamic: the inputs of each product are rounded to 8 bits as well, with one scale for each token, and the product
  is one of integers.
- int4: groups of 32 weights of a row share a scale and an offset. In bfloat16 on the CPU torch has a fast kernel;
  elsewhere the weight is turned back for each product, which saves memory and, unless compiled, costs time.

Embeddings, norms, gates and a head that is the embedding keep their type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import PROJECTIONS, UserError
from lit_llm.model.decoder import Decoder
from lit_llm.model.linear import is_plain
from lit_llm.model.quantized_products import (
    LINE,
    from_kernel_order,
    has_int4_kernel,
    int4_kernel_product,
    int4_product,
    int8_product,
    integer_product,
    to_kernel_order,
)
from lit_llm.model.rounding import (
    GROUP_SIZE,
    from_int4,
    from_int8,
    join_halves,
    round_to_int4,
    round_to_int4_by_inputs,
    round_to_int8,
    split_halves,
)

KINDS = ("int8", "int8_dynamic", "int4")
# the CPU's int4 kernel takes whole tiles of so many rows
_INT4_ROWS = 16


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is stored in 8 or 4 bits. It cannot be trained.

    In its state_dict `weight` and `scale` have a form that does not depend on the machine: int8 [out, in] and [out];
    for int4 uint8 [out, in / 2] with the even column in the low half of a byte, and [in / 32, out, 2] with the scale
    and the value of the number 8; here `out` is filled up to a multiple of 16. That is also how they lie in memory,
    except that an int4 weight in bfloat16 on the CPU is in the order of torch's kernel. A move to another device or
    type sees to that; a change of type rounds the scale, and with it the weight, to the new one.

    Args:
        in_features: width of the inputs.
        out_features: width of the outputs.
        kind: one of `KINDS`.
        bias: whether a bias is added.
        device: where the buffers are made, empty.
        dtype: type of inputs, outputs, scales and bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kind: str,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = in_features, out_features, kind
        self.training = False
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        if kind == "int4":
            rows = math.ceil(out_features / _INT4_ROWS) * _INT4_ROWS
            weight = torch.empty(rows, in_features // 2, dtype=torch.uint8, device=device)
            scale = torch.empty(in_features // GROUP_SIZE, rows, 2, dtype=dtype, device=device)
        else:
            weight = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
            scale = torch.empty(out_features, dtype=dtype, device=device)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.empty(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def of(cls, linear: nn.Linear, kind: str, gram: Tensor | None = None) -> QuantizedLinear:
        """The quantized form of a layer; on the meta device its shapes alone.

        Args:
            linear: the layer.
            kind: one of `KINDS`.
            gram: of the layer's inputs [in, in], for int4: see `round_to_int4_by_inputs`; None rounds to the nearest.
        """
        weight = linear.weight.detach()
        layer = cls(
            linear.in_features,
            linear.out_features,
            kind,
            bias=linear.bias is not None,
            device="meta",
            dtype=weight.dtype,
        )
        if weight.is_meta:
            return layer
        if kind == "int4":
            padded = F.pad(weight, (0, 0, 0, layer.weight.size(0) - weight.size(0)))
            numbers, layer.scale = round_to_int4(padded) if gram is None else round_to_int4_by_inputs(padded, gram)
            stored = join_halves(numbers)
            layer.weight = to_kernel_order(stored) if layer.is_packed else stored
        else:
            layer.weight, layer.scale = round_to_int8(weight)
        if linear.bias is not None:
            layer.bias = linear.bias.detach()
        return layer

    @property
    def is_packed(self) -> bool:
        """Whether the weight is in the order of the CPU's int4 kernel."""
        return self.kind == "int4" and has_int4_kernel(self.scale.device, self.scale.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] by the stored weight: [..., out]."""
        rows = x.reshape(-1, self.in_features)
        if self.kind == "int4":
            product = int4_kernel_product if self.is_packed else int4_product
            y = product(rows, self.weight, self.scale)[:, : self.out_features]
        elif self.kind == "int8_dynamic":
            numbers, steps = round_to_int8(rows.float())
            y = (integer_product(numbers, self.weight) * steps.unsqueeze(1) * self.scale.float()).to(x.dtype)
        else:
            y = int8_product(rows, self.weight, self.scale)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def dequantized(self) -> Tensor:
        """Return the weight [out, in] that the layer computes with, in float32."""
        if self.kind != "int4":
            return from_int8(self.weight, self.scale)
        return from_int4(split_halves(self._stored_weight()), self.scale)[: self.out_features]

    def train(self, mode: bool = True) -> QuantizedLinear:
        """Refuse training mode: a quantized layer is for evaluation only.

        Raises:
            UserError: training mode is asked for.
        """
        if mode:
            raise UserError("a quantized model cannot be trained; train the full model and quantize what comes out")
        return super().train(False)

    def extra_repr(self) -> str:
        """Describe the layer in print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"

    def _stored_weight(self) -> Tensor:
        return from_kernel_order(self.weight) if self.is_packed else self.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        # what `to`, `cuda`, `float` and the like come to
        like = fn(self.scale.new_empty(1))
        packed, stays = self.is_packed, has_int4_kernel(like.device, like.dtype)
        if packed and not stays:
            self.weight = from_kernel_order(self.weight)
        super()._apply(fn, recurse)
        if self.is_packed and not packed:
            self.weight = to_kernel_order(self.weight)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_packed:
            destination[f"{prefix}weight"] = self._stored_weight()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # tensors of a mapped file begin anywhere, and kernels read from whole lines of memory
        aligned = {
            name: tensor if tensor.is_meta or tensor.data_ptr() % LINE == 0 else tensor.clone()
            for name, tensor in state_dict.items()
            if name.startswith(prefix)
        }
        if self.is_packed:
            stored = aligned.get(f"{prefix}weight")
            replaced = stored is not None and stored.shape == self.weight.shape
            self.weight = torch.empty_like(self.weight) if replaced else from_kernel_order(self.weight)
        super()._load_from_state_dict({**state_dict, **aligned}, prefix, *args)
        if self.is_packed:
            self.weight = to_kernel_order(self.weight)


def quantize(model: Decoder, kind: str, *, tied_head: bool = False) -> Decoder:
    """Quantize a model in place, weight by weight: each is released before the next.

    The projections of the blocks, and a vocabulary's head that is not the embedding. The model is in evaluation mode
    and has no gradients from then on. On the meta device this lays out the shapes for
    `load_state_dict(..., assign=True)`.

    Args:
        model: a whole model in float32 or bfloat16.
        kind: one of `KINDS`.
        tied_head: quantize a copy of the embedding as the head, too, where the head is the embedding. For a model that
            writes here and now: the form that is saved has no such head.

    Raises:
        UserError: the model is quantized or sharded, or is of a type or width that `kind` is not for. The model is then
            as it was.
    """
    for module, name in layers_to_quantize(model, kind, tied_head=tied_head):
        setattr(module, name, QuantizedLinear.of(getattr(module, name), kind))
    model.eval()
    return model.requires_grad_(False)


def layers_to_quantize(model: Decoder, kind: str, *, tied_head: bool = False) -> list[tuple[nn.Module, str]]:
    """List the layers that `quantize` replaces, as modules and the names of their children.

    Args and raises: as `quantize`.
    """
    if kind not in KINDS:
        raise UserError(f"quantize is {kind!r}; it must be one of {', '.join(KINDS)}")
    if quantization_of(model) is not None:
        raise UserError(f"the model is quantized already ({quantization_of(model)})")
    places = [
        (module, name)
        for module in model.blocks.modules()
        for name, child in module.named_children()
        if name in PROJECTIONS and isinstance(child, nn.Linear)
    ]
    separate = tied_head or not model.config.tie_word_embeddings
    if separate and model.config.output == "tokens":  # one row of scores saves nothing
        places.append((model, "head"))
    for module, name in places:
        _check(getattr(module, name), name, kind)
    return places


def quantization_of(model: nn.Module) -> str | None:
    """How a model is quantized, or None."""
    return next((module.kind for module in model.modules() if isinstance(module, QuantizedLinear)), None)


def _check(linear: nn.Linear, name: str, kind: str) -> None:
    weight = linear.weight
    if not is_plain(linear):
        raise UserError("a model with low-rank additions cannot be quantized; merge them first, with export.py")
    if type(weight) is not nn.Parameter:
        raise UserError("a sharded model cannot be quantized; load it whole")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        kept = str(weight.dtype).removeprefix("torch.")
        raise UserError(f"a model in {kept} cannot be quantized; load it with dtype float32 or bfloat16")
    if kind == "int4" and linear.in_features % GROUP_SIZE:
        raise UserError(
            f"int4 rounds groups of {GROUP_SIZE} weights, which do not divide the {linear.in_features} inputs of "
            f"{name}; use int8"
        )
