"""Exchanges between ranks that a gradient goes back through; each names what it does forward, and backward.

Ranks share a product: its input is the same on all of them or cut by tokens, its result on each rank is a term of a
sum. Source: Shoeybi et al. 2019 (f and g of Megatron-LM); Korthikanti et al. 2022 (cut by tokens).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import _functional_collectives as _  # noqa: F401  registers how they are traced

_exchange = torch.ops._c10d_functional


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _exchange.wait_tensor(_exchange.all_reduce(x.contiguous(), "sum", group.group_name))


def _gather(x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    parts = x.movedim(dim, 0).contiguous()
    whole = _exchange.wait_tensor(_exchange.all_gather_into_tensor(parts, group.size(), group.group_name))
    return whole.movedim(0, dim).contiguous()


def _scatter_sum(x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    terms = x.movedim(dim, 0).contiguous()
    part = _exchange.wait_tensor(_exchange.reduce_scatter_tensor(terms, "sum", group.size(), group.group_name))
    return part.movedim(0, dim).contiguous()


def _swap(x: Tensor, group: dist.ProcessGroup, cut_dim: int, joined_dim: int) -> Tensor:
    sent = torch.stack(x.chunk(group.size(), cut_dim))  # one part for each rank
    ones = [1] * group.size()
    received = _exchange.wait_tensor(_exchange.all_to_all_single(sent, ones, ones, group.group_name))
    return torch.cat(received.unbind(0), joined_dim)


def _own(x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    return x.chunk(group.size(), dim)[group.rank()].contiguous()


class _Shared(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.group), None


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, dim: int, alike: bool) -> Tensor:
        ctx.group, ctx.dim, ctx.alike = group, dim, alike
        return _gather(x, group, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back = _own if ctx.alike else _scatter_sum
        return back(gradient, ctx.group, ctx.dim), None, None, None


class _Cut(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, dim: int, terms: bool) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _scatter_sum(x, group, dim) if terms else _own(x, group, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather(gradient, ctx.group, ctx.dim), None, None, None


class _Swapped(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, cut_dim: int, joined_dim: int) -> Tensor:
        ctx.group, ctx.cut_dim, ctx.joined_dim = group, cut_dim, joined_dim
        return _swap(x, group, cut_dim, joined_dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _swap(gradient, ctx.group, ctx.joined_dim, ctx.cut_dim), None, None, None


def shared(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Read a tensor that all ranks have alike, each for its own part of the work: their gradients are summed."""
    return _Shared.apply(x, group)


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum the ranks' terms; all go on alike from the sum, so that its gradient is that of each term."""
    return _Summed.apply(x, group)


def gathered(x: Tensor, group: dist.ProcessGroup, dim: int, *, alike: bool) -> Tensor:
    """Put the ranks' parts together along `dim`.

    Args:
        x: this rank's part, as large as those of the others.
        group: the ranks.
        dim: where it is cut.
        alike: whether all go on alike from the whole, so that each knows its gradient; else gradients are summed.
    """
    return _Gathered.apply(x, group, dim, alike)


def cut(x: Tensor, group: dist.ProcessGroup, dim: int, *, terms: bool) -> Tensor:
    """Keep this rank's part along `dim`, which the number of ranks divides.

    Args:
        x: whole.
        group: the ranks.
        dim: where to cut.
        terms: whether `x` is a term of a sum, which is what is cut; else all ranks have the same `x`.
    """
    return _Cut.apply(x, group, dim, terms)


def swapped(x: Tensor, group: dist.ProcessGroup, *, cut_dim: int, joined_dim: int) -> Tensor:
    """Turn ranks that each have a part along `joined_dim` into ranks that each have a part along `cut_dim`.

    Args:
        x: this rank's part; the number of ranks divides its size along `cut_dim`.
        group: the ranks.
        cut_dim: where it is whole, and will be cut.
        joined_dim: where it is cut, and will be whole.
    """
    return _Swapped.apply(x, group, cut_dim, joined_dim)
