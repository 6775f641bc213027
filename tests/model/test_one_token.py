"""One-token passes in the form for the compiler are those of the decoder itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder, random_tokens

from lit_llm.config import ModelConfig
from lit_llm.model import Decoder, KVCache
from lit_llm.model.attention import AttentionContext, fused_attention
from lit_llm.model.few_rows import FewRowsInt8Linear, FewRowsLinear, with_few_rows_linears
from lit_llm.model.one_token import OneTokenStep, one_query_attention
from lit_llm.model.quantization import quantize

TOLERANCE = 2e-5
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped-query": ("llama-10m", {"num_key_value_heads": 2}),
    "windowed": ("mistral-7b", {"num_key_value_heads": 2, "sliding_window": 5}),
    "mixed-windows": ("mistral-7b", {"num_key_value_heads": 1, "sliding_window": 5, "full_attention_every": 2}),
    "gpt2": ("gpt2", {}),
    "qwen2": ("qwen2.5-0.5b", {}),
    "gemma2": ("gemma2-2b", {"num_key_value_heads": 2, "sliding_window": 5}),
    "gemma3": (
        "gemma3-1b",
        {"num_key_value_heads": 1, "sliding_window": 5, "full_attention_every": 2, "query_pre_attention_scalar": 12},
    ),
    "modern": ("modern-1m", {}),
    "transformer-2017": ("transformer-2017", {}),
}


@pytest.fixture(params=ARCHITECTURES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    name, fields = ARCHITECTURES[request.param]
    return tiny_model(name, **fields)


@torch.no_grad()
def one_token_logits(model: Decoder, cache: KVCache, tokens: torch.Tensor, slots: int) -> torch.Tensor:
    step = OneTokenStep(
        cache.windows, cache.keys, cache.values, torch.tensor(cache.lengths), torch.arange(slots), cache.last_tokens
    )
    logits = with_few_rows_linears(model)(tokens, cache=step)[:, -1]
    cache.lengths = [length + 1 for length in cache.lengths]
    if cache.last_tokens is not None:
        cache.last_tokens.copy_(tokens)
    return logits


@torch.no_grad()
@pytest.mark.parametrize("quantized", [None, "int8", "int8_dynamic", "int4"])
def test_rows_of_different_lengths_go_on_as_in_the_decoder(config: ModelConfig, quantized: str | None) -> None:
    model = random_decoder(config).eval()
    if quantized:
        quantize(model, quantized, tied_head=True)
    ours, theirs = KVCache(config, 3, 32), KVCache(config, 3, 32)
    for cache in (ours, theirs):
        model(random_tokens(config, 3, 9), cache=cache.step(9, counts=[9, 1, 4]))
    for number in range(8):  # past the end of the window
        tokens = random_tokens(config, 3, 1, seed=number)
        expected = model(tokens, cache=theirs)[:, -1]
        found = one_token_logits(model, ours, tokens, slots=24)
        # a number that is rounded the other way moves the logits by more than float32 does
        allowed = TOLERANCE if quantized != "int8_dynamic" else 0.02 * float(expected.abs().max())
        assert largest_difference(found, expected) < allowed


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_words_of_four_numbers_are_the_numbers(rows: int) -> None:
    """Which of both forms a machine takes depends on its processor."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (6, 24), generator=generator).to(torch.int8)
    scale, bias, x = torch.rand(6, generator=generator), torch.ones(6), torch.randn(rows, 1, 24, generator=generator)
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 0.5)):  # of sums of some hundreds
        inputs = x.to(dtype)
        found = FewRowsInt8Linear(weight, scale, bias)(inputs)
        assert found.dtype == dtype
        assert largest_difference(found, inputs.float() @ (weight * scale.unsqueeze(1)).T + 1) < allowed
        assert largest_difference(found, FewRowsLinear(weight, scale, bias)(inputs)) < allowed


def test_the_copy_shares_its_tensors_and_leaves_the_model_as_it_was() -> None:
    model = random_decoder(tiny_model())
    names, modules = list(model.state_dict()), list(model.modules())
    copy = with_few_rows_linears(model)
    assert copy.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    assert copy.blocks[0].attention_norm.weight is model.blocks[0].attention_norm.weight
    assert list(model.state_dict()) == names
    assert list(model.modules()) == modules


@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_one_query_is_torchs(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 1, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 7, 8, generator=generator).unbind()
    mask = (torch.arange(7) < torch.tensor([[3], [7]])).view(2, 1, 1, 7) if masked else None
    context = AttentionContext(torch.zeros(2, 1), mask, False, None, None)
    for scale in (None, 0.3):
        expected = fused_attention(q, k, v, context, 0.0, scale)
        assert largest_difference(one_query_attention(q, k, v, mask, scale), expected) < 1e-6
    assert one_query_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, None).dtype == torch.bfloat16
