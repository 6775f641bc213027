"""The linear layer by oneDNN's products: the same numbers, wherever it is asked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder, random_tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_llm.config import LoraConfig
from lit_llm.model import Decoder
from lit_llm.model import linear as chosen
from lit_llm.model.linear import linear, prefers_onednn
from lit_llm.model.lora import add_lora

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
WIDE: dict[str, Any] = {"hidden_size": 256, "num_heads": 4, "num_key_value_heads": 4, "intermediate_size": 512}


class Count(TorchDispatchMode):
    """Counts the operations that are done, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def by_onednn(self) -> int:
        return self.names["mkldnn._linear_pointwise.default"]


@pytest.fixture(autouse=True)
def on_such_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "_PREFERS_ONEDNN", True)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [(128,), (4, 50), (2, 3, 64)])
def test_values_and_gradients_are_the_formulas(rows: tuple[int, ...], biased: bool) -> None:
    inputs = [drawn(*rows, 256), drawn(320, 256), drawn(320)]
    ours = [each.clone().requires_grad_() for each in inputs]
    exact = [each.double().requires_grad_() for each in inputs]
    gradient = drawn(*rows, 320)
    with Count() as count:
        got = linear(ours[0], ours[1], ours[2] if biased else None)
        got.backward(gradient)
    assert count.by_onednn == 3
    expected = F.linear(exact[0], exact[1], exact[2] if biased else None)
    expected.backward(gradient.double())
    assert largest_difference(got, expected.float()) < 2e-4
    for mine, right in zip(ours[: 2 + biased], exact, strict=False):
        assert mine.grad is not None and right.grad is not None
        assert largest_difference(mine.grad, right.grad.float()) < 1e-5 * right.grad.abs().max()


def test_only_the_gradients_that_are_wanted_are_computed() -> None:
    weight = drawn(256, 256)
    with Count() as count:
        linear(drawn(128, 256).requires_grad_(), weight, None).sum().backward()
        linear(drawn(128, 256), weight.clone().requires_grad_(), None).sum().backward()
        linear(drawn(128, 256), weight, None)
    assert count.by_onednn == 2 + 2 + 1


def test_everything_else_is_left_to_torch() -> None:
    x, weight = drawn(128, 256), drawn(256, 256)
    with Count() as count:
        linear(x[:127], weight, None)
        linear(x, weight[:255], None)
        linear(x.double(), weight.double(), None)
        linear(x.bfloat16(), weight.bfloat16(), None)
        linear(x.to("meta"), weight.to("meta"), None)
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight, None)
    assert count.by_onednn == 0


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_decoder_learns_the_same(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(tiny_model("llama-10m", **WIDE))
    tokens = random_tokens(model.config, 4, 32)

    def gradients() -> tuple[list[Tensor], int]:
        model.zero_grad()
        for block in model.blocks:
            block.checkpointing = checkpointing
        with Count() as count:
            model(tokens).square().mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], count.by_onednn

    got, products = gradients()
    assert products == 2 * (3 * 7 + (7 if checkpointing == "full" else 0)) + 3
    monkeypatch.setattr(chosen, "_PREFERS_ONEDNN", False)
    expected, products = gradients()
    assert products == 0
    for mine, right in zip(got, expected, strict=True):
        assert largest_difference(mine, right) < 1e-4 * right.abs().max()


def test_an_adapted_layer_multiplies_its_weight_so() -> None:
    model = random_decoder(tiny_model("llama-10m", **WIDE))
    tokens = random_tokens(model.config, 4, 32)
    expected = model(tokens)
    add_lora(model, LoraConfig(rank=2), 0)
    with Count() as count:
        assert largest_difference(model(tokens), expected) < 1e-5
    assert count.by_onednn >= 2 * 4


def test_a_compiled_block_is_left_to_the_compiler() -> None:
    model: Decoder = random_decoder(tiny_model("llama-10m", **WIDE))
    tokens = random_tokens(model.config, 4, 32)
    exported = torch.export.export(model, (tokens,))
    assert not any("mkldnn" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize(
    ("capability", "processor", "expected"),
    [("AVX512", "vendor_id : AuthenticAMD", True), ("AVX2", "AuthenticAMD", False), ("AVX512", "GenuineIntel", False)],
)
def test_which_processors_are_meant(
    capability: str, processor: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("pathlib.Path.read_text", lambda self, **_: processor)
    assert prefers_onednn() is expected
