"""Shingles against plain Python, and signatures against the theory of MinHash."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_llm.data.cleaning.duplicates import shingles as module
from lit_llm.data.cleaning.duplicates.minhash import MinHash
from lit_llm.data.cleaning.duplicates.shingles import PIECE_CHARACTERS, batches, shingles, word_hashes

TEXTS = st.lists(st.text(st.sampled_from("aAbéÉ9 ,.\n\t世界ไท\u0301_-İ"), max_size=40), min_size=1, max_size=5)


def plain_words(text: str) -> list[str]:
    """Words as the docstring of the module says, character by character."""
    words, is_open = [], False
    for character in text:
        if unicodedata.category(character)[0] not in "LMN":
            is_open = False
        elif character in "世界ไท":
            words.append(character)
            is_open = False
        else:
            folded = character.lower()[0]
            words = [*words[:-1], words[-1] + folded] if is_open else [*words, folded]
            is_open = True
    return words


def plain_shingles(text: str, length: int) -> list[tuple[str, ...]]:
    words = plain_words(text)
    if len(words) < length:
        return [tuple(words)] if words else [("no word", text.strip())]
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(1, 5))
@example(["", "***", "***\n", "a", "a ***", "a b", "b a", "A, B!", "a b c"], 3)
def test_equal_hashes_are_equal_words_in_a_row(texts: list[str], length: int) -> None:
    hashes, starts = shingles(texts, length)
    expected = [plain_shingles(text, length) for text in texts]
    assert np.diff(starts).tolist() == [len(of_text) for of_text in expected]
    pairs = set(zip(hashes.tolist(), (shingle for of_text in expected for shingle in of_text), strict=True))
    assert len(pairs) == len({hashed for hashed, _ in pairs}) == len({shingle for _, shingle in pairs})


def test_words_are_the_same_wherever_they_stand() -> None:
    """A text longer than a piece is cut between words; in which batch a text is does not matter."""
    random = np.random.default_rng(0)
    vocabulary = [f"word{number}" for number in range(500)]
    words = [vocabulary[i] for i in random.integers(0, 500, PIECE_CHARACTERS // 3)]
    text = " ".join(words)
    assert len(text) > 2 * PIECE_CHARACTERS
    hashes, places = word_hashes(text)
    assert np.array_equal(places, np.cumsum([0, *(len(word) + 1 for word in words[:-1])]))
    of_word = dict(zip(words, hashes.tolist(), strict=True))
    assert [of_word[word] for word in words] == hashes.tolist()

    texts = [text, "one two three", " ".join(words[:1000]), "", " ".join(words[5:9])]
    assert [len(batch) for batch in batches(iter(texts))] == [1, 4]
    alone = [shingles([one], 5)[0] for one in texts]
    assert np.array_equal(shingles(texts, 5)[0], np.concatenate(alone))


def test_a_word_without_end_is_cut() -> None:
    hashes, places = word_hashes("x" * (PIECE_CHARACTERS + 10))
    assert places.tolist() == [0, PIECE_CHARACTERS] and hashes[0] != hashes[1] == word_hashes("x" * 10)[0][0]


def test_many_shingles_have_few_collisions() -> None:
    """500,000 different hashes of 32 bits have 29 collisions on average: 60 are more than 5.7 deviations away."""
    texts = [" ".join(f"{number + offset:x}" for offset in range(1000)) for number in range(0, 500_000, 1000)]
    hashes, _ = shingles(texts, 1)
    assert len(hashes) - len(np.unique(hashes)) < 60
    assert module.random_words(3, 4).tolist()[:1] != module.random_words(4, 4).tolist()[:1]


def pairs_of_sets(jaccard: float, size: int, number: int, seed: int) -> list[np.ndarray]:
    """Hashes of pairs of sets, of which each pair has `size` members altogether: twice [number, members]."""
    common = round(jaccard * size)
    assert common == pytest.approx(jaccard * size) and (size - common) % 2 == 0
    members = np.random.default_rng(seed).integers(0, 2**32, (number, size), np.uint32)
    half = common + (size - common) // 2
    return [members[:, :half], np.concatenate([members[:, :common], members[:, half:]], axis=1)]


def signatures(minhash: MinHash, sets: np.ndarray) -> np.ndarray:
    return minhash.signatures(sets.ravel(), np.arange(len(sets) + 1) * sets.shape[1])


@pytest.mark.parametrize(
    ("bands", "rows", "jaccard", "size"),
    [
        *((14, 8, jaccard, 40) for jaccard in (0.5, 0.6, 0.7, 0.8, 0.9)),
        (14, 8, 0.75, 8),
        (20, 5, 0.5, 100),
        (9, 13, 0.8, 100),
    ],
)
def test_the_s_curve_is_that_of_theory(bands: int, rows: int, jaccard: float, size: int) -> None:
    """P(s) = 1 - (1 - s^r)^b within four deviations of the binomial distribution, and so the spread of the estimates.

    Both need places that are independent: those of rensa's RMinHash find 93.7% instead of 92.4% at 0.8.
    """
    number = 10_000
    minhash = MinHash(bands, rows, seed=1)
    left, right = (signatures(minhash, sets) for sets in pairs_of_sets(jaccard, size, number, seed=bands))
    agree = (minhash.band_hashes(left) == minhash.band_hashes(right)).any(axis=1)
    expected = 1 - (1 - jaccard**rows) ** bands
    deviation = (expected * (1 - expected) / number) ** 0.5
    assert agree.mean() == pytest.approx(expected, abs=4 * deviation)

    estimates = (left == right).mean(axis=1)
    spread = (jaccard * (1 - jaccard) / (bands * rows)) ** 0.5
    assert estimates.mean() == pytest.approx(jaccard, abs=4 * spread / number**0.5)
    # The relative error of a standard deviation from n samples is 1 / sqrt(2 n), 0.7%.
    assert estimates.std() == pytest.approx(spread, rel=4 * 0.0071)


def test_signatures_do_not_depend_on_blocks_order_or_repetition() -> None:
    minhash = MinHash(3, 2, seed=5)
    random = np.random.default_rng(0)
    sets = [random.integers(0, 2**32, size, np.uint32) for size in (1, 100_000, 3, 40_000, 7)]
    starts = np.cumsum([0, *map(len, sets)])
    together = minhash.signatures(np.concatenate(sets), starts)
    assert together.shape == (5, 6) and together.dtype == np.uint32
    for row, members in zip(together, sets, strict=True):
        repeated = np.concatenate([members[::-1], members[:1]])
        assert np.array_equal(minhash.signatures(repeated, np.array([0, len(repeated)]))[0], row)


def test_no_band_is_taken_for_another() -> None:
    minhash = MinHash(4, 2, seed=1)
    hashes = minhash.band_hashes(np.full((1, 8), 7, np.uint32))
    assert len(np.unique(hashes)) == 4
    assert not np.isin(hashes, MinHash(4, 2, seed=2).band_hashes(np.full((1, 8), 7, np.uint32))).any()
