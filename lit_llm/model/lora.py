"""Low-rank additions to linear layers, with the weights themselves left as they are, and possibly in 8 or 4 bits.

The output of an adapted layer is `W x + scale * B A x`, where A [rank, in] starts at random and B [out, rank] at zero,
so that the model begins as what it was. DoRA also learns the length of each row of the sum.

Source: Hu et al. 2021 (LoRA); Kalajdzievski 2023 (rsLoRA); Liu et al. 2024 (DoRA); Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_llm.config import LoraConfig, UserError
from lit_llm.distributed.tensors import local_part
from lit_llm.model.arithmetic import at_least_float32, compute_dtype, without_autocast
from lit_llm.model.decoder import Decoder
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.linear import linear
from lit_llm.model.rounding import (
    GROUP_SIZE,
    from_int4,
    from_int8,
    join_halves,
    round_to_int4,
    round_to_int8,
    split_halves,
)

_PARTS = ("lora_A", "lora_B", "lora_magnitude")
_SCALE = "weight_scale"


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank addition. `weight` and `bias` keep their names and are not trained.

    The addition is kept in float32 at least, whatever the weight is in: its updates are small. With a quantized base
    `weight` is int8 [out, in] or uint8 [out, in / 2], and `weight_scale` holds what turns it back.

    Args:
        linear: whose weight and bias these are.
        config: rank, scale, dropout, and whether lengths are learned.
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.adds = True  # see `adapters_off`
        self.scale, self.dropout = config.scale, config.dropout
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.empty(config.rank, self.in_features, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, config.rank, device=device, dtype=dtype))
        self.lora_magnitude: nn.Parameter | None = None
        if config.dora:
            self.lora_magnitude = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype))
        self.register_parameter(_SCALE, None)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] by the weight with its addition: [..., out]."""
        base = self._base(x)
        if not self.adds:
            return base
        # dropout of what the addition reads alone: the product with the weight stays exact
        read = F.dropout(x, self.dropout, self.training).to(compute_dtype(self.lora_A))
        addition = self.scale * F.linear(F.linear(read, self.lora_A), self.lora_B)
        if self.lora_magnitude is None:
            return base + addition.to(base.dtype)
        stretch = self.lora_magnitude / self.lengths()
        # exactly `base` while nothing has been learned
        product = base if self.bias is None else base - self.bias
        return (base + (stretch - 1) * product + stretch * addition).to(base.dtype)

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """Euclidean length of each row of the weight with its addition [out]. No gradient goes through it.

        Source: Liu et al. 2024, section 4.3.
        """
        with without_autocast(self.lora_A.device.type):
            return row_lengths(self.dequantized(), self.lora_A, self.lora_B, self.scale)

    def dequantized(self) -> Tensor:
        """The weight without its addition [out, in]; in float32 where it is quantized."""
        scale = self.get_parameter(_SCALE) if self.is_quantized else None
        return self.weight.detach() if scale is None else _dequantized(self.weight, scale)

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is held in 8 or 4 bits."""
        return self.weight_scale is not None

    def hold_quantized(self, kind: str) -> None:
        """Round the weight to 8 or 4 bits and forget the original."""
        numbers, scale = quantize_weight(self.weight.detach(), kind)
        # parameters and not buffers, which DDP would send around before every forward pass
        self.weight = nn.Parameter(numbers, requires_grad=False)
        self.register_parameter(_SCALE, nn.Parameter(scale, requires_grad=False))

    def extra_repr(self) -> str:
        """Describe the layer in print(model)."""
        kind = f", weight={self.weight.dtype}" if self.is_quantized else ""
        return f"{super().extra_repr()}, rank={self.lora_A.size(0)}, scale={self.scale:g}{kind}"

    def _base(self, x: Tensor) -> Tensor:
        if not self.is_quantized:
            return linear(x, self.weight, self.bias)
        y: Tensor = _DequantizedProduct.apply(x.to(compute_dtype(x)), self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _DequantizedProduct(torch.autograd.Function):
    """The product `x W^T` with a quantized weight, which is dequantized anew for each pass to save memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ _dequantized(weight, scale).to(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ _dequantized(*ctx.saved_tensors).to(gradient.dtype), None, None


def quantize_weight(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """A weight [out, in] in int8 (rows) or uint8 (groups of 32 in a row, two numbers in a byte), and its scales.

    Raises:
        UserError: groups of 32 do not divide the inputs.
    """
    if kind == "int8":
        return round_to_int8(weight)
    if weight.size(1) % GROUP_SIZE:
        raise UserError(
            f"lora.quantize_base int4 rounds groups of {GROUP_SIZE} weights, which do not divide a layer's "
            f"{weight.size(1)} inputs; use int8"
        )
    numbers, scale = round_to_int4(weight)
    return join_halves(numbers), scale


def _dequantized(weight: Tensor, scale: Tensor) -> Tensor:
    if weight.dtype == torch.int8:
        return from_int8(weight, scale)
    return from_int4(split_halves(weight), scale)


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return at_least_float32(weight) + scale * (at_least_float32(b) @ at_least_float32(a))


def row_lengths(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Euclidean length of each row [out] of a weight [out, in] with the addition `scale * b a`."""
    return _lengths(_sum(weight, a, b, scale))


def _lengths(weight: Tensor) -> Tensor:
    # a row of zeros has no direction; it stays zero
    return torch.linalg.vector_norm(weight, dim=1).clamp(min=torch.finfo(weight.dtype).tiny)


def add_lora(model: Decoder, config: LoraConfig, seed: int) -> None:
    """Give the targeted layers of the blocks an addition, and freeze all else but a new head.

    To be called before the model is compiled, sharded or optimised, after its weights' type has been set; on the meta
    device, too. A head that gives scores and a value head are trained whole. With DoRA `prepare_dora` must follow once
    the weights have been loaded.

    Args:
        model: changed in place; no parameter of it is renamed.
        config: with its rank; where an adapter is the start, as `lit_llm.interop.starting_adapter` returns it.
        seed: names the streams of the initial values, as in `initialize_weights`.

    Raises:
        UserError: a target is not a layer of this model.
    """
    if adapted_layers(model):
        raise ValueError("the model has additions already")
    places = [
        (module, name)
        for module in model.blocks.modules()
        for name, child in module.named_children()
        if name in config.projections and isinstance(child, nn.Linear)
    ]
    missing = sorted({name for name in config.targets if name != "all"} - {name for _, name in places})
    if missing:
        raise UserError(f"lora.targets has {missing[0]}, which is no layer of this model")
    model.requires_grad_(False)
    for module, name in places:
        setattr(module, name, LoraLinear(getattr(module, name), config))
    if model.config.output == "score":
        model.head.requires_grad_(True)
    if model.value_head is not None:
        model.value_head.requires_grad_(True)
    initialize_weights(model, model.config, seed, is_adapter)


def adapted_layers(model: nn.Module) -> list[LoraLinear]:
    """The layers with an addition."""
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an addition."""
    return name.rpartition(".")[2] in _PARTS


def quantize_base(model: nn.Module, kind: str) -> None:
    """Hold the weights under the additions in 8 or 4 bits; they are turned back in each pass, forward and backward.

    To be called once the weights have been loaded, and before `prepare_dora`.

    Args:
        model: changed in place, layer by layer.
        kind: "none", which does nothing, "int8" (a scale for each row) or "int4" (a scale and an offset for each 32
            neighbours in a row: with scales in float32 6 bits per weight, in bfloat16 5).

    Raises:
        UserError: the model is sharded, or int4's groups do not divide a layer's inputs; nothing has been changed.
    """
    if kind == "none":
        return
    layers = adapted_layers(model)
    if any(isinstance(layer.weight, DTensor) for layer in layers):
        raise UserError("lora.quantize_base does not work with trainer.strategy fsdp; use ddp, or one device")
    for layer in layers:
        quantize_weight(layer.weight.detach()[:0], kind)
    for layer in layers:
        layer.hold_quantized(kind)


@torch.no_grad()
def prepare_dora(model: nn.Module) -> None:
    """Set DoRA's lengths to those of the weights' rows; without DoRA nothing happens.

    To be called once the weights have been loaded (and quantized), and before those of an adapter. Sharding by FSDP2
    is by rows, so that each rank sets its own.
    """
    for layer in adapted_layers(model):
        if layer.lora_magnitude is not None:
            weight = at_least_float32(local_part(layer.dequantized()))
            local_part(layer.lora_magnitude).copy_(_lengths(weight))


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch the additions off inside a block, so that the model computes exactly what it did without them.

    A head that is trained whole stays as it is. What needs a gradient must be backpropagated before the block or after
    it, with the additions as they were in its forward pass: activation checkpointing computes that again.
    """
    layers = adapted_layers(model)
    before = [layer.adds for layer in layers]
    try:
        for layer in layers:
            layer.adds = False
        yield
    finally:
        for layer, adds in zip(layers, before, strict=True):
            layer.adds = adds


def merged_state(model_state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """A state_dict of the plain decoder that computes the same: additions are summed into their weights.

    Args:
        model_state: of a decoder with additions, quantized or not; tensors are whole and are not changed.
        config: with the rank of the additions.

    Returns:
        Weights in the type that they had, or that of their scales where they were quantized.
    """
    merged = {}
    for name, tensor in model_state.items():
        if is_adapter(name) or name.rpartition(".")[2] == _SCALE:
            continue
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            stored = model_state.get(f"{module}.{_SCALE}")
            if stored is not None:
                tensor = _dequantized(tensor, stored).to(stored.dtype)
            tensor = merged_weight(module, tensor, model_state, config)
        merged[name] = tensor
    return merged


def merged_weight(module: str, weight: Tensor, adapter: Mapping[str, Tensor], config: LoraConfig) -> Tensor:
    """The weight [out, in] of one module with its addition, if it has one, in the type of the weight.

    Args:
        module: its name, such as blocks.0.attention.q_proj.
        weight: without the addition.
        adapter: has `module.lora_A` and so on.
        config: with the rank of the additions.
    """
    if f"{module}.lora_A" not in adapter:
        return weight
    a, b, magnitude = (adapter.get(f"{module}.{part}") for part in _PARTS)
    assert a is not None
    assert b is not None
    whole = _sum(weight, a.to(weight.device), b.to(weight.device), config.scale)
    if magnitude is not None:
        whole = (at_least_float32(magnitude.to(weight.device)) / _lengths(whole)).unsqueeze(1) * whole
    return whole.to(weight.dtype)


def rounded_base(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Round the targeted weights of a plain state_dict as `quantize_base` does, and return them in their own type."""
    return {
        name: _dequantized(*quantize_weight(tensor, config.quantize_base)).to(tensor.dtype)
        if config.quantize_base != "none" and is_target(name, config)
        else tensor
        for name, tensor in weights.items()
    }


def is_target(name: str, config: LoraConfig) -> bool:
    """Whether a tensor of the plain decoder is a weight that gets an addition."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and name.startswith("blocks.") and module.rpartition(".")[2] in config.projections
