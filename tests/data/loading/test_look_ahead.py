"""Looking up many batches at once gives what looking up each gives, in any order, and is done for those of a loader."""

from __future__ import annotations

import numpy as np
import pytest

from lit_llm.data.loading.loader import ConsumedBatchSampler
from lit_llm.data.loading.look_ahead import LookAhead


class Squares:
    """A pure look-up that counts how often it is asked."""

    calls = 0

    def __call__(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        assert (ids >= 0).all()
        return ids * ids, ids % 7


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (3, 4)])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_of_a_loader_are_looked_up_many_at_once(rank: int, world_size: int, workers: int) -> None:
    lookup = Squares()
    ahead = LookAhead(lookup)
    batches = list(ConsumedBatchSampler(1000, 32, 8, rank, world_size, num_steps=600))[::workers]
    for batch in batches:
        ids = np.array(batch)
        squares, rests = ahead(ids)
        assert np.array_equal(squares, ids * ids) and np.array_equal(rests, ids % 7)
    # two batches show the step, the third confirms it, and 128 windows of 8 samples are 1024
    assert lookup.calls <= 2 + -(-len(batches) // 128)


def test_any_other_batch_is_looked_up_by_itself() -> None:
    ahead = LookAhead(Squares())
    rng = np.random.default_rng(0)
    even = [np.arange(8 * k, 8 * k + 8) for k in range(5)]
    others = [np.arange(4), np.empty(0, dtype=np.int64), np.arange(8)[::-1], np.arange(3), np.arange(2000)]
    random = [rng.integers(0, 100, rng.integers(1, 4)) for _ in range(200)]
    backwards = even[::-1]
    for ids in [*even, even[0], *even, *others, *even, *backwards, *random, *even[:3], even[4], even[4], even[3]]:
        squares, rests = ahead(ids)
        assert np.array_equal(squares, ids * ids) and np.array_equal(rests, ids % 7)
