"""Invariant 5: reading a text piece by piece through the cache gives the logits of reading it at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import alone, largest_difference, random_decoder, random_tokens
from torch import Tensor

from lit_llm.config import ModelConfig, UserError
from lit_llm.model import Decoder, KVCache

# float32 sums in another order, in two layers: some 40 units in the last place of logits up to 10
TOLERANCE = 4e-5
LENGTH = 24
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "multi-head": ("llama-10m", {}),
    "grouped-query": ("llama-10m", {"num_key_value_heads": 2}),
    "multi-query": ("llama-10m", {"num_key_value_heads": 1}),
    "windowed": ("mistral-7b", {"num_key_value_heads": 2, "sliding_window": 5}),
    "softcapped": ("llama-10m", {"num_key_value_heads": 2, "attention_softcap": 2.0, "logits_softcap": 5.0}),
    "softcapped-windowed": ("llama-10m", {"attention_softcap": 2.0, "sliding_window": 5}),
    "qk-norm": ("qwen3-0.6b", {"num_key_value_heads": 2, "head_dim": 12}),
    "yarn": (
        "llama-10m",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}},
    ),
    "learned-positions": ("gpt2", {}),
    "no-positions": ("llama-10m", {"position": "none"}),
    "olmo2": ("olmo2-1b", {}),
    "gemma2": ("gemma2-2b", {"num_key_value_heads": 2, "sliding_window": 5}),
    "gemma3": (
        "gemma3-1b",
        {"num_key_value_heads": 1, "sliding_window": 5, "full_attention_every": 2, "query_pre_attention_scalar": 12},
    ),
    "modern": ("modern-1m", {}),
    "transformer-2017": ("transformer-2017", {}),
}
# sizes of the pieces that a text is read in
PIECES = {
    "token by token": [1] * LENGTH,
    "at once": [LENGTH],
    "odd pieces": [5, 1, 7, 3, 1, 1, 6],
    "prompt and tokens": [17, *[1] * 7],
}


@pytest.fixture(params=ARCHITECTURES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    name, fields = ARCHITECTURES[request.param]
    return tiny_model(name, **fields)


@torch.no_grad()
def read(model: Decoder, tokens: Tensor, pieces: list[int], **options: Any) -> Tensor:
    """Logits of tokens [b, t] read in pieces through a cache."""
    cache = KVCache(model.config, len(tokens), sum(pieces), **options)
    logits = torch.cat([model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)], dim=1)
    assert cache.lengths == [sum(pieces)] * len(tokens)
    return logits


@torch.no_grad()
def read_ragged(model: Decoder, cache: KVCache, rows: range, texts: list[Tensor], padding: int = 0) -> list[Tensor]:
    """Logits of each of several texts read at once after what their rows hold, padded on the right."""
    counts = [len(text) for text in texts]
    tokens = torch.full((len(texts), max(counts)), padding)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    logits = model(tokens, cache=cache.step(max(counts), rows, counts))
    return [row[:count] for row, count in zip(logits, counts, strict=True)]


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
def test_cached_logits_are_those_without_a_cache(config: ModelConfig, pieces: list[int]) -> None:
    model = random_decoder(config)
    tokens = random_tokens(config, 3, LENGTH)
    with torch.no_grad():
        expected = model(tokens)
    assert largest_difference(read(model, tokens, pieces), expected) < TOLERANCE
    assert largest_difference(read(model, tokens, pieces, spare=2), expected) < TOLERANCE


# how many tokens each of three rows reads in each pass: all the ways that rows can differ, a full ring among them
RAGGED = [[3, 11, 1], [1, 1, 1], [7, 2, 9], [1, 1, 1], [1, 1, 1], [9, 5, 4], [1, 1, 1]]


@pytest.mark.parametrize("spare", [0, 3])
def test_rows_of_different_lengths_are_each_text_alone(config: ModelConfig, spare: int) -> None:
    model = random_decoder(config)
    texts = [random_tokens(config, sum(counts), seed=row) for row, counts in enumerate(zip(*RAGGED, strict=True))]
    expected = alone(model, texts)
    cache = KVCache(config, 5, 32, spare=spare)
    for counts in RAGGED:
        starts = cache.lengths[1:4]
        pieces = [text[a : a + count] for text, a, count in zip(texts, starts, counts, strict=True)]
        for row, logits in enumerate(read_ragged(model, cache, range(1, 4), pieces, padding=7)):
            assert largest_difference(logits, expected[row][starts[row] : starts[row] + counts[row]]) < TOLERANCE
    assert cache.lengths == [0, *map(len, texts), 0]


def test_what_the_padding_holds_does_not_matter(config: ModelConfig) -> None:
    model = random_decoder(config)
    texts = [random_tokens(config, 4), random_tokens(config, 13, seed=2)]

    def read_with(padding: int) -> Tensor:
        cache = KVCache(config, 2, 32)
        read_ragged(model, cache, range(2), texts, padding)
        return torch.stack([row[0] for row in read_ragged(model, cache, range(2), [texts[1][:1]] * 2)])

    assert torch.equal(read_with(0), read_with(99))


def test_a_row_that_another_text_has_left_starts_anew(config: ModelConfig) -> None:
    model = random_decoder(config)
    text = random_tokens(config, 9, seed=5)
    cache = KVCache(config, 2, 32)
    read_ragged(model, cache, range(2), [random_tokens(config, 20), random_tokens(config, 3)])
    cache.truncate(0, 0)
    read_ragged(model, cache, range(2), [text[:2], text[:1]])
    logits = read_ragged(model, cache, range(2), [text[2:], text[:1]])[0]
    assert largest_difference(logits, alone(model, [text])[0][2:]) < TOLERANCE


def test_rows_can_be_copied_moved_and_gone_on_from(config: ModelConfig) -> None:
    model = random_decoder(config)
    texts = [random_tokens(config, 10), random_tokens(config, 6, seed=2)]
    more = random_tokens(config, 8, seed=3)
    cache = KVCache(config, 4, 32)
    read_ragged(model, cache, range(2), texts)
    assert cache.holds_prefix(0, 10) and cache.holds_prefix(0, 9) and not cache.holds_prefix(0, 11)
    cache.copy_row(0, 2, 9, last_token=int(texts[0][8]))  # nine of its ten tokens
    cache.move_row(1, 3)
    longer = [torch.cat([texts[0][:9], more]), torch.cat([texts[1], more])]
    expected = alone(model, longer)
    logits = read_ragged(model, cache, range(2, 4), [more, more])
    assert largest_difference(logits[0], expected[0][9:]) < TOLERANCE
    assert largest_difference(logits[1], expected[1][6:]) < TOLERANCE
    cache.select([3, 0, 3, 2])
    assert cache.lengths == [14, 10, 14, 17]
    logits = read_ragged(model, cache, range(4), [more[:3]] * 4)
    longer = [torch.cat([text, more[:3]]) for text in (longer[1], texts[0], longer[1], longer[0])]
    for row, (text, whole) in enumerate(zip(longer, alone(model, longer), strict=True)):
        assert largest_difference(logits[row], whole[len(text) - 3 :]) < TOLERANCE


def test_tokens_can_be_taken_back(config: ModelConfig) -> None:
    model = random_decoder(config)
    text = random_tokens(config, 20)
    cache = KVCache(config, 1, 32, spare=4)
    read_ragged(model, cache, range(1), [text[:10]])
    read_ragged(model, cache, range(1), [random_tokens(config, 4, seed=9)])
    cache.truncate(0, 10, int(text[9]))
    logits = torch.cat([read_ragged(model, cache, range(1), [piece])[0] for piece in text[10:].split([1, 5, 4])])
    assert largest_difference(logits, alone(model, [text])[0][10:]) < TOLERANCE


def test_a_ring_says_what_it_has_forgotten() -> None:
    config = tiny_model("mistral-7b", num_key_value_heads=2, sliding_window=5)
    cache = KVCache(config, 1, 32)
    read_ragged(random_decoder(config), cache, range(1), [random_tokens(config, 10)])
    assert [length for length in range(12) if cache.holds_prefix(0, length)] == [9, 10]
    with pytest.raises(ValueError, match="row 0 of 10 tokens cannot go back to 8"):
        cache.truncate(0, 8)
    assert cache.first_held(0) == 5
    roomy = KVCache(config, 2, 32, spare=3)
    read_ragged(random_decoder(config), roomy, range(1), [random_tokens(config, 12)])
    roomy.copy_row(0, 1, 9)
    assert (roomy.first_held(0), roomy.first_held(1)) == (4, 4)  # a copy of fewer tokens has no older ones
    roomy.lose(1, 4)
    assert [length for length in range(12) if roomy.holds_prefix(1, length)] == [9]
    roomy.truncate(1, 0)
    assert roomy.first_held(1) == 0


def test_a_forgotten_length_is_noticed() -> None:
    """The comparisons above can fail: padding that is taken for text changes what follows."""
    model = random_decoder(tiny_model("llama-10m"))
    text = random_tokens(model.config, 12)
    cache = KVCache(model.config, 1, 32)
    read_ragged(model, cache, range(1), [torch.cat([text[:6], torch.zeros(3, dtype=torch.long)])])
    logits = read_ragged(model, cache, range(1), [text[6:]])[0]
    assert largest_difference(logits, alone(model, [text])[0][6:]) > 1000 * TOLERANCE


def test_the_cache_keeps_the_key_and_value_heads_alone() -> None:
    config = tiny_model("llama-10m", num_key_value_heads=2)
    cache = KVCache(config, 3, 20, dtype=torch.bfloat16)
    assert len(cache.keys) == len(cache.values) == 2
    for memory in (*cache.keys, *cache.values):
        assert memory.shape == (3, 2, 20, 8)  # rows, heads, tokens, width
        assert memory.dtype == torch.bfloat16
    assert KVCache(config, 3, 20, tensor_parallel_size=2).keys[0].shape == (3, 1, 20, 8)


def test_a_windowed_cache_is_bounded_by_the_window() -> None:
    config = tiny_model("mistral-7b", num_key_value_heads=2, sliding_window=5)
    assert KVCache(config, 1, 32).keys[0].shape == (1, 2, 5, 8)
    assert KVCache(config, 1, 32, spare=2).keys[0].shape == (1, 2, 7, 8)
    assert KVCache(config, 1, 3).keys[0].shape == (1, 2, 3, 8)
    mixed = tiny_model("mistral-7b", sliding_window=5, full_attention_every=2, num_layers=4)
    assert [memory.size(2) for memory in KVCache(mixed, 1, 32).values] == [5, 32, 5, 32]


def test_no_slot_is_written_twice_in_one_pass() -> None:
    """Which of two writes to one place lasts is undefined."""
    config = tiny_model("mistral-7b", num_key_value_heads=2, sliding_window=5)
    cache = KVCache(config, 2, 32)
    step = cache.step(13, counts=[13, 8])
    step.update(0, *torch.zeros(2, 2, 2, 13, 8))
    rows, slots = step._slots[5]._write_at
    written = list(zip(rows.tolist(), slots.tolist(), strict=True))
    assert sorted(written) == [(row, slot) for row in range(2) for slot in range(5)]


def test_no_mask_is_built_where_the_kernel_needs_none() -> None:
    full, ring = tiny_model("llama-10m"), tiny_model("mistral-7b", num_key_value_heads=2, sliding_window=5)
    for config in (full, ring):
        assert KVCache(config, 2, 32).step(5).mask(config.sliding_window) == (None, True)
    cases = [(full, [9, 9], 1, True), (full, [9, 8], 1, False), (full, [9, 9], 2, False)]
    # a full ring of the window's size holds nothing but the window, whatever the rows' lengths
    cases += [(ring, [3, 3], 1, True), (ring, [9, 7], 1, True), (ring, [9, 3], 1, False), (ring, [9, 9], 2, False)]
    for config, lengths, width, unmasked in cases:
        cache = KVCache(config, 2, 32)
        cache.lengths = list(lengths)
        mask, is_causal = cache.step(width).mask(config.sliding_window)
        assert (mask is None) == unmasked and not is_causal


def test_more_than_the_cache_or_the_context_holds_is_an_error_with_both_numbers() -> None:
    model = random_decoder(tiny_model("llama-10m"))
    cache = KVCache(model.config, 1, 10)
    model(random_tokens(model.config, 1, 8), cache=cache)
    with pytest.raises(UserError, match=r"text of 11 tokens is longer than the cache of 10"):
        model(random_tokens(model.config, 1, 3), cache=cache)
    roomy = KVCache(model.config, 1, 100)
    model(random_tokens(model.config, 1, 30), cache=roomy)
    with pytest.raises(UserError, match=r"text of 33 tokens is longer than the model's context of 32"):
        model(random_tokens(model.config, 1, 3), cache=roomy)
    with pytest.raises(UserError, match=r"text of 33 tokens is longer than the model's context of 32"):
        model(random_tokens(model.config, 1, 33))


def test_document_ids_are_refused_together_with_a_cache() -> None:
    model = random_decoder(tiny_model("llama-10m"))
    tokens = random_tokens(model.config, 1, 4)
    with pytest.raises(ValueError, match="document_ids and a cache"):
        model(tokens, document_ids=torch.zeros_like(tokens), cache=KVCache(model.config, 1, 4))
