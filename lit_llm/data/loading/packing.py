"""Packing: which short texts share one row of a batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Packs texts into as few bins as best-fit decreasing finds, at most 11/9 of the fewest possible.

    The longest text comes first, and each goes into the fullest bin that still has room for it (Johnson, 1973; for
    training data: Ding et al., 2024, "Fewer Truncations Improve Language Modeling"). No text is cut or left out.

    Args:
        lengths: tokens of each text, 1 to `capacity`.
        capacity: tokens that a bin holds.

    Returns:
        The texts of each bin, as indices of `lengths`; longest first in every bin. The same lengths give the same bins.

    Raises:
        ValueError: a length is out of bounds.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not fit bins of {capacity}")
    bins: list[list[int]] = []
    # Bins by the room that they have left: a text looks among the few different amounts, not among all the bins.
    rooms: list[int] = []
    bins_with: dict[int, list[int]] = {}
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room = rooms[place]
            chosen = bins_with[room].pop()
            if not bins_with[room]:
                del bins_with[room], rooms[place]
        bins[chosen].append(text)
        left = room - length
        if left in bins_with:
            bins_with[left].append(chosen)
        elif left:
            insort(rooms, left)
            bins_with[left] = [chosen]
    return bins
