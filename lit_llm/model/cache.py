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

    With a sliding window a row is a ring: position p lies in slot `p % capacity`, and memory is bounded by the window
    instead of by the text.

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
        # a ring is of use only where no layer looks back further
        self.window = config.sliding_window if config.full_attention_every is None else None
        self.capacity = max_length if self.window is None else min(max_length, self.window + spare)
        shape = (batch_size, config.kv_heads // tensor_parallel_size, self.capacity, config.width_per_head)
        # zeros, as what a mask hides is still multiplied by 0
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.lengths = [0] * batch_size
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

    def holds_prefix(self, row: int, length: int) -> bool:
        """Whether the first `length` tokens of `row` could be gone on from: a ring forgets what left the window."""
        if length > self.lengths[row]:
            return False
        oldest_kept = self.lengths[row] - self.capacity
        return oldest_kept <= 0 or (self.window is not None and oldest_kept <= length - self.window + 1)

    def copy_row(self, source: int, target: int, length: int, last_token: int = 0) -> None:
        """Make `target` the first `length` tokens of `source`; `last_token` is the last of them."""
        slots = min(self.lengths[source], self.capacity)
        for memory in (*self.keys, *self.values):
            memory[target, :, :slots] = memory[source, :, :slots]
        self.lengths[target] = length
        if self.last_tokens is not None:
            self.last_tokens[target] = last_token

    def move_row(self, source: int, target: int) -> None:
        """Make `target` what `source` is."""
        if source != target:
            self.copy_row(source, target, self.lengths[source])
            if self.last_tokens is not None:
                self.last_tokens[target] = self.last_tokens[source]

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; rows after them stay."""
        index = torch.tensor(rows, device=self.keys[0].device)
        slots = min(max(self.lengths), self.capacity)
        for memory in (*self.keys, *self.values):
            memory[: len(rows), :, :slots] = memory[index, :, :slots]
        self.lengths[: len(rows)] = [self.lengths[row] for row in rows]
        if self.last_tokens is not None:
            self.last_tokens[: len(rows)] = self.last_tokens[index]

    def truncate(self, row: int, length: int, last_token: int = 0) -> None:
        """Forget the tokens of `row` after its first `length`, of which `last_token` is the last.

        Raises:
            ValueError: the ring has forgotten what would be needed from there.
        """
        if length and not self.holds_prefix(row, length):
            raise ValueError(f"row {row} of {self.lengths[row]} tokens cannot go back to {length}")
        self.lengths[row] = length
        if self.last_tokens is not None:
            self.last_tokens[row] = last_token


class CacheStep:
    """One forward pass: which slots it writes, which it reads, and who may look at whom.

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
        self._even = self.counts is None and min(self.lengths) == max(self.lengths)
        self._turns = max(self.ends) > cache.capacity
        # of new tokens that overwrite what some of them still look at, the old part is read before they are written
        self._reads_before = self._turns and width > 1
        self._write_at: tuple[Tensor, Tensor] | None = None
        self._source: Tensor | None = None
        self._places = self._places_of_new()
        # padding may stand where no position is
        self.positions = self._places if self.counts is None else self._places.clamp(max=self.longest - 1)

    @property
    def longest(self) -> int:
        """Tokens of the longest row once these are read."""
        return max(self.ends)

    @property
    def last_tokens(self) -> Tensor:
        """The token before the new ones [b, 1], for the token smear."""
        assert self.cache.last_tokens is not None
        return self.cache.last_tokens[self.rows.start : self.rows.stop]

    def _places_of_new(self) -> Tensor:
        """Positions of the new tokens, padding included: [t], or [b, t] where rows differ."""
        device = self.cache.keys[0].device
        if min(self.lengths) == max(self.lengths):
            return torch.arange(self.lengths[0], self.lengths[0] + self.width, device=device)
        lengths = torch.tensor(self.lengths, device=device).unsqueeze(1)
        return lengths + torch.arange(self.width, device=device)

    def mask(self, window: int | None) -> tuple[Tensor | None, bool]:
        """Boolean mask [b or 1, 1, t, s], True where a query may look, or None; and whether causality says it all.

        Args:
            window: sliding window of the layers that it is for.
        """
        cache, width = self.cache, self.width
        if self._even and not self._turns and (window is None or self.longest <= window):
            if self.lengths[0] == 0:
                return None, True
            if width == 1:
                return None, False
        full = width == 1 and min(self.ends) >= cache.capacity
        if full and (window is None or window >= cache.capacity):
            return None, False
        device = self.positions.device
        queries = self._places.view(-1, 1, width, 1)
        keys = self._key_positions(device)
        mask = keys <= queries
        if window is not None:
            mask = mask & (queries - keys < window)
        return mask, False

    def _key_positions(self, device: torch.device) -> Tensor:
        """Position of every token that is read [b or 1, 1, 1, s]; `NOWHERE` for a slot without one."""
        capacity = self.cache.capacity
        slots = torch.arange(min(max(self.lengths) if self._reads_before else self.longest, capacity), device=device)
        if not self._turns:
            return slots.view(1, 1, 1, -1)
        ends = torch.tensor(self.lengths if self._reads_before else self.ends, device=device).unsqueeze(1)
        # the newest position of a ring that lies in the slot
        positions = ends - 1 - (ends - 1 - slots) % capacity
        positions = torch.where(positions < 0, NOWHERE, positions)
        if self._reads_before:
            new = self._places.view(-1, self.width).expand(len(self.rows), -1)
            positions = torch.cat([positions, new], dim=1)
        return positions[:, None, None, :]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [b, n_kv, t, d] into a layer; returns all that the new tokens may look at, [b, n_kv, s, d]."""
        key_memory = self.cache.keys[layer][self.rows.start : self.rows.stop]
        value_memory = self.cache.values[layer][self.rows.start : self.rows.stop]
        if self._reads_before:
            past = min(max(self.lengths), self.cache.capacity)
            seen = torch.cat([key_memory[:, :, :past], keys], 2), torch.cat([value_memory[:, :, :past], values], 2)
            self._write(key_memory, keys)
            self._write(value_memory, values)
            return seen
        self._write(key_memory, keys)
        self._write(value_memory, values)
        stop = min(self.longest, self.cache.capacity)
        return key_memory[:, :, :stop], value_memory[:, :, :stop]

    def _write(self, memory: Tensor, new: Tensor) -> None:
        if self._even and (not self._turns or self.width == 1):
            slot = self.lengths[0] % self.cache.capacity
            memory[:, :, slot : slot + self.width] = new
            return
        if self._write_at is None:
            self._find_slots(memory.device)
        new = new.transpose(1, 2).flatten(0, 1)  # [b * t, n_kv, d]
        memory[self._write_at[0], :, self._write_at[1]] = (new if self._source is None else new[self._source]).to(
            memory.dtype
        )

    def _find_slots(self, device: torch.device) -> None:
        """Row and slot of every token that is kept; which of the new tokens those are, unless it is all of them."""
        capacity, width = self.cache.capacity, self.width
        lengths = torch.tensor(self.lengths).unsqueeze(1)
        ends = torch.tensor(self.ends).unsqueeze(1)
        positions = lengths + torch.arange(width)
        # no padding, and of more than a ring holds the newest alone
        kept = ((positions < ends) & (positions >= ends - capacity)).flatten()
        rows = torch.arange(len(self.rows)).unsqueeze(1).expand(-1, width).flatten()
        slots = (positions % capacity).flatten()
        if not bool(kept.all()):
            self._source = kept.nonzero().squeeze(1).to(device)
            rows, slots = rows[kept], slots[kept]
        self._write_at = rows.to(device), slots.to(device)

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
