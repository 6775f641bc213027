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

# float32 sums in another order; logits are of the order of 1 to 10
TOLERANCE = 2e-5
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
def read(model: Decoder, tokens: Tensor, pieces: list[int], starts: Tensor | None = None) -> Tensor:
    """Logits of tokens [b, t] read in pieces through a cache."""
    cache = KVCache(model.config, len(tokens), sum(pieces), starts=starts)
    logits = torch.cat([model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)], dim=1)
    assert cache.length == sum(pieces)
    return logits


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
def test_cached_logits_are_those_without_a_cache(config: ModelConfig, pieces: list[int]) -> None:
    model = random_decoder(config)
    tokens = random_tokens(config, 3, LENGTH)
    with torch.no_grad():
        expected = model(tokens)
    assert largest_difference(read(model, tokens, pieces), expected) < TOLERANCE


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
def test_left_padded_rows_are_those_of_each_text_alone(config: ModelConfig, pieces: list[int]) -> None:
    """One row is padded beyond the first piece, one beyond the window, one not at all."""
    model = random_decoder(config)
    starts = torch.tensor([0, 3, 8, 19])
    texts = [random_tokens(config, LENGTH - start, seed=start) for start in starts.tolist()]
    rows = torch.stack([torch.cat([torch.zeros(LENGTH - len(text), dtype=torch.long), text]) for text in texts])
    logits = read(model, rows, pieces, starts)
    assert torch.isfinite(logits).all()
    for row, (start, expected) in enumerate(zip(starts.tolist(), alone(model, texts), strict=True)):
        assert largest_difference(logits[row, start:], expected) < TOLERANCE


def test_what_the_padding_holds_does_not_matter(config: ModelConfig) -> None:
    model = random_decoder(config)
    rows = random_tokens(config, 2, LENGTH)
    starts = torch.tensor([6, 0])
    other = rows.clone()
    other[0, :6] = (rows[0, :6] + 1) % 400
    pieces = PIECES["odd pieces"]
    one, two = read(model, rows, pieces, starts), read(model, other, pieces, starts)
    assert torch.equal(one[0, 6:], two[0, 6:])
    assert torch.equal(one[1], two[1])


def test_a_forgotten_start_is_noticed() -> None:
    """The comparisons above can fail."""
    model = random_decoder(tiny_model("llama-10m"))
    text = random_tokens(model.config, LENGTH - 6)
    row = torch.cat([torch.zeros(6, dtype=torch.long), text]).unsqueeze(0)
    unpadded = read(model, row, [LENGTH])
    assert largest_difference(unpadded[0, 6:], alone(model, [text])[0]) > 1000 * TOLERANCE


def test_the_cache_keeps_the_key_and_value_heads_alone() -> None:
    config = tiny_model("llama-10m", num_key_value_heads=2)
    cache = KVCache(config, 3, 20, dtype=torch.bfloat16)
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 20, 8)  # layers, rows, heads, tokens, width
    assert cache.keys.dtype == torch.bfloat16


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


def test_document_ids_are_refused_together_with_a_cache() -> None:
    model = random_decoder(tiny_model("llama-10m"))
    tokens = random_tokens(model.config, 1, 4)
    with pytest.raises(ValueError, match="document_ids and a cache"):
        model(tokens, document_ids=torch.zeros_like(tokens), cache=KVCache(model.config, 1, 4))
