"""What the tokens of a text see without a cache, as the first token of each: documents and sliding windows, no mask.

A token sees a run of tokens that ends with itself and begins at the start of its document, or of the window where that
is later. So one number for each token says what a mask says with one for each pair of tokens.

Notation used for tensor shapes:
    b: rows, t: tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lit_llm.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

PIECE = 128
"""Tokens that a piece gathers of short documents, or takes of a long text with a window."""
SHORT = 256
"""Tokens up to which, on the CPU, the scores of all pairs take no longer than the pieces."""
_CUDA_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass
class Spans:
    """What each token sees, in the form that the kernel of the device reads."""

    first: Tensor
    """The first token that each one sees [b or 1, t]."""
    pieces: Tensor | None = None
    """Runs of queries that are attended one after another [n, 5], on the CPU: see `cut`."""
    tiles: BlockMask | None = None
    """Which tiles of the scores are computed, on CUDA: see `lit_llm.model.block_sparse`."""


def spans_of(
    config: ModelConfig,
    length: int,
    *,
    window: int | None,
    document_ids: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    drops: bool,
) -> Spans | None:
    """The spans of a pass without a cache where a kernel takes them; None: causality or a mask is all that it takes.

    Args:
        config: the architecture.
        length: tokens, t.
        window: see `first_seen`.
        document_ids: see `first_seen`.
        device: where attention is computed.
        dtype: of queries and keys.
        drops: whether attention weights are dropped, which needs all of them.
    """
    if torch.compiler.is_compiling():  # first, as a question about the length would be kept as a condition
        return None
    plain = document_ids is None and (window is None or length <= window)
    if plain and config.attention_softcap is None:
        return None
    kernel = kernel_for(config, device.type, dtype, drops)
    if kernel is None or (device.type == "cpu" and length <= SHORT):
        return None
    first = first_seen(length, window=window, document_ids=document_ids, device=device)
    if first.is_meta:  # where operations are counted there is nothing to cut, and both kernels keep the same
        return Spans(first, pieces=first.new_empty(0, 5))
    if kernel == "pieces":
        return Spans(first, pieces=cut(length, window=window, document_ids=document_ids))
    from lit_llm.model.block_sparse import tiles_of

    return Spans(first, tiles=tiles_of(first))


def kernel_for(
    config: ModelConfig, device_type: str, dtype: torch.dtype, drops: bool
) -> Literal["pieces", "tiles"] | None:
    """Which kernel reads spans on a device: piece by piece on the CPU, FlexAttention on CUDA, or none.

    Args:
        config: the architecture.
        device_type: as "cuda"; "xpu" and "meta" are where a step is gone through without data.
        dtype: of queries and keys.
        drops: whether attention weights are dropped, which needs all of them.
    """
    if drops or device_type not in ("cpu", "cuda", "xpu", "meta"):
        return None
    if device_type != "cuda":
        return "pieces"
    return "tiles" if dtype in _CUDA_DTYPES and 16 <= config.width_per_head <= 256 else None


def document_starts(document_ids: Tensor) -> Tensor:
    """True where a document begins [b, t], of the document of each token [b, t]; its tokens stand together."""
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return begins


def first_seen(length: int, *, window: int | None, document_ids: Tensor | None, device: torch.device) -> Tensor:
    """The first token that each one sees [b or 1, t].

    Args:
        length: tokens, t.
        window: sliding window in tokens; token i sees j where 0 <= i - j < window.
        document_ids: document of each token [b, t]; tokens of different documents do not see each other.
        device: where it is made.
    """
    index = torch.arange(length, device=device).unsqueeze(0)
    first = torch.zeros_like(index)
    if document_ids is not None:
        first = torch.where(document_starts(document_ids), index, 0).cummax(dim=1).values
    return first if window is None else torch.maximum(first, index - (window - 1))


def cut(length: int, *, window: int | None, document_ids: Tensor | None) -> Tensor:
    """Cut rows into pieces: queries that follow each other, and the keys up to them that any of them sees.

    Documents are pieces; short ones are gathered, and long ones cut where the window lets go of their beginning.

    Args:
        length: tokens, t.
        window: see `first_seen`.
        document_ids: see `first_seen`; on the CPU.

    Returns:
        [n, 5]: row (-1: every one), first query, end of the queries, first key, and whether a mask is needed: without
        one each query sees all keys up to itself.
    """
    if document_ids is None:
        return torch.tensor(_cut_row(-1, [0, length], window))
    pieces = []
    for row, begins in enumerate(document_starts(document_ids)):
        pieces += _cut_row(row, [*begins.nonzero().flatten().tolist(), length], window)
    return torch.tensor(pieces)


def _cut_row(row: int, bounds: list[int], window: int | None) -> list[tuple[int, int, int, int, int]]:
    pieces = []
    gathered: list[int] = []  # bounds of short documents that are not in a piece yet
    for start, end in pairwise(bounds):
        if end - start < PIECE and (not gathered or end - gathered[0] <= PIECE):
            gathered = [*(gathered or [start]), end]
            continue
        pieces += _gathered(row, gathered, window)
        gathered = [start, end] if end - start < PIECE else []
        if not gathered:
            pieces += _long(row, start, end, window)
    return pieces + _gathered(row, gathered, window)


def _gathered(row: int, bounds: list[int], window: int | None) -> list[tuple[int, int, int, int, int]]:
    if not bounds:
        return []
    start, end = bounds[0], bounds[-1]
    alone = len(bounds) == 2 and (window is None or end - start <= window)
    return [(row, start, end, start, int(not alone))]


def _long(row: int, start: int, end: int, window: int | None) -> list[tuple[int, int, int, int, int]]:
    """Cut one document: the beginning that the window still covers, then `PIECE` queries at a time."""
    if window is None or end - start <= window:
        return [(row, start, end, start, 0)]
    covered = start + window if window >= PIECE else start
    pieces = [(row, start, covered, start, 0)] if covered > start else []
    for query in range(covered, end, PIECE):
        pieces.append((row, query, min(query + PIECE, end), max(start, query - window + 1), 1))
    return pieces
