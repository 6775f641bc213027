"""The permutation is a shuffle, and the mixture a pure function with exact proportions."""

from __future__ import annotations

import numpy as np
import pytest

from lit_llm.config import UserError
from lit_llm.data.loading.order import MixtureOrder, Permutation


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


def test_mixture_has_exact_proportions_in_every_block_and_whole_epochs() -> None:
    num_windows = [37, 500, 4]
    order = MixtureOrder(num_windows, [5.0, 3.0, 2.0], seed=1, block_size=100)
    sources, epochs, windows = order.lookup(np.arange(1000))
    for block in sources.reshape(10, 100):
        assert np.bincount(block).tolist() == [50, 30, 20]
    for source, count in enumerate(num_windows):
        chosen = sources == source
        # Samples of one source come epoch after epoch, each window once in each.
        assert (np.diff(epochs[chosen]) >= 0).all()
        for epoch in range(int(chosen.sum()) // count):
            assert sorted(windows[chosen & (epochs == epoch)].tolist()) == list(range(count))
    # Slots are mixed, not in runs.
    assert (np.diff(sources) != 0).mean() > 0.4


def test_lookup_is_a_pure_function_of_the_index() -> None:
    arguments = ([37, 500], [0.25, 0.75], 9)
    whole = np.stack(MixtureOrder(*arguments).lookup(np.arange(70_000)))
    shuffled = np.random.default_rng(0).permutation(70_000)
    again = np.stack(MixtureOrder(*arguments).lookup(shuffled))
    assert np.array_equal(again, whole[:, shuffled])
    assert not np.array_equal(whole, np.stack(MixtureOrder(*arguments[:2], 10).lookup(np.arange(70_000))))


def test_shares_are_rounded_by_largest_remainder() -> None:
    assert MixtureOrder([1, 1, 1], [1, 1, 1], seed=0, block_size=100).quotas.tolist() == [34, 33, 33]


def test_a_weight_that_gets_no_slot_is_an_error() -> None:
    with pytest.raises(UserError, match=r"weight of path 1 .* 1\.0e-07 .*too small"):
        MixtureOrder([10, 10], [1.0, 1e-7], seed=0)
