"""Seeds that are made from others, so that no stream of random numbers is drawn from twice."""

from __future__ import annotations

from hashlib import blake2b


def derived_seed(*parts: int | str) -> int:
    """A seed, 0 to 2^63 - 1, from what tells its draws from all others: a hash of the parts in their order."""
    digest = blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of those that are drawn with `seed`; the first is drawn with `seed` itself.

    A sum of the two would give the samples of neighbouring seeds the same draws.
    """
    return seed if index == 0 else derived_seed(seed, index)
