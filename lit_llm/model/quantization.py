"""Weights in 8 or 4 bits, for a model that writes text and is not trained any more, and what that costs in quality.

- int8: each row of a weight has one scale; products run in the model's own type. Faster in bfloat16 on the CPU, smaller
  everywhere.
- int8_dynamic: the inputs of each product are rounded to 8 bits as well, with one scale for each token, and the product
  is one of integers.
- int4: groups of 32 weights of a row share a scale and an offset. On the CPU, and for bfloat16: in float32 the
  kernel is slow.

Embeddings, norms, gates and a head that is the embedding keep their type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import UserError
from lit_llm.model.decoder import Decoder

KINDS = ("int8", "int8_dynamic", "int4")
GROUP_SIZE = 32
# the CPU's int4 kernel takes whole tiles of so many rows
_INT4_ROWS = 16
_LINE = 64  # bytes
# Weights that are converted at a time, which stay in a processor core's cache; for more inputs than this, the product
# takes so long that it does not matter.
_BLOCK = 2**18
_BLOCK_INPUTS = 64
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is stored in 8 or 4 bits. It cannot be trained.

    In its state_dict `weight` and `scale` have a form that does not depend on the machine: int8 [out, in] and [out];
    for int4 uint8 [out, in / 2] with the even column in the low half of a byte, and [in / 32, out, 2] with the scale
    and the value of the number 8; here `out` is filled up to a multiple of 16.

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
    def of(cls, linear: nn.Linear, kind: str) -> QuantizedLinear:
        """The quantized form of a layer; on the meta device its shapes alone."""
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
            numbers, layer.scale = round_to_int4(F.pad(weight, (0, 0, 0, layer.weight.size(0) - weight.size(0))))
            layer.weight = _pack(numbers)
        else:
            layer.weight, layer.scale = round_to_int8(weight)
        if linear.bias is not None:
            layer.bias = linear.bias.detach()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [..., in]. Returns: [..., out]."""
        rows = x.reshape(-1, self.in_features)
        if self.kind == "int4":
            _check_int4_device(x.device)
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows.contiguous(), self.weight, GROUP_SIZE, self.scale)
            y = y[:, : self.out_features]
        elif self.kind == "int8_dynamic":
            numbers, steps = round_to_int8(rows.float())
            y = (integer_product(numbers, self.weight) * steps.unsqueeze(1) * self.scale.float()).to(x.dtype)
        elif _fits_int8_kernel(rows, self.weight):
            y = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = converted_product(rows, self.weight) * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def dequantized(self) -> Tensor:
        """The weight that it computes with [out, in], in float32."""
        if self.kind != "int4":
            return from_int8(self.weight, self.scale)
        return from_int4(_unpack(self.weight), self.scale)[: self.out_features]

    def train(self, mode: bool = True) -> QuantizedLinear:
        """Evaluation mode is the only one.

        Raises:
            UserError: training mode is asked for.
        """
        if mode:
            raise UserError("a quantized model cannot be trained; train the full model and quantize what comes out")
        return super().train(False)

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.kind == "int4" and not self.weight.is_meta:
            destination[f"{prefix}weight"] = join_halves(_unpack(self.weight))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # tensors of a mapped file begin anywhere, and kernels read from whole lines of memory
        aligned = {
            name: tensor if tensor.is_meta or tensor.data_ptr() % _LINE == 0 else tensor.clone()
            for name, tensor in state_dict.items()
            if name.startswith(prefix)
        }
        state_dict = {**state_dict, **aligned}
        stored = state_dict.get(f"{prefix}weight")
        if self.kind == "int4" and stored is not None and stored.shape == self.weight.shape:
            _check_int4_device(stored.device)
            state_dict = {**state_dict, f"{prefix}weight": _pack(split_halves(stored))}
        super()._load_from_state_dict(state_dict, prefix, *args)


