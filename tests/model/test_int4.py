"""Weights in 4 bits: the same numbers by the CPU's kernel and by the formula for every device, and in moves between."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from torch import Tensor, nn

from lit_llm.model import Decoder
from lit_llm.model import quantized_products as products
from lit_llm.model.quantization import KINDS, QuantizedLinear, quantize
from lit_llm.model.rounding import join_halves, round_to_int4, split_halves

BY_KERNEL, BY_FORMULA = torch.bfloat16, torch.float32


def random_layer(out_features: int, in_features: int, dtype: torch.dtype, bias: bool = True) -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear.of(nn.Linear(in_features, out_features, bias=bias).to(dtype), "int4")


def inputs(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


def relative_error(layer: QuantizedLinear, x: Tensor, out: Tensor) -> float:
    """Largest difference from the product with `dequantized()`, over the size of what is summed."""
    bias = torch.zeros(()) if layer.bias is None else layer.bias.float()
    weight = layer.dequantized()
    expected = x.float() @ weight.t() + bias
    return float(((out.float() - expected).abs() / (x.float().abs() @ weight.abs().t() + bias.abs())).max())


@pytest.mark.parametrize("rows", [1, 8, 9, 100])
@pytest.mark.parametrize("shape", [(30, 64), (96, 32), (50, 352)])
def test_the_formula_computes_with_the_weight_it_says(
    shape: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_layer(*shape, BY_FORMULA)
    x = inputs(rows, shape[1])
    whole = layer(x)
    assert relative_error(layer, x, whole) < 1e-6
    # in several blocks, of which the last is smaller
    monkeypatch.setattr(products, "_BLOCK", 13 * shape[1])
    in_blocks = layer(x)
    assert relative_error(layer, x, in_blocks) < 1e-6
    assert in_blocks.shape == (rows, shape[0])


@pytest.mark.parametrize("rows", [1, 9])
def test_both_ways_compute_the_same(rows: int) -> None:
    layer = random_layer(30, 96, BY_KERNEL)
    assert layer.is_packed
    x = inputs(rows, 96).bfloat16()
    stored = layer.state_dict()["weight"]
    by_formula = products.int4_product(x.float(), stored, layer.scale.float())[:, :30]
    by_kernel = products.int4_kernel_product(x, layer.weight, layer.scale)[:, :30]
    assert layer.bias is not None
    assert relative_error(layer, x, by_formula + layer.bias.float()) < 1e-6
    assert relative_error(layer, x, by_kernel.float() + layer.bias.float()) < 0.01


@pytest.mark.parametrize("dtype", [BY_KERNEL, BY_FORMULA])
def test_both_ways_are_one_graph(dtype: torch.dtype) -> None:
    """What the engine compiles for many rows; the backend without a C++ compiler."""
    layer = random_layer(30, 64, dtype)
    x = inputs(9, 64).to(dtype)
    try:
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("shape", [(16, 32), (64, 32), (80, 96), (112, 64), (144, 32)])
def test_the_order_of_the_kernel_is_undone(shape: tuple[int, int]) -> None:
    stored = join_halves(torch.randint(16, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8))
    packed = products.to_kernel_order(stored)
    assert packed.shape == stored.shape
    assert torch.equal(products.from_kernel_order(packed), stored)


@pytest.mark.parametrize("dtype", [BY_KERNEL, BY_FORMULA])
def test_the_weight_is_the_rounded_one_and_saved_so(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=False).to(dtype)
    numbers, scale = round_to_int4(linear.weight.detach())
    layer = QuantizedLinear.of(linear, "int4")
    state = layer.state_dict()
    assert torch.equal(split_halves(state["weight"]), numbers)
    assert torch.equal(state["scale"], scale)
    assert torch.equal(layer.weight, state["weight"]) == (not layer.is_packed)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("own", [BY_KERNEL, BY_FORMULA])
@pytest.mark.parametrize("loaded", [BY_KERNEL, BY_FORMULA])
def test_what_one_way_saves_the_other_loads(loaded: torch.dtype, own: torch.dtype, assign: bool) -> None:
    # steps that both types have
    source = random_layer(30, 64, BY_KERNEL, bias=False).to(loaded)
    other = random_layer(30, 64, own, bias=False)
    for _ in range(2):  # a second time over itself
        other.load_state_dict(source.state_dict(), assign=assign)
        assert other.scale.dtype == (loaded if assign else own)
        assert other.is_packed == (other.scale.dtype == BY_KERNEL)
        assert torch.equal(other.dequantized(), source.dequantized())
        x = inputs(3, 64).to(other.scale.dtype)
        assert relative_error(other, x, other(x)) < (0.01 if other.is_packed else 1e-6)


def test_loading_the_scale_alone_keeps_the_numbers() -> None:
    layer = random_layer(30, 64, BY_KERNEL, bias=False)
    numbers = layer.state_dict()["weight"]
    layer.load_state_dict({"scale": layer.scale.float()}, strict=False, assign=True)
    assert not layer.is_packed
    assert torch.equal(layer.weight, numbers)


def test_a_layer_on_the_meta_device_takes_either() -> None:
    for dtype in (BY_KERNEL, BY_FORMULA):
        source = random_layer(30, 64, dtype)
        layer = QuantizedLinear.of(nn.Linear(64, 30, device="meta"), "int4")
        assert layer.weight.is_meta and layer.state_dict()["weight"].is_meta
        assert {name: tensor.shape for name, tensor in layer.state_dict().items()} == {
            name: tensor.shape for name, tensor in source.state_dict().items()
        }
        layer.load_state_dict(source.state_dict(), assign=True)
        x = inputs(2, 64).to(dtype)
        assert torch.equal(layer(x), source(x))


def test_a_change_of_type_keeps_the_numbers() -> None:
    layer = random_layer(30, 64, BY_KERNEL)
    before = layer.dequantized()
    x = inputs(3, 64)
    at_first = layer(x.bfloat16())
    for dtype, allowed in ((torch.float32, 1e-6), (torch.bfloat16, 0.01), (torch.float64, 1e-6), (torch.float16, 0.01)):
        layer.to(dtype)
        assert layer.is_packed == (dtype == torch.bfloat16)
        # steps of bfloat16 are to be had in the others, but for the smallest in float16
        assert torch.allclose(layer.dequantized(), before, rtol=1e-3, atol=1e-4)
        out = layer(x.to(dtype))
        assert out.dtype == dtype
        assert relative_error(layer, x.to(dtype), out) < allowed
    layer.to(torch.bfloat16)
    assert torch.allclose(layer(x.bfloat16()), at_first, rtol=0.02, atol=0.02)


def test_a_copy_and_a_move_to_where_it_is_change_nothing() -> None:
    for dtype in (BY_KERNEL, BY_FORMULA):
        layer = random_layer(30, 64, dtype)
        x = inputs(3, 64).to(dtype)
        expected, weight = layer(x), layer.weight
        assert torch.equal(copy.deepcopy(layer)(x), expected)
        assert layer.to("cpu").to(dtype).weight is weight
        assert torch.equal(layer(x), expected)
        assert layer.to("meta").weight.is_meta


def test_a_model_changes_its_type_with_its_layers() -> None:
    config = tiny_model("qwen2.5-0.5b", tie_word_embeddings=False)
    model = quantize(random_decoder(config).bfloat16(), "int4")
    tokens = random_tokens(config, 2, 16)
    with torch.no_grad():
        before = model(tokens).float()
        after = model.float()(tokens)
    assert after.dtype == torch.float32
    assert float((after - before).abs().max()) < 0.05 * float(after.abs().max())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_cuda_is_that_on_the_cpu(kind: str, dtype: torch.dtype) -> None:
    config = tiny_model("qwen2.5-0.5b", tie_word_embeddings=False)
    full = random_decoder(config).to(dtype)
    tokens = random_tokens(config, 2, 16)

    def log_probs(model: Decoder) -> Tensor:
        with torch.no_grad():
            logits = model(tokens.to(model.embedding.weight.device))
        return F.log_softmax(logits.float().cpu(), -1)

    on_cpu = quantize(copy.deepcopy(full), kind)
    on_cuda = quantize(copy.deepcopy(full).cuda(), kind)
    for name, tensor in on_cpu.state_dict().items():
        if not tensor.is_floating_point():  # a number on the edge of two may be rounded either way
            assert (on_cuda.state_dict()[name].cpu() != tensor).float().mean() < 1e-3, name
    moved = copy.deepcopy(on_cpu).cuda()
    loaded = quantize(copy.deepcopy(full).cuda(), kind)
    loaded.load_state_dict(on_cpu.state_dict())
    expected = log_probs(on_cpu)
    allowed = (1e-3 if kind != "int8_dynamic" else 0.1) if dtype == torch.float32 else 0.5
    for model in (moved, loaded):
        assert (log_probs(model) - expected).abs().max() < allowed
    # a number that is rounded the other way moves them further
    assert (log_probs(on_cuda) - expected).abs().max() < max(allowed, 0.05)
    assert torch.equal(log_probs(moved.cpu()), expected)
