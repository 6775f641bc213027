"""What a model has to beat: general compressors, and the frequencies of single tokens."""

from __future__ import annotations

import gzip
import lzma
import math

import numpy as np

from lit_llm.data.corpus.shards import ShardedTokens

# tokens read at a time, so that a large corpus is never held whole
_BLOCK = 1 << 24


def compressor_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits per byte that gzip and xz, at their strongest, need for `text` as one stream."""
    sizes = {
        "gzip -9": len(gzip.compress(text, compresslevel=9)),
        "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8.0 * size / len(text) for name, size in sizes.items()}


def token_counts(tokens: ShardedTokens, vocab_size: int) -> np.ndarray:
    """How often each id occurs: int64 [vocab_size]."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _BLOCK):
        block = tokens.read(start, min(_BLOCK, len(tokens) - start))
        counts += np.bincount(block, minlength=vocab_size)
    return counts


def unigram_loss(train: ShardedTokens, validation: ShardedTokens, vocab_size: int) -> float:
    """Nats per token of guessing by train frequencies alone, each count raised by one.

    Args:
        train: where frequencies come from.
        validation: where they are tried.
        vocab_size: tokens in the vocabulary.
    """
    counts = token_counts(train, vocab_size) + 1
    log_probabilities = np.log(counts) - math.log(int(counts.sum()))
    seen = token_counts(validation, vocab_size)
    return float(-(seen * log_probabilities).sum() / seen.sum())
