"""Passes over one token of a few rows, in a form that the compiler turns into one loop after another.

Such a pass reads every weight once and computes next to nothing, so it is as fast as memory is read. Products are
written as sums: the compiler puts them, the norms, the rotation and the attention into one function without calls,
reads weights of 8 or 16 bits as they are stored, and computes in float32.

Notation used for tensor shapes:
    b: rows, s: slots of the cache that are looked at, n_h: query heads, n_kv: key and value heads, d: width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
        self.weight, self.scale, self.bias = weight, scale, bias

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [..., in]. Returns: [..., out]."""
        rows = x.reshape(-1, self.in_features).float()
        # in memory: otherwise the compiler computes what makes the inputs again for every output
        rows = rows.as_strided(rows.shape, (self.in_features, 1))
        # sums that share one pass over the weight; for one token two halves at once, which memory gives faster
        halves = 2 if rows.size(0) == 1 and self.weight.size(0) % 2 == 0 else 1
        parts = self.weight.float().chunk(halves)
        y = torch.stack([torch.cat([(part * row).sum(-1) for part in parts]) for row in rows.unbind()])
        if self.scale is not None:
            y = y * self.scale.float()
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], -1)


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
        self.weight, self.scale, self.bias = weight, scale, bias

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [..., in]. Returns: [..., out]."""
        groups = self.scale.size(0)
        rows = x.reshape(-1, groups, self.in_features // groups // 2, 2).float()
        rows = rows.movedim(-1, 1).contiguous()
        # in memory, as in `FewRowsLinear`
        rows = rows.as_strided(rows.shape, (self.in_features, self.in_features // 2, rows.size(3), 1))
        step, middle = self.scale.float().transpose(0, 1).unsqueeze(-2).unbind(-1)  # [out, groups, 1]
        joined = self.weight.unflatten(1, (groups, -1))  # [out, groups, 16]
        even, odd = ((half.float() - 8) * step + middle for half in (joined & 15, joined >> 4))
        y = torch.stack([(even * row[0] + odd * row[1]).sum((1, 2)) for row in rows.unbind()])
        y = y[:, : self.out_features]
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def one_query_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of one token of each row, in float32; to be compiled.

    Args:
        q: [b, n_h, 1, d].
        k: [b, n_kv, s, d].
        v: [b, n_kv, s, d].
        mask: True where the token may look, broadcastable to [b, 1, 1, s], or None.
        scale: what scores are multiplied by; None means 1 / sqrt(d).

    Returns:
        [b, n_h, 1, d] in the dtype of q.
    """
    b, n_h, _, d = q.shape
    grouped = q.reshape(b, k.size(1), -1, 1, d).float() * (d**-0.5 if scale is None else scale)
    scores = (grouped * k.unsqueeze(2).float()).sum(-1)  # [b, n_kv, n_h / n_kv, s]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    out = (weights.unsqueeze(-1) * v.unsqueeze(2).float()).sum(-2) / weights.sum(-1, keepdim=True)
    return out.to(q.dtype).view(b, n_h, 1, d)


class OneTokenStep:
    """A `CacheStep` for one token of each row, where what the rows hold are tensors.

    Shapes do not depend on the lengths, so that one compiled function serves all of them.

    Args:
        windows: the sliding window of each layer, or None.
        keys: of each layer [b, n_kv, capacity, d], as in `KVCache`, which are extended; counting is left to the caller.
        values: the same.
        lengths: tokens that each row holds [b].
        slots: the numbers 0 to s - 1, of which the last is at least the greatest of `lengths`.
        last_tokens: the token before the new one [b, 1], for the token smear.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        lengths: Tensor,
        slots: Tensor,
        last_tokens: Tensor | None,
    ) -> None:
        self.windows = windows
        self.keys, self.values = keys, values
        self.lengths, self.slots, self.last_tokens = lengths, slots, last_tokens
        self.rows = torch.arange(lengths.size(0), device=lengths.device)
        self.positions = lengths.unsqueeze(1)

    def check(self, context: int) -> None:
        """The caller has seen to the lengths."""

    def advance(self, tokens: Tensor) -> None:
        """The caller counts."""

    def mask(self, window: int | None) -> tuple[Tensor, bool]:
        """Boolean mask [b, 1, 1, s], True where the token may look."""
        newest = self.lengths.view(-1, 1, 1, 1)
        if window is None:
            return self.slots <= newest, False
        capacity = self.keys[self.windows.index(window)].size(2)
        # the newest position of the ring that lies in each slot
        positions = newest - (newest - torch.arange(capacity, device=newest.device)) % capacity
        return (positions >= 0) & (newest - positions < window), False

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [b, n_kv, 1, d] into a layer; returns what may be looked at, [b, n_kv, s, d]."""
        seen = []
        for memory, new in ((self.keys[layer], keys), (self.values[layer], values)):
            ring = self.windows[layer] is not None
            slots = self.lengths % memory.size(2) if ring else self.lengths
            memory[self.rows, :, slots] = new[:, :, 0].to(memory.dtype)
            seen.append(memory if ring else memory.narrow(2, 0, self.slots.size(0)))
        return seen[0], seen[1]


def with_few_rows_linears(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its tensors, with a form for few rows of every linear layer.

    Those of int8_dynamic, and of int4 where torch has a kernel, stay as they are. A weight whose rows are not
    contiguous is stored anew in the module itself.
    """
    # imported here, as quantization imports the decoder and the decoder's attention this module
    from lit_llm.model.quantization import QuantizedLinear

    if isinstance(module, QuantizedLinear) and module.kind == "int8":
        return FewRowsLinear(module.weight, module.scale, module.bias)
    if isinstance(module, QuantizedLinear) and module.kind == "int4" and not module.is_packed:
        return FewRowsInt4Linear(module.weight, module.scale, module.bias, module.out_features)
    if type(module) is nn.Linear:
        if not module.weight.is_contiguous():
            module.weight.data = module.weight.data.contiguous()
        return FewRowsLinear(module.weight.detach(), None, None if module.bias is None else module.bias.detach())
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__)
    twin.__dict__["_modules"] = {
        name: None if child is None else with_few_rows_linears(child) for name, child in module._modules.items()
    }
    return twin
