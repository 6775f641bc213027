"""Seeds derived from other seeds, so that no two uses draw from the same stream of random numbers."""

from __future__ import annotations

from hashlib import blake2b


def derived_seed(*parts: int | str) -> int:
    """A seed from 0 to 2^63 - 1: a hash of the parts, which together name one use of random numbers."""
    digest = blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of those that are drawn with `seed`; the first is drawn with `seed` itself.

    A sum of the two would give the samples of neighbouring seeds the same draws.
    """
    return seed if index == 0 else derived_seed(seed, index)
