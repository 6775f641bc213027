"""The permutation is a shuffle, and the mixture a pure function with exact proportions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.config import UserError
from lit_llm.data.loading.order import MixtureOrder, Permutation, Stretch


def test_is_a_bijection() -> None:
    for length in [*range(1, 301), 1 << 16, 99_991, 300_007]:
        image = Permutation(length, seed=length + 5)(np.arange(length))
        assert image.dtype == np.int64
        assert np.array_equal(np.sort(image), np.arange(length)), length


@pytest.mark.parametrize("length", [10**12 + 39, 1 << 62])
def test_stays_inside_and_apart_on_lengths_that_cannot_be_listed(length: int) -> None:
    indices = np.concatenate([np.arange(50_000), np.arange(length - 50_000, length)])
    image = Permutation(length, seed=1)(indices)
    assert image.min() >= 0
    assert image.max() < length
    assert len(np.unique(image)) == len(indices)
    assert abs(image.mean() / length - 0.5) < 0.01


def test_any_index_alone_gives_what_the_batch_gives() -> None:
    permutation = Permutation(1000, seed=3)
    together = permutation(np.arange(1000).reshape(10, 100))
    assert together.shape == (10, 100)
    assert [int(permutation(np.array([i]))[0]) for i in range(0, 1000, 37)] == together.ravel()[::37].tolist()


@pytest.mark.parametrize("length", [2, 3, 6, 7, 12, 31])
def test_every_position_is_equally_likely(length: int) -> None:
    seeds = 1000
    images = np.stack([Permutation(length, seed)(np.arange(length)) for seed in range(seeds)])
    counts = np.stack([np.bincount(column, minlength=length) for column in images.T])
    expected, freedom = seeds / length, (length - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_small_lengths_reach_every_order() -> None:
    orders = {tuple(Permutation(5, seed)(np.arange(5))) for seed in range(1500)}
    assert len(orders) == 120


@pytest.mark.parametrize("length", [1000, 200_000])
def test_neighbours_land_far_apart(length: int) -> None:
    index = np.arange(length)
    image = Permutation(length, seed=11)(index)
    # For a uniform shuffle both mean distances are length / 3.
    assert abs(np.abs(image - index).mean() / length - 1 / 3) < 0.03
    assert abs(np.abs(np.diff(image)).mean() / length - 1 / 3) < 0.03
    assert abs(np.corrcoef(index, image)[0, 1]) < 0.1
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.1


def test_seeds_give_unrelated_orders() -> None:
    first, second = (Permutation(10_000, seed)(np.arange(10_000)) for seed in (1, 2))
    assert (first == second).mean() < 0.001


def test_length_must_be_in_bounds() -> None:
    for length in (0, (1 << 62) + 1):
        with pytest.raises(ValueError, match=r"outside"):
            Permutation(length, 0)


def test_each_epoch_of_one_source_visits_every_window_once_in_an_order_of_its_own() -> None:
    order = MixtureOrder([50], [1.0], seed=7)
    sources, epochs, windows = order.lookup(np.arange(200))
    assert not sources.any()
    assert epochs.tolist() == np.repeat(np.arange(4), 50).tolist()
    rows = windows.reshape(4, 50)
    assert all(sorted(row) == list(range(50)) for row in rows.tolist())
    assert len({tuple(row) for row in rows.tolist()}) == 4


def batches_of(order: MixtureOrder, first: int, batch_size: int, number: int) -> np.ndarray:
    """How many samples of each source are in each of some batches [number, sources]."""
    sources, _, _ = order.lookup(np.arange(first, first + number * batch_size))
    return np.stack([np.bincount(row, minlength=len(order.num_windows)) for row in sources.reshape(number, batch_size)])


WEIGHTS = st.lists(st.floats(0.1, 100) | st.integers(1, 9), min_size=2, max_size=7)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(WEIGHTS, st.integers(1, 700), st.integers(0, 99), st.integers(0, 2**40))
def test_every_batch_has_its_shares_to_one_sample(weights: list[float], batch: int, seed: int, skipped: int) -> None:
    order = MixtureOrder([13] * len(weights), [Stretch.of(weights, batch)], seed)
    number = max(2, 2000 // batch)
    counts = batches_of(order, skipped * batch, batch, number)
    exact = [Fraction(str(float(weight))) for weight in weights]
    shares = [batch * weight / sum(exact) for weight in exact]
    for source, share in enumerate(shares):
        assert floor(share) <= counts[:, source].min() <= counts[:, source].max() <= ceil(share)
    # so far, not more than a few samples off, from any point on and however the share is rounded
    so_far = np.cumsum(counts, axis=0) - np.outer(np.arange(1, number + 1), np.array(shares, dtype=float))
    assert np.abs(so_far).max() < 2 + np.log2(65536)


@pytest.mark.parametrize("batch", [1, 6, 64, 100_000])
def test_a_round_has_its_shares_to_one_sample_and_counts_say_so(batch: int) -> None:
    weights = [0.7, 0.2, 0.0999, 0.0001]
    stretch = Stretch.of(weights, batch)
    size = sum(stretch.quotas)
    assert size % batch == 0 and size >= 65536
    assert np.abs(np.array(stretch.quotas) - np.array(weights) * size).max() < 1
    order = MixtureOrder([10**6] * 4, [stretch], seed=2)
    sources, epochs, windows = order.lookup(np.arange(size + 77))
    # a window is read once, in the rounds that follow, too
    assert not epochs.any() and len(set(zip(sources.tolist(), windows.tolist(), strict=True))) == size + 77
    for samples in (0, 1, batch, size // 2 + 1, size - 1, size, size + 77):
        assert order.counts(samples) == np.bincount(sources[:samples], minlength=4).tolist()
    assert order.counts(size) == list(stretch.quotas)


def test_epochs_of_a_mixture_are_whole_and_go_on_across_its_stretches() -> None:
    num_windows = [37, 500, 4]
    order = MixtureOrder(
        num_windows,
        [Stretch.of([5, 3, 2], 10), Stretch.of([0, 1, 9], 10, first=500), Stretch.of([1, 1, 0], 4, first=800)],
        seed=1,
    )
    assert batches_of(order, 0, 10, 50).tolist() == [[5, 3, 2]] * 50
    assert batches_of(order, 500, 10, 30).tolist() == [[0, 1, 9]] * 30
    assert batches_of(order, 800, 4, 50).tolist() == [[2, 2, 0]] * 50
    sources, epochs, windows = order.lookup(np.arange(1000))
    for source, count in enumerate(num_windows):
        chosen = sources == source
        # No window is read again before all have been read, up to the order within a batch.
        assert epochs[chosen].max() == (chosen.sum() - 1) // count
        for epoch in range(int(chosen.sum()) // count):
            assert sorted(windows[chosen & (epochs == epoch)].tolist()) == list(range(count))
    assert order.counts(1000) == np.bincount(sources).tolist()
    assert order.counts(500) == np.bincount(sources[:500]).tolist()
    with pytest.raises(ValueError, match="whole batches"):
        MixtureOrder([9, 9], [Stretch.of([1, 1], 8), Stretch.of([1, 2], 8, first=20)], seed=1)
    # Samples are mixed inside a batch, not in runs, and each place of a batch has samples of every source.
    first = sources[:500].reshape(50, 10)
    assert (np.diff(first, axis=1) != 0).mean() > 0.4
    assert all(set(column) == {0, 1, 2} for column in first.T.tolist())


def test_lookup_is_a_pure_function_of_the_index() -> None:
    arguments = ([37, 500], [Stretch.of([0.25, 0.75], 8), Stretch.of([0.5, 0.5], 6, first=800)])
    whole = np.stack(MixtureOrder(*arguments, 9).lookup(np.arange(3000)))
    shuffled = np.random.default_rng(0).permutation(3000)
    again = np.stack(MixtureOrder(*arguments, 9).lookup(shuffled))
    assert np.array_equal(again, whole[:, shuffled])
    assert not np.array_equal(whole, np.stack(MixtureOrder(*arguments, 10).lookup(np.arange(3000))))
    far = np.arange(10**12, 10**12 + 600)
    assert np.bincount(MixtureOrder(*arguments, 9).lookup(far)[0]).tolist() == [300, 300]


def test_plain_shares_are_those_of_any_part_of_the_samples() -> None:
    order = MixtureOrder([37, 500], [1, 3], seed=0)
    for first in (0, 1000, 70_000):
        assert np.bincount(order.lookup(np.arange(first, first + 400))[0]).tolist() == pytest.approx([100, 300], abs=3)


def test_shares_are_rounded_by_largest_remainder() -> None:
    assert Stretch.of([1, 1, 1]).quotas == (21846, 21845, 21845)
    assert Stretch.of([0.7, 0.2, 0.1], 10).quotas == (57344, 16384, 8192)


def test_a_weight_that_gets_no_sample_is_an_error() -> None:
    with pytest.raises(UserError, match=r"weight of path 1 .* 1\.0e-07 .*too small"):
        MixtureOrder([10, 10], [1.0, 1e-7], seed=0)
    with pytest.raises(UserError, match=r"weight of tiny is 1\.0e-07 .*too small"):
        Stretch.of([1.0, 1e-7], names=["large", "tiny"])
