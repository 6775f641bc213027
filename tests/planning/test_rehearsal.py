"""The rehearsal on the meta device against a real step on the CPU whose every storage is followed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from lit_llm.config import ModelConfig, TrainerConfig
from lit_llm.model import Decoder
from lit_llm.model.checkpointing import block_choices
from lit_llm.objectives import linear_cross_entropy
from lit_llm.planning.live_memory import LiveMemory
from lit_llm.planning.rehearsal import Rehearsal, Step, _Stage, rehearse

STEP = Step(rows=3, length=32, loss_chunk_tokens=40)
CHOICES = ("none", "selective", "every_n", "full")


def real_step(config: ModelConfig, step: Step) -> tuple[int, int]:
    """Most bytes held besides weights, and operations, of a real step on the CPU."""
    model = Decoder(config)
    if step.arithmetic == "bfloat16":
        model.to(torch.bfloat16)
    choices = block_choices(TrainerConfig(activation_checkpointing=step.checkpointing), config.num_layers)
    for block, choice in zip(model.blocks, choices, strict=True):
        block.checkpointing = choice
    gradients = 0
    if step.accumulated:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            gradients += parameter.grad.nbytes
    outside = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    peak = 0

    def look(workspace: int) -> None:
        nonlocal peak
        peak = max(peak, sum(memory.bytes.values()) + workspace)

    memory = LiveMemory(outside, look)

    def loss(hidden: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
        options: dict[str, Any] = {"chunk_tokens": step.loss_chunk_tokens, "softcap": config.logits_softcap}
        return linear_cross_entropy(hidden.flatten(0, 1), head.weight, tokens.flatten(), **options)

    with memory:
        tokens = torch.zeros(step.rows, step.length, dtype=torch.long)
        documents = torch.zeros_like(tokens) if step.documents else None
        with torch.autocast("cpu", torch.bfloat16, enabled=step.arithmetic == "autocast"):
            total = model(tokens, document_ids=documents, head=loss)
        total.backward()
    return peak + gradients, memory.flops


def held(rehearsal: Rehearsal) -> int:
    """Most bytes besides weights."""
    return max(sum(moment[2:]) for moment in rehearsal.moments)


def model(name: str, **fields: Any) -> ModelConfig:
    return tiny_model(name, hidden_size=64, num_layers=4, intermediate_size=160, num_key_value_heads=2, **fields)


@pytest.mark.parametrize(
    ("name", "arithmetic", "checkpointing"),
    [
        *(("llama-10m", "float32", choice) for choice in CHOICES),
        *(("modern-1m", "autocast", choice) for choice in CHOICES),
        *(("gpt2", "bfloat16", choice) for choice in ("none", "selective")),
        *(("transformer-2017", "autocast", choice) for choice in ("none", "full")),
    ],
)
def test_it_holds_what_a_real_step_holds(name: str, arithmetic: Any, checkpointing: Any) -> None:
    config = model(name, dropout=0.0)
    step = replace(STEP, arithmetic=arithmetic, checkpointing=checkpointing)
    rehearsal = rehearse(config, step, "cpu")
    bytes_held, flops = real_step(config, step)
    assert rehearsal.flops == flops
    # the meta device and the CPU differ in a few shapes inside the norms
    assert held(rehearsal) == pytest.approx(bytes_held, rel=0.005)


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"dropout": 0.1}, {}),
        ({}, {"documents": True}),
        ({}, {"accumulated": True}),
        ({}, {"accumulated": True, "checkpointing": "full"}),
        ({}, {"loss_chunk_tokens": None}),
        ({"attention_softcap": 20.0}, {}),
        ({"sliding_window": 8, "qk_norm": True}, {}),
    ],
)
def test_every_option_that_takes_memory(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    config, step = model("llama-10m", **fields), replace(STEP, **changes)
    bytes_held, flops = real_step(config, step)
    rehearsal = rehearse(config, step, "cpu")
    assert (held(rehearsal), rehearsal.flops) == (pytest.approx(bytes_held, rel=0.005), flops)
    assert bytes_held != pytest.approx(real_step(model("llama-10m"), STEP)[0], rel=0.01)


@pytest.mark.parametrize(
    ("name", "layers", "checkpointing", "accumulated"),
    [
        ("llama-10m", 5, "none", False),
        ("llama-10m", 5, "full", True),
        ("llama-10m", 9, "every_n", False),
        ("modern-1m", 10, "selective", True),
        ("modern-1m", 11, "none", True),
        ("modern-1m", 10, "full", False),
    ],
)
def test_a_deep_model_follows_from_its_first_blocks(
    name: str, layers: int, checkpointing: Any, accumulated: bool
) -> None:
    config = replace(model(name), num_layers=layers, x0_shortcut=False)
    step = replace(STEP, arithmetic="autocast", checkpointing=checkpointing, accumulated=accumulated)
    short = rehearse(config, step)
    stage = _Stage(config, step, "accelerator")
    stage.run()
    whole = stage.with_repeats(1, 0)
    assert len(short.moments) < len(whole.moments)
    assert short.flops == whole.flops
    assert set(short.moments) <= set(whole.moments)
    for weight in (0.0, 0.1, 1.0):  # of finished gradients, which strategies shard

        def weighed(rehearsal: Rehearsal, weight: float = weight) -> float:
            return max(sum(moment[2:5]) + weight * sum(moment[5:]) for moment in rehearsal.moments)

        assert weighed(short) == weighed(whole)


def test_what_a_fused_norm_and_dropout_keep_on_an_accelerator() -> None:
    """Dropout keeps a byte a number there and four on the CPU; attention with dropout keeps no weights there."""
    config = model("llama-10m", dropout=0.1)
    accelerator, cpu = (rehearse(config, STEP, device) for device in ("accelerator", "cpu"))
    numbers = STEP.rows * STEP.length * 64
    dropped = (1 + 2 * 4) * numbers  # of the embedding, and of both halves of each block
    scores = 4 * STEP.rows * 4 * STEP.length**2

    def activations(rehearsal: Rehearsal) -> int:
        return next(m.activations for m in rehearsal.moments if m.phase == "loss")

    assert activations(cpu) - activations(accelerator) > dropped * 3 + 2 * scores


def test_checkpointing_keeps_the_input_of_each_block() -> None:
    rows, length, width = 3, 32, 64
    two, three = (
        rehearse(replace(model("llama-10m"), num_layers=layers), replace(STEP, checkpointing="full"))
        for layers in (2, 3)
    )

    def activations(rehearsal: Rehearsal) -> int:
        return next(m.activations for m in rehearsal.moments if m.phase == "loss")

    state = 5056  # the random state that dropout would be repeated from
    assert activations(three) - activations(two) in (rows * length * width * 4, rows * length * width * 4 + state)
