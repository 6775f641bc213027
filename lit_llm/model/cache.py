"""Keys and values of the tokens read so far, in memory that is allocated once.

Notation used for tensor shapes:
    b: rows of one pass, t: new tokens, s: tokens attended to, n_kv: key and value heads, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_llm.config import ModelConfig, UserError

# A slot that holds nothing: later than every query, so that none sees it.
NOWHERE = 2**62


class KVCache:
    """Keys and values of every layer for a number of rows, each with a length of its own.

    In a layer with a sliding window a row is a ring: position p lies in slot `p % capacity`, and memory is bounded by
    the window instead of by the text.

    Args:
        config: the decoder's configuration.
        batch_size: rows.
        max_length: most tokens that a row may reach.
        spare: tokens of a windowed row that `truncate` can take back.
        tensor_parallel_size: ranks that share the heads; each keeps its own.
        device: where the memory lies.
        dtype: what keys and values are kept in.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        spare: int = 0,
        tensor_parallel_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.max_length = max_length
        self.windows = [config.window_of(layer) for layer in range(config.num_layers)]
        self.capacities = {
            window: max_length if window is None else min(max_length, window + spare)
            for window in dict.fromkeys(self.windows)
        }
        kv_heads = config.kv_heads // tensor_parallel_size

        def memory(window: int | None) -> Tensor:
            shape = (batch_size, kv_heads, self.capacities[window], config.width_per_head)
            # zeros, as what a mask hides is still multiplied by 0
            return torch.zeros(shape, device=device, dtype=dtype)

        self.keys = [memory(window) for window in self.windows]
        self.values = [memory(window) for window in self.windows]
        self.lengths = [0] * batch_size
        # where a row was copied, its rings may hold less than they have room for: the first position known to be there
        self._firsts = [0] * batch_size
        # the last token of each row, which the token smear reads
        self.last_tokens = torch.zeros(batch_size, 1, dtype=torch.long, device=device) if config.token_smear else None

    def step(self, width: int, rows: range | None = None, counts: Sequence[int] | None = None) -> CacheStep:
        """A forward pass that reads `width` more tokens in each of `rows`, or fewer where `counts` says so.

        Args:
            width: tokens of the widest row.
            rows: consecutive rows; None means all.
            counts: how many of a row's tokens are real, 1 to `width`; those after them are padding.
        """
        return CacheStep(self, width, range(len(self.lengths)) if rows is None else rows, counts)

    @property
    def least_capacity(self) -> int:
        """How many of the newest tokens of a row every layer holds."""
        return min(self.capacities.values())

    def holds_prefix(self, row: int, length: int) -> bool:
        """Whether a text can continue from the first `length` tokens of `row`: a ring forgets what left the window."""
        oldest = min((length - window + 1 for window in self.capacities if window is not None), default=0)
        return length <= self.lengths[row] and self.first_held(row) <= max(oldest, 0)

    def first_held(self, row: int) -> int:
        """The first position of a row from which on every layer holds all tokens."""
        return max(self._firsts[row], self.lengths[row] - self.least_capacity)

    def lose(self, row: int, position: int) -> None:
        """Take note that what every layer holds of a row begins after `position`."""
        self._firsts[row] = max(self._firsts[row], position + 1)

    def copy_row(self, source: int, target: int, length: int, last_token: int = 0) -> None:
        """Make `target` the first `length` tokens of `source`; `last_token` is the last of them."""
        for memory in (*self.keys, *self.values):
            slots = min(self.lengths[source], memory.size(2))
            memory[target, :, :slots] = memory[source, :, :slots]
        self._firsts[target] = self.first_held(source)
        self.lengths[target] = length
        if self.last_tokens is not None:
            self.last_tokens[target] = last_token

    def move_row(self, source: int, target: int) -> None:
        """Copy all of row `source` to row `target`."""
        if source != target:
            self.copy_row(source, target, self.lengths[source])
            if self.last_tokens is not None:
                self.last_tokens[target] = self.last_tokens[source]

    def wipe(self, row: int) -> None:
        """Forget a row and what its memory holds, which may not be finite: what a mask hides is multiplied by 0."""
        for memory in (*self.keys, *self.values):
            memory[row].zero_()
        self.truncate(row, 0)

    def select(self, rows: Sequence[int]) -> None:
        """Let row i take over what row `rows[i]` held; rows after the last of them keep theirs."""
        index = torch.tensor(rows, device=self.keys[0].device)
        for memory in (*self.keys, *self.values):
            slots = min(max(self.lengths), memory.size(2))
            memory[: len(rows), :, :slots] = memory[index, :, :slots]
        self.lengths[: len(rows)] = [self.lengths[row] for row in rows]
        self._firsts[: len(rows)] = [self._firsts[row] for row in rows]
        if self.last_tokens is not None:
            self.last_tokens[: len(rows)] = self.last_tokens[index]

    def fill(self, row: int, length: int, last_token: int) -> None:
        """Take note that the newest tokens of a text of `length` were written to a row, as many as each layer holds."""
        self.lengths[row], self._firsts[row] = length, 0
        if self.last_tokens is not None:
            self.last_tokens[row] = last_token

    def truncate(self, row: int, length: int, last_token: int = 0) -> None:
        """Forget the tokens of `row` after its first `length`, of which `last_token` is the last.

        Raises:
            ValueError: the ring has forgotten what would be needed from there.
        """
        if length and not self.holds_prefix(row, length):
            raise ValueError(f"row {row} of {self.lengths[row]} tokens cannot go back to {length}")
        self._firsts[row] = self.first_held(row) if length else 0
        self.lengths[row] = length
        if self.last_tokens is not None:
            self.last_tokens[row] = last_token


