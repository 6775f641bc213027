"""Rounding to 4 bits by texts: the numbers that the method's formula gives, and predictions that change less for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.model import Decoder
from lit_llm.model.calibration import quantize_by_texts
from lit_llm.model.quality import quality
from lit_llm.model.quantization import QuantizedLinear, quantize
from lit_llm.model.rounding import GROUP_SIZE, from_int4, round_to_int4, round_to_int4_by_inputs


def some_layer(rows: int = 16, width: int = 96) -> tuple[Tensor, Tensor]:
    """Weights [rows, width] and inputs [n, width] that go together, as those of a trained model do."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, width, generator=generator)
    few = torch.randn(400, width // 6, generator=generator) @ torch.randn(width // 6, width, generator=generator)
    return weight, few + 0.3 * torch.randn(400, width, generator=generator)


def test_the_columns_that_are_left_make_good_what_is_lost() -> None:
    """The formula says it column by column; here each column's rest is solved for as least squares."""
    weight, inputs = some_layer(width=64)
    gram = inputs.T @ inputs
    numbers, scale = round_to_int4_by_inputs(weight, gram)
    assert scale.shape == (2, 16, 2) and numbers.dtype == torch.uint8

    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(64, dtype=torch.float64)
    chosen = from_int4(numbers, scale).double()
    step, middle = scale.double().transpose(0, 1).unbind(-1)  # [rows, groups]
    exact = weight.double()
    for column in range(64):
        done, rest = slice(0, column), slice(column, 64)
        lost = exact[:, done] - chosen[:, done]  # [rows, column]
        best = exact[:, rest] + torch.linalg.solve(damped[rest, rest], damped[rest, done] @ lost.T).T
        group = column // GROUP_SIZE
        if column % GROUP_SIZE == 0:
            first = best[:, :GROUP_SIZE]
            expected = (first.amax(1) - first.amin(1)) / 15
            torch.testing.assert_close(step[:, group], expected, rtol=1e-4, atol=0.0)
        nearest = (((best[:, 0] - middle[:, group]) / step[:, group]).round() + 8).clamp(0, 15)
        # a number half-way between two may fall to either side
        assert float((nearest == numbers[:, column]).double().mean()) > 0.9, column


def test_products_change_less() -> None:
    weight, inputs = some_layer()
    gram = inputs.T @ inputs

    def lost(rounded: tuple[Tensor, Tensor]) -> float:
        return float((inputs @ (weight - from_int4(*rounded)).T).square().sum())

    assert lost(round_to_int4_by_inputs(weight, gram)) < 0.5 * lost(round_to_int4(weight))
    # where inputs are as many and have nothing to do with each other, there is nothing to make good
    for one, other in zip(round_to_int4_by_inputs(weight, torch.eye(96)), round_to_int4(weight), strict=True):
        assert torch.equal(one, other)


def test_inputs_that_were_never_seen() -> None:
    weight, inputs = some_layer()
    inputs[:, 5] = 0.0
    numbers, scale = round_to_int4_by_inputs(weight, inputs.T @ inputs)
    assert from_int4(numbers, scale).isfinite().all()
    for one, other in zip(round_to_int4_by_inputs(weight, torch.zeros(96, 96)), round_to_int4(weight), strict=True):
        assert torch.equal(one, other)


def trained(**fields: Any) -> tuple[Decoder, Tensor, Tensor]:
    """A model that has learnt a little of a language of letters, texts of it [n, 32], and others [m, 32]."""
    generator = torch.Generator().manual_seed(0)
    following = (3.0 * torch.randn(40, 40, generator=generator)).softmax(-1)
    texts = [torch.randint(0, 40, (96,), generator=generator)]
    for _ in range(31):
        texts.append(torch.multinomial(following[texts[-1]], 1, generator=generator).squeeze(1))
    tokens = torch.stack(texts, dim=1)
    model = Decoder(tiny_model(vocab_size=40, hidden_size=64, intermediate_size=128, **fields))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        batch = tokens[:64][(16 * step) % 64 :][:16]
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokens[:64], tokens[64:]


@pytest.mark.parametrize("name", ["llama-10m", "modern-1m"])
def test_a_trained_model_changes_less(name: str) -> None:
    model, texts, others = trained(name=name, tie_word_embeddings=False)
    nearest = quantize(copy.deepcopy(model), "int4")
    calibrated = quantize_by_texts(copy.deepcopy(model), list(texts))
    found = {each: quality(model, each, list(others)) for each in (nearest, calibrated)}
    assert found[nearest].tokens == 32 * 32
    assert 0.0 < found[calibrated].kl < 0.8 * found[nearest].kl
    # the same layers, in the same form
    one, other = nearest.state_dict(), calibrated.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in one.items()} == {n: (t.shape, t.dtype) for n, t in other.items()}
    assert not torch.equal(one["blocks.1.attention.q_proj.weight"], other["blocks.1.attention.q_proj.weight"])
    layer, x = calibrated.blocks[0].attention.q_proj, torch.randn(5, 64)
    assert isinstance(layer, QuantizedLinear) and isinstance(calibrated.head, QuantizedLinear)
    torch.testing.assert_close(layer(x), x @ layer.dequantized().T, rtol=1e-5, atol=1e-5)


def test_later_blocks_read_what_rounded_ones_write() -> None:
    """And every stream, norm and window on the way is the model's own."""
    config = tiny_model("modern-1m", hidden_size=64, tie_word_embeddings=False)
    model = random_decoder(config, std=0.1)
    windows = [random_tokens(config, 32), random_tokens(config, 9, seed=2)]
    read: dict[str, list[Tensor]] = {}
    done = quantize_by_texts(copy.deepcopy(model), windows)
    partly = copy.deepcopy(model)
    partly.blocks[0] = done.blocks[0]
    for name in ("blocks.1.attention.q_proj", "blocks.1.feedforward.down_proj", "head"):
        if name == "head":
            partly.blocks[1] = done.blocks[1]
        read[name] = []
        handle = partly.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: read[name].append(inputs[0].detach().flatten(0, 1))
        )
        for window in windows:
            partly(window.unsqueeze(0))
        handle.remove()
        inputs = torch.cat(read[name])
        expected = QuantizedLinear.of(model.get_submodule(name), "int4", inputs.T @ inputs)  # type: ignore[arg-type]
        same = (expected.weight == done.get_submodule(name).weight).double().mean()
        assert float(same) > 0.99, name  # sums in another order may put a number on the other side of a half


def test_what_is_refused_leaves_the_model_as_it_was() -> None:
    model = random_decoder(tiny_model())
    for windows in ([], [torch.empty(0, dtype=torch.long)]):
        with pytest.raises(UserError, match="no text to calibrate on"):
            quantize_by_texts(model, windows)
    with pytest.raises(UserError, match="longer than the model's context"):
        quantize_by_texts(model, [random_tokens(model.config, 33)])
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
