"""Training in float8: what is refused, and what torchao makes of a decoder."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens

from lit_llm.config import LoraConfig, SFTConfig, TrainerConfig, UserError
from lit_llm.model.float8 import check_float8, is_float8, use_float8
from lit_llm.training.strategies import build_strategy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"trainer\.float8 is computed beside bfloat16; set trainer\.precision to bf16-mixed"),
        ({"precision": "bf16-mixed", "strategy": "deepspeed"}, r"needs trainer\.strategy auto, ddp or fsdp"),
        ({"precision": "bf16-mixed", "strategy": "fsdp", "tensor_parallel_size": 2}, "without tensor parallelism"),
    ],
)
def test_what_it_cannot_be_combined_with(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainerConfig(float8=True, **fields)


def test_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = TrainerConfig(float8=True, precision="bf16-mixed", accelerator="cpu")
    with pytest.raises(UserError, match=r"trainer\.float8 needs CUDA"):
        build_strategy(trainer)
    with pytest.raises(UserError, match=r"with lora\.rank set it to false"):
        SFTConfig(trainer=trainer, init_from="x", lora=LoraConfig(rank=2))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match=r"capability 8\.9 or higher .* A100 has 8\.0"):
        check_float8("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"trainer.float8 needs torchao .*lit-llm\[torchao\]"):
        check_float8("cuda")


def test_products_are_rounded_and_names_stay() -> None:
    """Multiplied in wider types, as it can be anywhere; 72 is no multiple of 16."""
    pytest.importorskip("torchao.float8", reason="the extra `torchao` is not installed")
    model = random_decoder(tiny_model("llama-10m", num_layers=1, intermediate_size=72), std=0.1).train()
    tokens = random_tokens(model.config, 2, 16)

    def step() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens).float().square().mean()
        loss.backward()
        gradient = model.blocks[0].attention.q_proj.weight.grad
        assert gradient is not None
        return float(loss.detach()), gradient.clone()

    names = [name for name, _ in model.named_parameters()]
    loss, gradient = step()
    use_float8(model.blocks, emulate=True)
    rounded, other = step()
    assert [name for name, _ in model.named_parameters()] == names
    taken = {name.rpartition(".")[2] for name, part in model.blocks.named_modules() if is_float8(part)}
    assert taken == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert rounded == pytest.approx(loss, rel=0.05) and rounded != loss
    assert 0 < float((other - gradient).norm()) < 0.3 * float(gradient.norm())
    narrow = random_decoder(tiny_model("llama-10m", hidden_size=24, num_layers=1, intermediate_size=72))
    with pytest.raises(UserError, match="has no effect: no projection has widths that are multiples of 16"):
        use_float8(narrow.blocks, emulate=True)
