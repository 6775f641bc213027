"""Passes over one token of a few rows, in a form that the compiler turns into one loop after another.

Such a pass reads every weight once and computes next to nothing, so it is as fast as memory is read. Products are
written as sums: the compiler puts them, the norms, the rotation and the attention into one function without calls,
reads weights of 8 or 16 bits as they are stored, and computes in float32.

Notation used for tensor shapes:
    b: rows, s: slots of the cache that are looked at, n_h: query heads, n_kv: key and value heads, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
    """A `CacheStep` for one token of each row whose lengths are tensors instead of Python numbers.

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
        """Check nothing: the caller has made sure that the text fits."""

    def advance(self, tokens: Tensor) -> None:
        """Count nothing: the caller keeps the lengths."""

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
