"""Keys and values of pieces of texts, kept apart from the rows of a cache that they come from and go back to.

Notation used for tensor shapes:
    n_kv: key and value heads, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_llm.config import ModelConfig
from lit_llm.model.cache import KVCache


class PageMemory:
    """Memory for pages, each of which has the keys and values of every layer for `size` tokens that follow each other.

    A page begins at a multiple of `size`, and is whole. Keys are as they lie in a row, so they belong to the positions
    that they were computed for. On the CPU the system gives memory when a page is first written.

    Args:
        config: the decoder's configuration.
        count: pages.
        size: tokens of a page.
        tensor_parallel_size: ranks that share the heads; each keeps its own.
        device: where the memory lies.
        dtype: what keys and values are kept in.
    """

    def __init__(
        self,
        config: ModelConfig,
        count: int,
        size: int,
        *,
        tensor_parallel_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.size = size
        shape = _page_shape(config, size, tensor_parallel_size)
        self._memory = torch.empty((count, *shape), device=device, dtype=dtype)

    def save(self, page: int, cache: KVCache, row: int, place: int) -> None:
        """Write a page from the tokens of a row that begin at `place * size`, all of which every layer still holds."""
        parts = []
        for memory in _memories(cache):
            start = place * self.size % memory.size(2)
            parts.append(memory[row, :, start : start + self.size])
        torch.stack(parts, out=self._memory[page])

    def load(self, pages: Sequence[int], cache: KVCache, row: int, last_token: int) -> None:
        """Make a row the text that `pages` hold, from its beginning on; `last_token` is the last of it."""
        count, device = len(pages), self._memory.device
        numbers = torch.tensor(pages, device=device)
        for part, memory in enumerate(_memories(cache)):
            room = memory.size(2) // self.size
            first = max(0, count - room)  # a ring has room for the newest alone
            slots = torch.arange(first, count, device=device) % room
            paged = memory[row, :, : room * self.size].unflatten(1, (room, self.size))  # [n_kv, pages, size, d]
            paged[:, slots] = self._memory[numbers[first:], part].transpose(0, 1)
        cache.fill(row, count * self.size, last_token)


def page_bytes(config: ModelConfig, size: int, dtype: torch.dtype, tensor_parallel_size: int = 1) -> int:
    """Compute the memory of a page of `size` tokens in bytes."""
    elements = 1
    for length in _page_shape(config, size, tensor_parallel_size):
        elements *= length
    return elements * dtype.itemsize


def ring_spare(config: ModelConfig, size: int) -> int:
    """Compute how many tokens a ring needs besides its window, so that it is a number of whole pages."""
    return 0 if config.sliding_window is None else -config.sliding_window % size


def _page_shape(config: ModelConfig, size: int, tensor_parallel_size: int) -> tuple[int, int, int, int]:
    """Shape of a page: [layers * 2, n_kv, size, d]."""
    return 2 * config.num_layers, config.kv_heads // tensor_parallel_size, size, config.width_per_head


def _memories(cache: KVCache) -> list[Tensor]:
    return [*cache.keys, *cache.values]
