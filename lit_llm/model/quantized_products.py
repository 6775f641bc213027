"""Products of inputs with weights in 8 or 4 bits.

Notation used for tensor shapes:
    m: tokens, k: width of the inputs, n: width of the outputs.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.model.arithmetic import without_autocast
from lit_llm.model.rounding import GROUP_SIZE, from_int4, join_halves, split_halves

LINE = 64
"""Bytes of a line of memory, which kernels read whole."""

# Weights that are converted at a time on the CPU, which stay in a processor core's cache; and elsewhere, where this
# bounds the memory that the conversion takes.
_BLOCK = 2**18
_DEVICE_BLOCK = 2**24
# for more inputs than this, the product takes so long that reading the converted weight again does not matter
_BLOCK_INPUTS = 64
# a sum of so many products of two bytes stays within 2^24, up to which float32 has every whole number
_EXACT_WIDTH = 1024


def int8_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """rows [m, k] times the transpose of a weight [n, k] with the scale [n], of `round_to_int8`: [m, n]."""
    if _fits_int8_kernel(rows, weight):
        return torch.ops.aten._weight_int8pack_mm(rows, weight, scale)
    return converted_product(rows, weight) * scale


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
    if a.device.type != "cpu":
        return tiled_integer_product(a, b)
    return torch._int_mm(a, b.t()) if has_exact_kernel() else widened_integer_product(a, b)


def tiled_integer_product(a: Tensor, b: Tensor) -> Tensor:
    """`integer_product` for CUDA, whose kernel wants over 16 rows, and widths that are multiples of 8."""
    (m, k), n = a.shape, b.size(0)
    a = F.pad(a, (0, -k % 8, 0, max(17 - m, 0)))
    b = F.pad(b, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


def widened_integer_product(a: Tensor, b: Tensor) -> Tensor:
    """`integer_product` from products in float32, which are exact on every processor, in whatever order they add."""
    with without_autocast(a.device.type):
        parts = zip(a.split(_EXACT_WIDTH, dim=1), b.split(_EXACT_WIDTH, dim=1), strict=True)
        products = [converted_product(left.float(), right).int() for left, right in parts]
    return torch.stack(products).sum(0, dtype=torch.int32) if len(products) > 1 else products[0]


def has_exact_kernel() -> bool:
    """Whether the CPU's product of int8 matrices is exact.

    Processors without instructions for it (VNNI) add two products of bytes in 16 bits, where large ones saturate: the
    product is off by several percent, and nothing says so.
    """
    return _largest_products_are_exact()


# The compiler asks when it makes a graph, and builds in the answer: what torch.compiler.assume_constant_result does,
# which would import the compiler for it.
has_exact_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _largest_products_are_exact() -> bool:
    for m, k, n in ((1, 64, 32), (32, 64, 32), (2, 64, 1)):
        for left, right in ((127, 127), (127, -127), (-127, 127), (-127, -127)):
            a, b = (torch.full((rows, k), value, dtype=torch.int8) for rows, value in ((m, left), (n, right)))
            if not torch.all(torch._int_mm(a, b.t()) == k * left * right):
                return False
    return True


def int4_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """rows [m, k] times the transpose of a weight in 4 bits, in the type of the rows: [m, n].

    The weight is turned back block by block, so that little more memory is needed than for what is stored.

    Args:
        rows: inputs, on any device.
        weight: [n, k / 2] as `join_halves` gives it.
        scale: [k / 32, n, 2] as `round_to_int4` gives it.
    """
    most = _BLOCK if rows.device.type == "cpu" else _DEVICE_BLOCK
    # the compiler turns the weight back in one pass over it
    count = weight.size(0) if torch.compiler.is_compiling() else max(1, most // rows.size(1))
    blocks = zip(weight.split(count), scale.split(count, dim=1), strict=True)
    products = [F.linear(rows, from_int4(split_halves(part), steps).to(rows.dtype)) for part, steps in blocks]
    return torch.cat(products, dim=-1)


def has_int4_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has a fast kernel for weights in 4 bits there; in float32 it has a slow one."""
    return device.type == "cpu" and dtype == torch.bfloat16


def int4_kernel_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`int4_product` where `has_int4_kernel`, with the weight in the order of `to_kernel_order`."""
    return torch.ops.aten._weight_int4pack_mm_for_cpu(rows.contiguous(), weight, GROUP_SIZE, scale)


def to_kernel_order(weight: Tensor) -> Tensor:
    """A weight in 4 bits [n, k / 2] in the order that this processor's kernel reads, of the same shape."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(split_halves(weight).int(), 1)


def from_kernel_order(packed: Tensor) -> Tensor:
    """The reverse of `to_kernel_order`.

    The order is the kernel's own business, so its product with the identity is taken.
    """
    n, k = packed.size(0), 2 * packed.size(1)
    # in the type for which the kernel is fast, and which has every number from -8 to 7
    plain = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).expand(k // GROUP_SIZE, n, 2).contiguous()
    numbers = int4_kernel_product(torch.eye(k, dtype=torch.bfloat16), packed, plain)  # [k, n]
    return join_halves((numbers.t() + 8).to(torch.uint8))


def _fits_int8_kernel(rows: Tensor, weight: Tensor) -> bool:
    """Whether the CPU's int8 kernel can multiply rows [m, k] and a weight [n, k].

    In float32 it is many times slower than converting the weight, and memory that is not in line with its vectors
    ends the process (torch 2.13). The compiler makes a kernel of its own from the plain formula.
    """
    return (
        not torch.compiler.is_compiling()
        and rows.device.type == "cpu"
        and rows.dtype == torch.bfloat16
        and rows.size(1) % 32 == 0
        and rows.is_contiguous()
        and rows.data_ptr() % LINE == weight.data_ptr() % LINE == 0
    )
