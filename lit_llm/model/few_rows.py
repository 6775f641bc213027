"""Linear layers for a few tokens at once, which the compiler turns into loops; see `lit_llm.model.one_token`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_llm.model.linear import is_plain
from lit_llm.model.packed_linear import PackedLinear
from lit_llm.model.quantization import QuantizedLinear

# With more rows than this, arithmetic takes longer than reading the weights, and a matrix product is faster.
FEW_ROWS = 8


class FewRowsLinear(nn.Module):
    """A linear layer for up to `FEW_ROWS` tokens, to be compiled.

    Args:
        weight: [out, in], of any type; rows contiguous.
        scale: of each row of an int8 weight [out], or None.
        bias: [out] or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = weight.size(1)
        self.weight: Tensor
        self.scale: Tensor | None
        self.bias: Tensor | None
        _keep(self, weight, scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] by the weight: [..., out]."""
        rows = x.reshape(-1, self.in_features).float()
        # in memory: otherwise the compiler computes what makes the inputs again for every output
        rows = rows.as_strided(rows.shape, (self.in_features, 1))
        # Sums that share one pass over the weight. For one or two tokens several parts of it at once: memory gives two
        # faster than one, and where weights of one token are converted, four chains of additions keep the arithmetic
        # from waiting. With more tokens there are as many chains.
        one, converted = rows.size(0) == 1, self.weight.element_size() < 4
        wanted = 4 if one and converted else 2 if rows.size(0) <= 2 else 1
        parts = self.weight.float().chunk(math.gcd(wanted, self.weight.size(0)))
        y = torch.stack([torch.cat([(part * row).sum(-1) for part in parts]) for row in rows.unbind()])
        return _completed(y, self.scale, self.bias, x)


class FewRowsInt8Linear(nn.Module):
    """`FewRowsLinear` for an int8 weight that is read as words of four numbers.

    Of 8-bit numbers a register takes more than are converted at once, and torch reads a part of one by way of memory,
    several times as slowly, unless the processor has AVX-512.

    Args:
        weight: [out, in] of int8, rows contiguous; `in` a multiple of 4.
        scale: of each row [out].
        bias: [out] or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = weight.size(1)
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        # as float32, whose whole vectors alone are read without that
        _keep(self, weight.view(torch.float32), scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] by the weight: [..., out]."""
        rows = x.reshape(-1, self.in_features // 4, 4).float().transpose(1, 2).contiguous()
        # in memory, as in `FewRowsLinear`
        rows = rows.as_strided(rows.shape, (self.in_features, self.in_features // 4, 1))  # [rows, 4, in / 4]
        words = self.weight.view(torch.int32)
        parts = words.chunk(math.gcd(2 if rows.size(0) <= 2 else 1, words.size(0)))
        numbers = [[((part << 24 - 8 * place) >> 24).float() for place in range(4)] for part in parts]
        y = torch.stack([torch.cat([_product(part, row) for part in numbers]) for row in rows.unbind()])
        return _completed(y, self.scale, self.bias, x)


def _product(weights: list[Tensor], row: Tensor) -> Tensor:
    """Sum over four weights [out, in / 4] times their inputs [4, in / 4]: [out]."""
    first, second, third, fourth = (weight * inputs for weight, inputs in zip(weights, row, strict=True))
    return ((first + second) + (third + fourth)).sum(-1)


def reads_parts_of_vectors() -> bool:
    """Whether torch's compiler reads fewer 8-bit numbers than a register takes straight from where they are."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class FewRowsInt4Linear(nn.Module):
    """`FewRowsLinear` for a weight in 4 bits, whose even and odd columns are multiplied apart.

    Args:
        weight: two numbers in a byte [out, in / 2], see `lit_llm.model.rounding.join_halves`; `out` may be filled up.
        scale: step and middle of each group [groups, out, 2], see `lit_llm.model.rounding.round_to_int4`.
        bias: [out] or None.
        out_features: how many outputs are wanted.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = 2 * weight.size(1), out_features
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        _keep(self, weight, scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] by the weight: [..., out]."""
        groups = self.scale.size(0)
        rows = x.reshape(-1, groups, self.in_features // groups // 2, 2).float()
        rows = rows.movedim(-1, 1).contiguous()
        # in memory, as in `FewRowsLinear`
        rows = rows.as_strided(rows.shape, (self.in_features, self.in_features // 2, rows.size(3), 1))
        step, middle = self.scale.float().transpose(0, 1).unsqueeze(-2).unbind(-1)  # [out, groups, 1]
        joined = self.weight.unflatten(1, (groups, -1))  # [out, groups, 16]
        even, odd = ((half.float() - 8) * step + middle for half in (joined & 15, joined >> 4))
        y = torch.stack([(even * row[0] + odd * row[1]).sum((1, 2)) for row in rows.unbind()])
        return _completed(y[:, : self.out_features], None, self.bias, x)


def _completed(y: Tensor, scale: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor:
    """Scale products [rows, out] and add the bias; gives [..., out] in the type of x [..., in]."""
    if scale is not None:
        y = y * scale.float()
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _keep(module: nn.Module, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
    for name, tensor in (("weight", weight), ("scale", scale), ("bias", bias)):
        module.register_buffer(name, None if tensor is None else tensor.detach())


def with_few_rows_linears(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its tensors, with a form for few rows of every linear layer.

    Those of int8_dynamic, and of int4 where torch has a kernel, stay as they are.
    """
    return twin(module, _for_few_rows)


def _for_few_rows(module: nn.Module) -> nn.Module | None:
    if isinstance(module, QuantizedLinear) and module.kind == "int8":
        in_words = module.in_features % 4 == 0 and not reads_parts_of_vectors()
        return (FewRowsInt8Linear if in_words else FewRowsLinear)(module.weight, module.scale, module.bias)
    if isinstance(module, QuantizedLinear) and module.kind == "int4" and not module.is_packed:
        return FewRowsInt4Linear(module.weight, module.scale, module.bias, module.out_features)
    if is_plain(module) or isinstance(module, PackedLinear):
        if module.weight is None:
            raise ValueError("the weights were packed and not kept, which the compiled step reads")
        return FewRowsLinear(module.weight.detach(), None, None if module.bias is None else module.bias.detach())
    return None


def twin(module: nn.Module, replaced: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy of a module that shares its tensors, with other modules where `replaced` gives one."""
    other = replaced(module)
    if other is not None:
        return other
    copied = copy.copy(module)
    copied.__dict__ = dict(module.__dict__)
    copied.__dict__["_modules"] = {
        name: None if child is None else twin(child, replaced) for name, child in module._modules.items()
    }
    return copied
