"""Invariant 4: a text's logits and loss do not depend on what else stands in its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import alone, largest_difference, random_decoder, random_tokens
from torch import Tensor

from lit_llm.config import DataConfig, ModelConfig, PretrainConfig
from lit_llm.data.pretraining.data_module import TokenDataModule
from lit_llm.modules import PretrainingModule

# float32 sums in another order; logits are of the order of 1 to 10
TOLERANCE = 2e-5
LENGTHS = (7, 1, 12, 9)
# name: the preset and what differs from it at the tiny size
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama-10m", {"num_key_value_heads": 2}),
    "windowed": ("mistral-7b", {"num_key_value_heads": 2, "sliding_window": 5}),
    "windowed-in-every-second": (
        "gemma3-1b",
        {"num_key_value_heads": 2, "sliding_window": 5, "full_attention_every": 2},
    ),
    "softcapped": ("llama-10m", {"attention_softcap": 2.0}),
    "modern": ("modern-1m", {}),
    "transformer-2017": ("transformer-2017", {}),
}


@pytest.fixture(params=ARCHITECTURES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    name, fields = ARCHITECTURES[request.param]
    return tiny_model(name, **fields)


def pack(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts one after another in a row: tokens and document ids, both [1, t]."""
    ids = torch.cat([torch.full_like(text, number) for number, text in enumerate(texts)])
    return torch.cat(texts).unsqueeze(0), ids.unsqueeze(0)


@torch.no_grad()
def packed_logits(model: torch.nn.Module, texts: list[Tensor]) -> list[Tensor]:
    tokens, ids = pack(texts)
    return list(model(tokens, document_ids=ids)[0].split([len(text) for text in texts]))


def test_packed_texts_have_the_logits_of_each_alone(config: ModelConfig) -> None:
    model = random_decoder(config)
    texts = [random_tokens(config, length, seed=length) for length in LENGTHS]
    for packed, single in zip(packed_logits(model, texts), alone(model, texts), strict=True):
        assert largest_difference(packed, single) < TOLERANCE


def test_without_document_ids_the_texts_mix(config: ModelConfig) -> None:
    """The comparison above can fail."""
    model = random_decoder(config)
    texts = [random_tokens(config, length, seed=length) for length in LENGTHS]
    mixed = model(pack(texts)[0])[0].split(LENGTHS)
    for row, single in list(zip(mixed, alone(model, texts), strict=True))[1:]:
        assert largest_difference(row, single) > 1000 * TOLERANCE


def test_rows_are_packed_each_in_its_own_way(config: ModelConfig) -> None:
    model = random_decoder(config)
    tokens = random_tokens(config, 2, 12)
    ids = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] + [2] * 2])
    with torch.no_grad():
        logits = model(tokens, document_ids=ids)
    for row, lengths in enumerate([(5, 7), (9, 1, 2)]):
        for packed, single in zip(logits[row].split(lengths), alone(model, tokens[row].split(lengths)), strict=True):
            assert largest_difference(packed, single) < TOLERANCE


def test_changing_one_document_leaves_the_others_bit_for_bit(config: ModelConfig) -> None:
    model = random_decoder(config)
    texts = [random_tokens(config, length, seed=length) for length in LENGTHS]
    before = packed_logits(model, texts)
    for changed in range(len(texts)):
        others = [*texts]
        others[changed] = (texts[changed] + 1) % 400
        after = packed_logits(model, others)
        for number in range(len(texts)):
            assert torch.equal(before[number], after[number]) == (number != changed)


@pytest.mark.parametrize("padding", [1, 6])
def test_left_padding_does_not_change_a_row(config: ModelConfig, padding: int) -> None:
    """Nor do its neighbours, of which one is not padded."""
    model = random_decoder(config)
    text = random_tokens(config, 11)
    rows = torch.stack([torch.cat([torch.zeros(padding, dtype=torch.long), text]), random_tokens(config, padding + 11)])
    ids = torch.zeros_like(rows)
    ids[0, padding:] = 1
    with torch.no_grad():
        logits = model(rows, document_ids=ids)
    assert largest_difference(logits[0, padding:], alone(model, [text])[0]) < TOLERANCE
    assert largest_difference(logits[1], alone(model, [rows[1]])[0]) < TOLERANCE


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_the_loss_of_windows_is_the_sum_over_their_documents(architecture: str, shards: Path) -> None:
    """From shards on disk to the module's loss and gradient, against each document by itself."""
    name, fields = ARCHITECTURES[architecture]
    options = DataConfig(paths=[str(shards)], sequence_length=128, batch_size=8, mask_documents=True)
    config = PretrainConfig(model=tiny_model(name, **fields, max_position_embeddings=128, dropout=0.0), data=options)
    data = TokenDataModule(options, None, 0).train_dataset
    batch = data.__getitems__(range(data.order.num_windows[0]))
    several = (batch["document_ids"][:, -1] > 0).nonzero().squeeze(1)[:6]
    assert len(several) >= 3, "the corpus has too few windows of several documents"
    batch = {key: tensor[several] for key, tensor in batch.items()}

    module = PretrainingModule(config)
    module.model.load_state_dict(random_decoder(config.model).state_dict())
    loss, count = module.token_loss(batch, training=True)
    loss.backward()

    model = random_decoder(config.model)
    expected, expected_count = torch.zeros(()), 0
    for tokens, targets, ids in zip(batch["tokens"], batch["targets"], batch["document_ids"], strict=True):
        lengths = ids.unique_consecutive(return_counts=True)[1].tolist()
        for text, following in zip(tokens.split(lengths), targets.split(lengths), strict=True):
            own = following[:-1] != -100  # the end of a window may belong to the next
            assert torch.equal(following[:-1][own], text[1:][own])
            expected = expected + F.cross_entropy(model(text[None])[0], following, reduction="sum", ignore_index=-100)
            expected_count += int((following != -100).sum())
    expected.backward()

    assert count == expected_count < batch["targets"].numel()
    assert torch.allclose(loss, expected, rtol=1e-6)
    for (key, one), other in zip(module.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-4), key
