"""Quantized weights: how far they are from the full ones, what they compute, and what they are refused for."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from torch import nn

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import complete
from lit_llm.model import Decoder
from lit_llm.model.quality import quality
from lit_llm.model.quantization import KINDS, QuantizedLinear, quantization_of, quantize
from lit_llm.model.quantized_products import (
    has_exact_kernel,
    integer_product,
    tiled_integer_product,
    widened_integer_product,
)
from lit_llm.model.rounding import round_to_int8

DTYPES = [torch.float32, torch.bfloat16]


def random_linear(out_features: int, in_features: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    linear.weight.mul_(torch.logspace(-3, 2, out_features).unsqueeze(1))
    linear.weight[1] = 0
    return linear.to(dtype)


def decoder(seed: int = 0, **fields: Any) -> Decoder:
    return random_decoder(tiny_model("qwen2.5-0.5b", tie_word_embeddings=False, **fields), seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
def test_an_int8_weight_is_at_most_half_a_step_away(kind: str, dtype: torch.dtype) -> None:
    linear = random_linear(30, 50, dtype)
    layer = QuantizedLinear.of(linear, kind)
    weight = linear.weight.float()
    assert layer.weight.dtype == torch.int8
    error = (layer.dequantized() - weight).abs()
    step = weight.abs().amax(1, keepdim=True) / 127
    # the step itself is rounded to the type of the weights
    assert torch.all(error <= step * (0.5 + 127 * torch.finfo(dtype).eps / 2 + 1e-4))
    assert torch.all(error <= layer.scale.float().unsqueeze(1) * 0.5001)
    assert torch.equal(layer.dequantized()[1], torch.zeros(50))
    assert layer.weight.abs().amax(1)[2:].min() >= 126  # the whole range is used


def test_an_int4_weight_is_at_most_half_a_step_of_its_group_away() -> None:
    linear = random_linear(30, 96, torch.float32)
    linear.weight[3] = 7.0  # a group without any width
    error = (QuantizedLinear.of(linear, "int4").dequantized() - linear.weight).unflatten(1, (3, 32)).abs()
    groups = linear.weight.unflatten(1, (3, 32))
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    assert torch.all(error.amax(-1) <= 0.501 * step + 1e-6 * groups.abs().amax(-1))
    assert torch.equal(error[3], torch.zeros(3, 32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_layer_computes_with_the_weight_it_says(kind: str, dtype: torch.dtype, rows: int) -> None:
    layer = QuantizedLinear.of(random_linear(30, 64, dtype), kind)
    x = torch.randn(2, rows, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    read = x.float()
    if kind == "int8_dynamic":
        step = read.abs().amax(-1, keepdim=True) / 127
        read = (read / step).round() * step
    assert layer.bias is not None
    expected = F.linear(read, layer.dequantized(), layer.bias.float())
    out = layer(x)
    assert (out.dtype, out.shape) == (dtype, (2, rows, 30))
    # relative to each output's own scale: they range over five orders of magnitude
    size = F.linear(read.abs(), layer.dequantized().abs(), layer.bias.float().abs())
    allowed = 1e-5 if dtype == torch.float32 else 0.01
    assert float(((out.float() - expected).abs() / size).max()) < allowed


@pytest.mark.parametrize("width", [50, 64])
def test_memory_that_is_not_in_line_does_no_harm(width: int) -> None:
    """torch's int8 kernel ends the process on rows, or on a weight, that begin between its vectors."""
    layer = QuantizedLinear.of(random_linear(30, width, torch.bfloat16), "int8")
    x = torch.randn(8 * width + 1, generator=torch.Generator().manual_seed(1)).bfloat16()[1:].view(8, width)
    whole = layer.weight.flatten()
    other = QuantizedLinear(width, 30, "int8", bias=True)
    moved = torch.cat([whole[:2], whole])[2:].view_as(layer.weight)
    other.load_state_dict({**layer.state_dict(), "weight": moved}, assign=True)
    for y in (layer(x), other(x), other(x.clone())):
        assert torch.allclose(y.float(), layer(x.clone()).float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shape", [(1, 50, 30), (5, 64, 24), (33, 40, 31), (3, 3000, 9)])
@pytest.mark.parametrize("largest", [False, True])
def test_products_of_integers_are_exact(shape: tuple[int, int, int], largest: bool) -> None:
    """Also of the largest ones, of which two do not fit into the 16 bits that older processors add them in."""
    m, k, n = shape
    a, b = (torch.randint(-127, 128, (rows, k)).to(torch.int8) for rows in (m, n))
    if largest:
        a, b = (127 * numbers.sign() for numbers in (a, b))
        a[0], b[:2] = 127, torch.tensor([[127], [-127]])
    expected = (a.long() @ b.long().t()).int()
    for product in (integer_product, widened_integer_product):
        assert torch.equal(product(a, b), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(product(a, b), expected)
    if has_exact_kernel():  # the same kernel as on a GPU, which has no such limit
        assert torch.equal(tiled_integer_product(a, b), expected)


def test_each_token_has_a_scale_of_its_own() -> None:
    numbers, scale = round_to_int8(torch.tensor([[0.0, 0.0], [1.0, -127.0], [1e-6, 0.6e-6]]))
    assert numbers.tolist() == [[0, 0], [1, -127], [127, 76]]
    assert scale.tolist() == pytest.approx([1.0, 1.0, 1e-6 / 127])


def test_int4_weights_are_packed_and_unpacked() -> None:
    layer = QuantizedLinear.of(random_linear(30, 64, torch.float32), "int4")
    state = layer.state_dict()
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()} == {
        "weight": ((32, 32), torch.uint8),
        "scale": ((2, 32, 2), torch.float32),
        "bias": ((30,), torch.float32),
    }
    # the documented form, by hand: low half first, 8 is the middle
    numbers = torch.stack([state["weight"] & 15, state["weight"] >> 4], dim=-1).flatten(1).float()
    scale, middle = (part.t().repeat_interleave(32, dim=1) for part in state["scale"].unbind(-1))
    assert torch.allclose(((numbers - 8) * scale + middle)[:30], layer.dequantized(), rtol=1e-6, atol=0)
    assert numbers.min() == 0
    assert numbers.max() == 15
    other = QuantizedLinear(64, 30, "int4", bias=True)
    other.load_state_dict(state)
    assert torch.equal(other.weight, layer.weight)
    x = torch.randn(3, 64)
    assert torch.equal(other(x), layer(x))


# nats per token and share of likeliest tokens, on a random model whose predictions are sharp
LIMITS = {"int8": (1e-3, 0.95), "int8_dynamic": (2e-3, 0.93), "int4": (0.1, 0.55)}


@pytest.mark.parametrize("kind", KINDS)
def test_quality_of_a_model(kind: str) -> None:
    full = decoder()
    quantized = quantize(decoder(), kind)
    assert quantization_of(quantized) == kind
    assert quantization_of(full) is None
    windows = list(random_tokens(full.config, 8, 32))
    found = quality(full, quantized, windows)
    kl, agreement = LIMITS[kind]
    assert 0 < found.kl < kl
    assert agreement <= found.agreement <= 1
    assert found.tokens == 8 * 32
    assert "KL" in str(found)


def test_quality_is_what_its_formulas_say() -> None:
    one, other = decoder(), decoder(seed=3)
    texts = [random_tokens(one.config, 9), random_tokens(one.config, 20, seed=2)]
    kl = loss = other_loss = 0.0
    same = 0
    with torch.no_grad():
        for text in texts:
            p, q = (F.log_softmax(model(text[None])[0].double(), -1) for model in (one, other))
            kl += F.kl_div(q, p, reduction="sum", log_target=True).item()
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            loss += F.nll_loss(p[:-1], text[1:], reduction="sum").item()
            other_loss += F.nll_loss(q[:-1], text[1:], reduction="sum").item()
    found = quality(one, other, texts)
    assert found.kl == pytest.approx(kl / 29, rel=1e-5)
    assert found.agreement == same / 29
    assert found.perplexity == pytest.approx(math.exp(loss / 27), rel=1e-5)
    assert found.quantized_perplexity == pytest.approx(math.exp(other_loss / 27), rel=1e-5)
    assert quality(one, one, texts).kl == 0
    assert quality(one, one, texts).agreement == 1
    single = quality(one, other, [texts[0][:1]])
    assert math.isnan(single.perplexity)
    assert "perplexity" not in str(single)
    with pytest.raises(UserError, match="no text to measure"):
        quality(one, other, [])


def stored_bytes(model: Decoder) -> int:
    return sum(
        tensor.nbytes
        for module in model.modules()
        if isinstance(module, QuantizedLinear | nn.Linear)
        for tensor in (*module.parameters(), *module.buffers())
    )


@pytest.mark.parametrize(("kind", "dtype", "factor"), [
    ("int8", torch.float32, 4 / (1 + 4 / 64)),
    ("int8_dynamic", torch.bfloat16, 2 / (1 + 2 / 64)),
    ("int4", torch.float32, 4 / (0.5 + 2 * 4 / 32)),
    ("int4", torch.bfloat16, 2 / (0.5 + 2 * 2 / 32)),
])  # fmt: skip
def test_weights_take_less_memory(kind: str, dtype: torch.dtype, factor: float) -> None:
    """Bytes of a weight before, over its own and its share of the scale after."""
    model = random_decoder(
        tiny_model(hidden_size=64, intermediate_size=64, tie_word_embeddings=False, vocab_size=400)
    ).to(dtype)
    before = stored_bytes(model)
    assert before / stored_bytes(quantize(model, kind)) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_only_projections_and_an_untied_head_change(tied: bool) -> None:
    full = random_decoder(tiny_model("modern-1m", tie_word_embeddings=tied))
    model = quantize(random_decoder(full.config), "int8")
    changed = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    names = [f"attention.{letter}_proj" for letter in "qkvo"] + ["feedforward.up_proj", "feedforward.down_proj"]
    expected = {f"blocks.{layer}.{name}" for layer in range(2) for name in names}
    assert changed == expected | (set() if tied else {"head"})
    assert (model.head.weight is model.embedding.weight) == tied
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, full.get_parameter(name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_head_is_rounded_apart_from_the_embedding(kind: str) -> None:
    full = random_decoder(tiny_model("llama-10m", tie_word_embeddings=True))
    model = quantize(random_decoder(full.config), kind, tied_head=True)
    assert isinstance(model.head, QuantizedLinear)
    assert torch.equal(model.embedding.weight, full.embedding.weight)
    difference = (model.head.dequantized() - full.embedding.weight).abs().max()
    assert 0 < difference < (0.01 if kind != "int4" else 0.1) * full.embedding.weight.abs().max()
    kl, agreement = LIMITS[kind]
    found = quality(full, model, list(random_tokens(full.config, 8, 32)))
    assert found.kl < 2 * kl and found.agreement > agreement - 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_writes_with_a_cache(kind: str) -> None:
    model = quantize(decoder(), kind)
    text = random_tokens(model.config, 12).tolist()
    written = complete(model, [text], SamplingConfig(max_new_tokens=6, temperature=0.0))[0].ids
    for token in written:
        with torch.no_grad():
            assert int(model(torch.tensor([text]))[0, -1].argmax()) == token
        text.append(token)


def test_what_is_refused_leaves_the_model_as_it_was() -> None:
    model = decoder(intermediate_size=72)
    with pytest.raises(UserError, match=r"int4 rounds groups of 32 weights, .* the 72 inputs of down_proj; use int8"):
        quantize(model, "int4")
    with pytest.raises(UserError, match=r"quantize is 'int3'; it must be one of int8, int8_dynamic, int4"):
        quantize(model, "int3")
    assert quantization_of(model) is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match=r"float16 cannot be quantized; load it with dtype float32 or bfloat16"):
        quantize(decoder().half(), "int8")
    quantize(model, "int8")
    with pytest.raises(UserError, match=r"quantized already \(int8\)"):
        quantize(model, "int8_dynamic")


def test_a_quantized_model_is_not_trained() -> None:
    model = quantize(decoder().train(), "int8")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="a quantized model cannot be trained"):
        model.train()
    assert not model(random_tokens(model.config, 1, 4)).requires_grad


OLDER_PROCESSOR = """
import torch
from lit_llm.model.quantized_products import integer_product

compiled = torch.compile(integer_product, fullgraph=True)
a, b = (torch.randint(-127, 128, (rows, 96), dtype=torch.int8) for rows in (9, 20))
a[0], b[0] = 127, 127
for product in (compiled, integer_product):
    assert torch.equal(product(a, b), a.int() @ b.int().t())
"""


@pytest.mark.slow
def test_products_of_integers_are_exact_on_an_older_processor() -> None:
    """Compiled first, so that the compiler is what asks whether the kernel is exact."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", OLDER_PROCESSOR], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
