"""A compiled block is one graph. The graphs are run as they are, so that nothing is built by a C++ compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from torch import Tensor

from lit_llm.config import TrainerConfig
from lit_llm.model import Decoder
from lit_llm.model.parallel import arrange


def loss_and_gradients(model: Decoder, inputs: dict[str, Tensor], autocast: bool) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**inputs).float().square().mean()
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kept", ["none", "full", "selective"])
def test_a_block_is_one_graph_whatever_is_combined(kept: Any, documents: bool, autocast: bool) -> None:
    model = random_decoder(tiny_model("qwen3-0.6b", num_layers=1), std=0.05).train()
    arrange(model, TrainerConfig(activation_checkpointing=kept), None)
    inputs = {"tokens": random_tokens(model.config, 2, 16)}
    if documents:
        inputs["document_ids"] = (torch.arange(16) // 6).expand(2, -1)
    expected = loss_and_gradients(model, inputs, autocast)
    model.blocks[0].compile(backend="eager", fullgraph=True)
    found = loss_and_gradients(model, inputs, autocast)
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] == 1
    for name, value in expected.items():
        # rotation is another formula under the compiler, in bfloat16 with another rounding
        allowed = (0.05 if autocast else 1e-4) * float(value.abs().max())
        assert float((found[name] - value).abs().max()) <= allowed, name