class CacheStep:
    """One forward pass over a cache: which slots it writes and reads, and which token may look at which.

    Args:
        cache: what is read and extended.
        width: new tokens of the widest row, t.
        rows: consecutive rows of the cache.
        counts: real tokens of each row, or None for all `width`.
    """

    def __init__(self, cache: KVCache, width: int, rows: range, counts: Sequence[int] | None) -> None:
        self.cache = cache
        self.rows = rows
        self.width = width
        self.lengths = cache.lengths[rows.start : rows.stop]
        ragged = counts is not None and min(counts) < width
        self.counts = list(counts) if ragged and counts is not None else None
        counts = self.counts or [width] * len(rows)
        self.ends = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.even = self.counts is None and min(self.lengths) == max(self.lengths)
        self.places = self._places()
        # padding may stand where no position is
        self.positions = self.places if self.counts is None else self.places.clamp(max=self.longest - 1)
        self._slots = {window: _Slots(self, window, capacity) for window, capacity in cache.capacities.items()}

    @property
    def longest(self) -> int:
        """Length of the longest row once the new tokens are read."""
        return max(self.ends)

    @property
    def last_tokens(self) -> Tensor:
        """The token before the new ones [b, 1], for the token smear."""
        assert self.cache.last_tokens is not None
        return self.cache.last_tokens[self.rows.start : self.rows.stop]

    def _places(self) -> Tensor:
        """Positions of the new tokens, padding included: [t], or [b, t] where rows differ."""
        device = self.cache.keys[0].device
        if min(self.lengths) == max(self.lengths):
            return torch.arange(self.lengths[0], self.lengths[0] + self.width, device=device)
        lengths = torch.tensor(self.lengths, device=device).unsqueeze(1)
        return lengths + torch.arange(self.width, device=device)

    def mask(self, window: int | None) -> tuple[Tensor | None, bool]:
        """Boolean mask [b or 1, 1, t, s] of the layers with this window, True where a query may look, or None; and
        whether causality says it all."""
        return self._slots[window].mask()

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [b, n_kv, t, d] into a layer; returns all that the new tokens may look at, [b, n_kv, s, d]."""
        slots = self._slots[self.cache.windows[layer]]
        return (
            slots.update(self.cache.keys[layer][self.rows.start : self.rows.stop], keys),
            slots.update(self.cache.values[layer][self.rows.start : self.rows.stop], values),
        )

    def advance(self, tokens: Tensor) -> None:
        """Count the new tokens [b, t] as read, once every layer has them."""
        self.cache.lengths[self.rows.start : self.rows.stop] = self.ends
        if self.cache.last_tokens is not None:
            if self.counts is None:
                last = tokens[:, -1:]
            else:
                last = tokens.gather(1, torch.tensor(self.counts, device=tokens.device).unsqueeze(1) - 1)
            self.last_tokens.copy_(last)

    def check(self, context: int) -> None:
        """Refuse a text longer than the cache, or than the model's `context`.

        Raises:
            UserError: names both lengths.
        """
        for limit, name in ((context, "model's context"), (self.cache.max_length, "cache")):
            if self.longest > limit:
                raise UserError(f"a text of {self.longest} tokens is longer than the {name} of {limit} tokens")


class _Slots:
    """Which slots one pass writes and reads in the layers that have the same sliding window."""

    def __init__(self, step: CacheStep, window: int | None, capacity: int) -> None:
        self.step = step
        self.window = window
        self.capacity = capacity
        self._turns = step.longest > capacity
        # of new tokens that overwrite what some of them still look at, the old part is read before they are written
        self._reads_before = self._turns and step.width > 1
        self._write_at: tuple[Tensor, Tensor] | None = None
        self._source: Tensor | None = None

    def mask(self) -> tuple[Tensor | None, bool]:
        step, window = self.step, self.window
        if step.even and not self._turns and (window is None or step.longest <= window):
            if step.lengths[0] == 0:
                return None, True
            if step.width == 1:
                return None, False
        full = step.width == 1 and min(step.ends) >= self.capacity
        if full and (window is None or window >= self.capacity):
            return None, False
        queries = step.places.view(-1, 1, step.width, 1)
        keys = self._key_positions()
        mask = keys <= queries
        if window is not None:
            mask = mask & (queries - keys < window)
        return mask, False

    def _key_positions(self) -> Tensor:
        """Position of every token that is read [b or 1, 1, 1, s]; `NOWHERE` for a slot without one."""
        step, device = self.step, self.step.places.device
        ends = step.lengths if self._reads_before else step.ends
        slots = torch.arange(min(max(ends), self.capacity), device=device)
        if not self._turns:
            return slots.view(1, 1, 1, -1)
        newest = torch.tensor(ends, device=device).unsqueeze(1) - 1
        # the newest position of a ring that lies in the slot
        positions = newest - (newest - slots) % self.capacity
        positions = torch.where(positions < 0, NOWHERE, positions)
        if self._reads_before:
            new = step.places.view(-1, step.width).expand(len(step.rows), -1)
            positions = torch.cat([positions, new], dim=1)
        return positions[:, None, None, :]

    def update(self, memory: Tensor, new: Tensor) -> Tensor:
        """Write [b, n_kv, t, d] into the rows' memory; returns what is to be read, [b, n_kv, s, d]."""
        if self._reads_before:
            past = min(max(self.step.lengths), self.capacity)
            seen = torch.cat([memory[:, :, :past], new], dim=2)
            self._write(memory, new)
            return seen
        self._write(memory, new)
        return memory[:, :, : min(self.step.longest, self.capacity)]

    def _write(self, memory: Tensor, new: Tensor) -> None:
        step = self.step
        if step.even and (not self._turns or step.width == 1):
            slot = step.lengths[0] % self.capacity
            memory[:, :, slot : slot + step.width] = new
            return
        if self._write_at is None:
            self._write_at = self._find_slots(memory.device)
        new = new.transpose(1, 2).flatten(0, 1)  # [b * t, n_kv, d]
        kept = new if self._source is None else new[self._source]
        rows, slots = self._write_at
        memory[rows, :, slots] = kept.to(memory.dtype)

    def _find_slots(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and slot of every token that is kept; keeps in mind which new tokens those are, unless it is all."""
        step = self.step
        ends = torch.tensor(step.ends).unsqueeze(1)
        positions = torch.tensor(step.lengths).unsqueeze(1) + torch.arange(step.width)
        # no padding, and of more than a ring holds the newest alone
        kept = ((positions < ends) & (positions >= ends - self.capacity)).flatten()
        rows = torch.arange(len(step.rows)).unsqueeze(1).expand(-1, step.width).flatten()
        slots = (positions % self.capacity).flatten()
        if not bool(kept.all()):
            self._source = kept.nonzero().squeeze(1).to(device)
            rows, slots = rows[kept], slots[kept]
        return rows.to(device), slots.to(device)
