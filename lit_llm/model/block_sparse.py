"""Attention on CUDA that leaves out tiles of the scores which no token sees: torch's FlexAttention.

Notation used for tensor shapes:
    b: rows, t: tokens, n: tiles of `TILE` tokens, n_h: query heads, n_kv: key and value heads, d: width of a head.

Source: Dong et al. 2024 (FlexAttention).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

TILE = 128
"""Queries, and keys, of a tile of the scores."""


def tiles_of(first: Tensor) -> BlockMask:
    """Which tiles hold a score that is used, and which hold no other, without a mask of all pairs of tokens.

    As `first` never falls from a token to the next, the keys of a tile of queries begin with those of its first query,
    and from those of its last query on every query sees all that stand before the tile.

    Args:
        first: the first token that each one sees [b or 1, t]; one row holds for all.
    """
    rows, length = first.shape
    count = -(-length // TILE)
    number = torch.arange(count, device=first.device)
    queries, keys = number.unsqueeze(1), number.unsqueeze(0)  # [n, 1], [1, n]
    ends = F.pad(first, (0, count * TILE - length), mode="replicate") if count * TILE > length else first
    ends = ends.view(rows, 1, count, TILE)
    is_used = (keys <= queries) & (keys >= ends[..., :1] // TILE)  # [b or 1, 1, n, n]
    is_whole = (keys < queries) & (keys * TILE >= ends[..., -1:])
    return BlockMask.from_kv_blocks(
        *_in_order(is_used & ~is_whole), *_in_order(is_whole), TILE, _mask(first), (length, length)
    )


def _in_order(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of each row of tiles are meant, and their numbers, before those of the others."""
    numbers = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32), numbers.int().contiguous()


def _mask(first: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    first = first.int()

    def of_each_row(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[row, query])

    def of_all_rows(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[0, query])

    return of_each_row if first.size(0) > 1 else of_all_rows


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, tiles: BlockMask, scale: float | None, softcap: float | None
) -> Tensor:
    """Attend over the tiles of `tiles_of`.

    Args:
        q: [b, n_h, t, d].
        k: [b, n_kv, t, d].
        v: [b, n_kv, t, d].
        tiles: of `tiles_of`.
        scale: what scores are multiplied by; None means 1 / sqrt(d).
        softcap: replaces each score x by softcap * tanh(x / softcap).

    Returns:
        [b, n_h, t, d] in the dtype of q.
    """
    attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
    out: Tensor = attend(q, k, v, _cap(softcap), tiles, scale, q.size(1) != k.size(1))
    return out


@cache
def _compiled() -> Callable[..., Any]:
    """The operation for blocks that are not compiled themselves; without a compiler it writes out all scores."""
    return torch.compile(flex_attention)


def _cap(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None

    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap
