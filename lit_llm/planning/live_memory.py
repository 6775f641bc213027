"""Bytes that a piece of torch code holds at each moment, on any device and on the meta device."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import bmm_flop, mm_flop

import lit_llm.model.piecewise  # noqa: F401  (makes its operations known)

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class LiveMemory(TorchDispatchMode):
    """Follows every storage that operations make inside it, from its first tensor to its last.

    What an operation needs within itself is not seen, except where `workspace` says it. Floating-point operations of
    products and attention are counted along the way (attention whole, its backward pass as twice its forward pass), and
    what ranks exchange.

    Args:
        outside: tensors that are there already; their memory is not counted.
        on_growth: called after each operation that has taken memory, with the bytes that it needed within itself.
        workspace: bytes that an operation needs within itself, by operation; called with its arguments.
    """

    def __init__(
        self,
        outside: Iterable[Tensor],
        on_growth: Callable[[int], None],
        workspace: dict[Any, Callable[..., int]] | None = None,
    ) -> None:
        super().__init__()
        self.category = "activations"
        """Name of the category that new memory is counted under."""
        self.bytes: dict[str, int] = {}
        """Bytes that are held now, by category."""
        self.flops = 0
        """Floating-point operations so far."""
        self.exchanges: Counter[tuple[str, str]] = Counter()
        """By (kind, "calls") and (kind, "bytes"): how often ranks have exchanged something so far, and how much; of
        "all_gather_into_tensor" and "reduce_scatter_tensor" that is the whole."""
        self._on_growth = on_growth
        self._workspace = workspace or {}
        # by address of the storage: its category and size; outside memory belongs to no category
        self._held: dict[int, tuple[str | None, int]] = {}
        for tensor in outside:
            self._hold(tensor, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and take note of the memory of its results."""
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _FLOPS:
            self.flops += _FLOPS[packet](*args)
        workspace = self._workspace[packet](*args) if packet in self._workspace else 0
        results = (out,) if isinstance(out, Tensor) else tree_leaves(out)
        if func.namespace == "_c10d_functional" and packet.__name__ != "wait_tensor":
            self.exchanges[packet.__name__, "calls"] += 1
            self.exchanges[packet.__name__, "bytes"] += max(args[0].nbytes, out.nbytes)
        grown = [self._hold(result, self.category) for result in results if isinstance(result, Tensor)]
        if workspace or any(grown):
            self._on_growth(workspace)
        return out

    def put_down_to(self, tensor: Tensor, category: str) -> None:
        """Move memory that is already followed into another category."""
        address = tensor.untyped_storage()._cdata
        old, size = self._held[address]
        if old is not None:
            self.bytes[old] -= size
            self.bytes[category] = self.bytes.get(category, 0) + size
            self._held[address] = (category, size)

    def _hold(self, tensor: Tensor, category: str | None) -> bool:
        """Follow the storage of `tensor`; returns whether it is new."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._held:
            return False
        size = storage.nbytes()
        self._held[storage._cdata] = (category, size)
        if category is not None:
            self.bytes[category] = self.bytes.get(category, 0) + size
        weakref.finalize(storage, self._release, storage._cdata)
        return True

    def _release(self, address: int) -> None:
        category, size = self._held.pop(address)
        if category is not None:
            self.bytes[category] -= size


def _attention_flops(query: Tensor, key: Tensor, *_: Any) -> int:
    b, n_h, t, d = query.shape
    return 4 * b * n_h * t * key.size(2) * d


def _attention_backward_flops(gradient: Tensor, query: Tensor, key: Tensor, *_: Any) -> int:
    return 2 * _attention_flops(query, key)


_aten = torch.ops.aten
_FLOPS: dict[Any, Callable[..., int]] = {
    _aten.mm: lambda a, b, *_: mm_flop(a.shape, b.shape),
    _aten.addmm: lambda _, a, b, *__: mm_flop(a.shape, b.shape),
    _aten.addmm_: lambda _, a, b, *__: mm_flop(a.shape, b.shape),
    _aten.bmm: lambda a, b, *_: bmm_flop(a.shape, b.shape),
    _aten.baddbmm: lambda _, a, b, *__: bmm_flop(a.shape, b.shape),
    ATTENTION: _attention_flops,
    ATTENTION_BACKWARD: _attention_backward_flops,
    torch.ops.lit_llm.piecewise_attention: _attention_flops,
    torch.ops.lit_llm.piecewise_attention_backward: _attention_backward_flops,
}