def round_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of x [n, k] to 8 bits, symmetrically.

    The scale is rounded to x's type first, so that no weight is further from its number than half a step.

    Returns:
        Numbers [n, k] from -127 to 127, int8; the scale [n] that gives x back, in x's type.
    """
    scale = (x.float().abs().amax(1) / 127).to(x.dtype)
    scale = torch.where(scale > 0, scale, 1)
    return (x.float() / scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scale


def round_to_int4(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each group of 32 neighbours in a row of x [n, k] to 4 bits between its least and its greatest value.

    Returns:
        Numbers [n, k] from 0 to 15, uint8; [k / 32, n, 2] with the step and the value of the number 8, in x's type.
    """
    groups = x.float().unflatten(1, (-1, GROUP_SIZE))
    least, greatest = groups.amin(-1), groups.amax(-1)
    scale = ((greatest - least) / 15).to(x.dtype)
    middle = (least + 8 * scale.float()).to(x.dtype)
    scale = torch.where(scale > 0, scale, 1)
    numbers = ((groups - middle.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round() + 8
    return (
        numbers.clamp(0, 15).to(torch.uint8).flatten(1),
        torch.stack([scale, middle], dim=-1).transpose(0, 1).contiguous(),
    )


def from_int8(numbers: Tensor, scale: Tensor) -> Tensor:
    """The reverse of `round_to_int8`: [n, k] in float32."""
    return numbers.float() * scale.float().unsqueeze(1)


def from_int4(numbers: Tensor, scale: Tensor) -> Tensor:
    """The reverse of `round_to_int4`: [n, k] in float32."""
    step, middle = scale.float().transpose(0, 1).unbind(-1)  # [n, groups]
    groups = numbers.int().unflatten(1, (-1, GROUP_SIZE)) - 8
    return (groups * step.unsqueeze(-1) + middle.unsqueeze(-1)).flatten(1)


def join_halves(numbers: Tensor) -> Tensor:
    """Two numbers from 0 to 15 in a byte, the even column in the low half: uint8 [n, k / 2] from [n, k]."""
    return numbers[:, ::2] | (numbers[:, 1::2] << 4)


def split_halves(joined: Tensor) -> Tensor:
    """The reverse of `join_halves`."""
    return torch.stack([joined & 15, joined >> 4], dim=-1).flatten(1)


def converted_product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [m, k] times the transpose of an int8 weight [n, k], in the type of the rows: [m, n].

    For few rows on the CPU the weight is converted block by block, so that it is read from memory once, as it is.
    """
    if rows.device.type != "cpu" or rows.size(0) > _BLOCK_INPUTS or torch.compiler.is_compiling():
        return F.linear(rows, weight.to(rows.dtype))
    blocks = weight.split(max(1, _BLOCK // weight.size(1)))
    return torch.cat([F.linear(rows, block.to(rows.dtype)) for block in blocks], dim=-1)


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] times the transpose of b [n, k], both int8, exactly: int32 [m, n]."""
    if a.device.type == "cpu":
        return torch._int_mm(a, b.t())
    return tiled_integer_product(a, b)


def tiled_integer_product(a: Tensor, b: Tensor) -> Tensor:
    """`integer_product` for CUDA, whose kernel wants over 16 rows, and widths that are multiples of 8."""
    (m, k), n = a.shape, b.size(0)
    a = F.pad(a, (0, -k % 8, 0, max(17 - m, 0)))
    b = F.pad(b, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


def _fits_int8_kernel(rows: Tensor, weight: Tensor) -> bool:
    """Whether the CPU's kernel for rows [m, k] and a weight [n, k] of int8 can be had.

    In float32 it is many times slower than converting the weight, and memory that is not in line with its vectors
    ends the process (torch 2.13). The compiler makes a kernel of its own from the plain formula.
    """
    return (
        not torch.compiler.is_compiling()
        and rows.device.type == "cpu"
        and rows.dtype == torch.bfloat16
        and rows.size(1) % 32 == 0
        and rows.is_contiguous()
        and rows.data_ptr() % _LINE == weight.data_ptr() % _LINE == 0
    )


def _pack(numbers: Tensor) -> Tensor:
    """Numbers [n, k] from 0 to 15 in the order that this processor's kernel reads, uint8 [n, k / 2]."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int(), 1)


def _unpack(packed: Tensor) -> Tensor:
    """The reverse of `_pack`. The order is the kernel's own business, so its product with the identity is taken."""
    rows, k = packed.size(0), 2 * packed.size(1)
    plain = torch.tensor([1.0, 0.0]).expand(k // GROUP_SIZE, rows, 2).contiguous()
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(torch.eye(k), packed, GROUP_SIZE, plain)
    return (product.t().round() + 8).to(torch.uint8)


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
        UserError: the model is quantized or sharded, or is of a type, width or device that `kind` is not for. The model
            is then as it was.
    """
    if kind not in KINDS:
        raise UserError(f"quantize is {kind!r}; it must be one of {', '.join(KINDS)}")
    if quantization_of(model) is not None:
        raise UserError(f"the model is quantized already ({quantization_of(model)})")
    places = [
        (module, name)
        for module in model.blocks.modules()
        for name, child in module.named_children()
        if name in _PROJECTIONS and isinstance(child, nn.Linear)
    ]
    separate = tied_head or not model.config.tie_word_embeddings
    if separate and model.config.output == "tokens":  # one row of scores saves nothing
        places.append((model, "head"))
    for module, name in places:
        _check(getattr(module, name), name, kind)
    for module, name in places:
        setattr(module, name, QuantizedLinear.of(getattr(module, name), kind))
    model.eval()
    return model.requires_grad_(False)


def quantization_of(model: nn.Module) -> str | None:
    """How a model is quantized, or None."""
    return next((module.kind for module in model.modules() if isinstance(module, QuantizedLinear)), None)


def _check(linear: nn.Linear, name: str, kind: str) -> None:
    weight = linear.weight
    if type(linear) is not nn.Linear:
        raise UserError("a model with low-rank additions cannot be quantized; merge them first, with export.py")
    if type(weight) is not nn.Parameter:
        raise UserError("a sharded model cannot be quantized; load it whole")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        kept = str(weight.dtype).removeprefix("torch.")
        raise UserError(f"a model in {kept} cannot be quantized; load it with dtype float32 or bfloat16")
    if kind == "int4":
        _check_int4_device(weight.device)
        if linear.in_features % GROUP_SIZE:
            raise UserError(
                f"int4 rounds groups of {GROUP_SIZE} weights, which do not divide the {linear.in_features} inputs of "
                f"{name}; use int8"
            )


def _check_int4_device(device: torch.device) -> None:
    if device.type not in ("cpu", "meta"):
        raise UserError(f"int4 runs on the CPU only, not on {device.type}; use int8 there, or accelerator cpu")


@dataclass(frozen=True)
class Quality:
    """What quantization changed, over the tokens of some texts."""

    tokens: int
    """Predictions that were compared."""
    perplexity: float
    """Of the full model; not a number where no token had another before it."""
    quantized_perplexity: float
    kl: float
    """Mean KL divergence of the quantized model's prediction from the full model's, in nats per token."""
    agreement: float
    """Share of predictions whose likeliest token is the same."""

    def __str__(self) -> str:
        text = f"KL {self.kl:.2g} nats per token, likeliest token the same {self.agreement:.1%}"
        if not math.isnan(self.perplexity):
            text += f", perplexity {self.perplexity:.4g} -> {self.quantized_perplexity:.4g}"
        return f"{text} ({self.tokens} tokens)"


def quality(model: Decoder, quantized: Decoder, windows: Sequence[Tensor]) -> Quality:
    """Compare two models over texts.

    Args:
        model: the full one.
        quantized: the other one.
        windows: token ids [t] of each text, no longer than the context.

    Raises:
        UserError: there is no token, or a text is longer than the context.
    """
    return compare(windows, predictions(model, windows), predictions(quantized, windows))


def predictions(model: Decoder, windows: Iterable[Tensor]) -> Iterator[Tensor]:
    """Log-probabilities [t, vocab] of each text's next tokens, in float32 on the CPU.

    Args:
        model: in evaluation mode.
        windows: token ids [t] of each text.

    Raises:
        UserError: a text is longer than the context.
    """
    device = model.embedding.weight.device
    for window in windows:
        with torch.no_grad():
            logits = model(window.unsqueeze(0).to(device))[0]
            log_probs = logits.float().log_softmax(-1).cpu()
        yield log_probs


def compare(windows: Iterable[Tensor], full: Iterable[Tensor], quantized: Iterable[Tensor]) -> Quality:
    """`quality` from the `predictions` of both models, for when only one of them is in memory at a time.

    Raises:
        UserError: there is no token.
    """
    tokens = targets = same = 0
    kl = loss = quantized_loss = 0.0
    for window, ours, theirs in zip(windows, full, quantized, strict=True):
        tokens += len(window)
        kl += float((ours.exp() * (ours - theirs)).sum(dtype=torch.float64))
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        following = window[1:].cpu().unsqueeze(1)
        targets += len(following)
        loss -= float(ours[:-1].gather(1, following).sum(dtype=torch.float64))
        quantized_loss -= float(theirs[:-1].gather(1, following).sum(dtype=torch.float64))
    if not tokens:
        raise UserError("there is no text to measure the loss of quality on")

    def perplexity(total: float) -> float:
        return math.exp(min(total / targets, 700.0)) if targets else math.nan

    return Quality(tokens, perplexity(loss), perplexity(quantized_loss), kl / tokens, same / tokens)
