"""Texts that begin alike: how much of a new one is already in the rows of texts that run."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from torch import Tensor

from lit_llm.generation.inference import not_finite
from lit_llm.generation.request import Event, Request
from lit_llm.model import KVCache

# A beginning that a row shares and that is shorter than this is read again rather than waited for.
SHORTEST_SHARED_PREFIX = 16


def shared_with_rows(request: Request, running: Sequence[Request], cache: KVCache) -> tuple[int, int, int]:
    """Find the row that already holds most of the beginning of `request`.

    Args:
        request: the text that is to begin.
        running: the texts of the cache's rows.
        cache: the engine's cache.

    Returns:
        The row, how many tokens of the beginning it holds, and how many a row that is being read will hold soon.
    """
    source = shared = coming = 0
    most = request.shareable
    if most < SHORTEST_SHARED_PREFIX:
        return source, shared, coming
    for row, other in enumerate(running):
        if other.namespace != request.namespace:
            continue
        common = min(common_prefix(request.context, other.context), most)
        held = min(common, other.read)
        if shared < held >= SHORTEST_SHARED_PREFIX and cache.holds_prefix(row, held):
            source, shared = row, held
        if other.unread > 1 and common >= SHORTEST_SHARED_PREFIX:
            coming = max(coming, common)
    return source, shared, coming


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens that two texts have in common at their beginning."""
    longest = min(len(one), len(other))
    # slices are compared at the speed of C
    return bisect_left(range(1, longest + 1), True, key=lambda length: one[:length] != other[:length])


def broken_prompts(
    requests: Sequence[Request], counts: Sequence[int], at_end: Sequence[int], hidden: Tensor
) -> Iterator[Event]:
    """End each text in whose prompt the states that were just read are not finite.

    They must not stay among those that others begin with, or may be moved over.

    Args:
        requests: the texts that were read.
        counts: how many tokens of each.
        at_end: places of those that were read to their end, whose logits are looked at instead.
        hidden: the states [b, t, width].
    """
    finite = hidden.isfinite().all(-1).tolist()
    for row in sorted({*range(len(requests))} - {*at_end}):
        if not all(finite[row][: counts[row]]):
            yield requests[row].end("error", error=not_finite())
