"""The same tokens in litdata's own format, read by its StreamingDataset, beside which our loader is measured."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch


def litdata_speed(corpus: np.ndarray, folder: Path, length: int, batch_size: int, batches: int, workers: int) -> float:
    """Tokens per second of litdata's loader, shuffled, in blocks of `length` + 1 tokens as litgpt reads them.

    Args:
        corpus: uint16 [n].
        folder: gets the optimized data set; it is empty.
        length: tokens in a window.
        batch_size: windows in a batch.
        batches: read after the first.
        workers: loader processes.

    Raises:
        ImportError: litdata is not installed.
    """
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    if not any(folder.iterdir()):
        cache = Cache(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(block_size=length + 1))
        for number, piece in enumerate(np.array_split(corpus, max(1, len(corpus) // 1_000_000))):
            cache[number] = torch.from_numpy(piece.astype(np.uint16))
        cache.done()
        cache.merge()
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=length + 1), shuffle=True, seed=0)
    loader = StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers)
    iterator = iter(loader)
    next(iterator)
    started, done = time.perf_counter(), 0
    for batch in iterator:
        # what a model is given, as of ours: inputs and targets, which an embedding and a loss read as int64
        tokens, targets = batch[:, :-1].contiguous().long(), batch[:, 1:].contiguous().long()
        assert tokens.shape == targets.shape and tokens.shape[1] == length
        done += len(tokens)
        if done >= batches * batch_size:
            break
    return done * length / (time.perf_counter() - started)
