"""A cache as plain values: what was read goes in, and what has been read comes out, one slot longer for each new token.

For programs that other runtimes run. They keep no memory between two calls and know no lengths but those of tensors.

Notation used for tensor shapes:
    b: rows, s: tokens read before, t: new tokens, n_kv: key and value heads, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GrowingStep:
    """A `CacheStep` whose memory is handed in and out, with padding on the left or between texts.

    Args:
        windows: the sliding window of each layer, or None.
        past: keys and values of each layer in turn [b, n_kv, s, d], for all tokens read so far, windowed or not.
        attention_mask: 1 for a token of the text and 0 for padding [b, s + t]; positions count the tokens of the text.
        width: new tokens, t.
        last_tokens: the token before the new ones [b, 1], for the token smear.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        past: Sequence[Tensor],
        attention_mask: Tensor,
        width: int,
        last_tokens: Tensor | None,
    ) -> None:
        self.windows, self.last_tokens = windows, last_tokens
        self.memory = list(past)
        before, device = past[0].size(2), attention_mask.device
        # chosen by number: a slice, or the size of the mask itself, would fix which sizes may be small or equal
        self._slots = torch.arange(before + width, device=device)
        self._new = torch.arange(width, device=device) + before
        is_text = attention_mask.index_select(1, self._slots)
        self._is_text = is_text.bool()
        self.positions = (is_text.long().cumsum(1) - 1).clamp(min=0).index_select(1, self._new)

    def check(self, context: int) -> None:
        """Check nothing: how long the text is, is not known before the program runs."""

    def advance(self, tokens: Tensor) -> None:
        """Count nothing: the caller hands on what is in `memory`."""

    def mask(self, window: int | None) -> tuple[Tensor, bool]:
        """Boolean mask [b, 1, t, s + t], True where a token may look; padding looks at itself, so that no row of the
        mask is empty."""
        slots, queries = self._slots, self._new.unsqueeze(1)
        seen = slots <= queries
        if window is not None:
            seen = seen & (queries - slots < window)
        return (seen & self._is_text[:, None, None, :]) | (slots == queries), False

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [b, n_kv, t, d] to a layer; returns what may be looked at, [b, n_kv, s + t, d]."""
        for place, new in ((2 * layer, keys), (2 * layer + 1, values)):
            self.memory[place] = torch.cat([self.memory[place], new], dim=2)
        return self.memory[2 * layer], self.memory[2 * layer + 1]
