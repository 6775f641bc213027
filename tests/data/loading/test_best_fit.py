"""Best-fit decreasing: nothing lost, nothing too full, few bins, fast enough for large data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.loading.packing import pack


@st.composite
def lengths_and_capacity(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 60))
    return draw(st.lists(st.integers(1, capacity), max_size=80)), capacity


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """How full each bin gets, by the textbook's quadratic search."""
    fill: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [index for index, used in enumerate(fill) if used + length <= capacity]
        if fits:
            fill[max(fits, key=lambda index: fill[index])] += length
        else:
            fill.append(length)
    return sorted(fill)


@settings(max_examples=200, deadline=None)
@given(lengths_and_capacity())
def test_every_text_is_in_one_bin_and_bins_are_as_full_as_the_textbook_s(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    bins = pack(lengths, capacity)
    assert sorted(text for texts in bins for text in texts) == list(range(len(lengths)))
    fill = [sum(lengths[text] for text in texts) for texts in bins]
    assert max(fill, default=0) <= capacity
    assert sorted(fill) == best_fit_decreasing(lengths, capacity)
    for texts in bins:
        assert [lengths[text] for text in texts] == sorted((lengths[text] for text in texts), reverse=True)
    assert pack(np.array(lengths, dtype=np.int32), capacity) == bins


def test_a_small_case_by_hand() -> None:
    # 7 | 6 | 5 5 | and 3 goes to the fullest bin that has room: 7 3; 2 to 6 2, and 2 again to 6 2 2.
    assert pack([2, 5, 7, 3, 5, 2, 6], 10) == [[2, 3], [6, 0, 5], [1, 4]]
    assert pack([], 4) == []
    assert pack([4, 4], 4) == [[0], [1]]


@pytest.mark.parametrize("lengths", [[0, 3], [3, 11], [-1]])
def test_lengths_that_fit_no_bin_are_an_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit bins of 10"):
        pack(lengths, 10)


def test_many_texts_of_many_lengths_fill_their_bins() -> None:
    lengths = np.random.default_rng(0).integers(1, 4097, 20_000)
    bins = pack(lengths, 8192)
    assert lengths.sum() / (len(bins) * 8192) > 0.999
