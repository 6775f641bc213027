"""Every way of spreading a decoder over four ranks gives the loss and the gradients of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from closeness import assert_same_gradients
from collectives import Collectives, pretended_ranks
from conftest import tiny_model
from ranks import run_ranks, spread_decoder

from lit_llm.config import ModelConfig, TrainerConfig, UserError
from lit_llm.distributed.meshes import data_mesh, make_mesh
from lit_llm.model import Decoder, token_log_probs
from lit_llm.model.context_parallel import check_context, over_text, own_targets
from lit_llm.model.log_probs import head_rows
from lit_llm.model.parallel import arrange, check_divisible
from lit_llm.model.tensor_parallel import VocabularyHead, splits_vocabulary
from lit_llm.objectives import IGNORE_INDEX, linear_correct, linear_cross_entropy

RANKS = 4


class Case(NamedTuple):
    architecture: str
    fields: dict[str, Any]
    """Of the model."""
    trainer: dict[str, Any]


def case(architecture: str, fields: dict[str, Any] | None = None, **trainer: Any) -> Case:
    return Case(architecture, fields or {}, trainer)


TENSOR = {"tensor_parallel_size": 2}
GPT2 = {"dropout": 0.0}  # biases everywhere, learned positions, a tied head
QWEN = {"num_key_value_heads": 2, "head_dim": 8}
MODERN = {"intermediate_size": 64}  # value embeddings, smear, shortcuts to the embedding
GEMMA = {"num_key_value_heads": 2, "head_dim": 8, "logits_softcap": 5.0}
CASES = [
    case("gpt2", GPT2, **TENSOR),
    case("gpt2", GPT2, **TENSOR, sequence_parallel=True),
    case("llama-10m", **TENSOR, sequence_parallel=True, activation_checkpointing="full"),
    case("llama-10m", tensor_parallel_size=4, sequence_parallel=True, activation_checkpointing="selective"),
    # a vocabulary that does not divide stays whole, and one that is filled up has rows without a token
    case("llama-10m", {"vocab_size": 399}, **TENSOR, sequence_parallel=True),
    case("llama-10m", {"vocab_size": 399, "pad_vocab_to_multiple_of": 8}, tensor_parallel_size=4),
    case("qwen3-0.6b", QWEN, **TENSOR, sequence_parallel=True),
    case("modern-1m", MODERN, **TENSOR),
    case("modern-1m", MODERN, **TENSOR, sequence_parallel=True),
    case("gemma2-2b", GEMMA, **TENSOR, sequence_parallel=True),
    case("llama-10m", fsdp_replicas=2),
    case("llama-10m", fsdp_replicas=4),
    case("llama-10m", reshard_after_forward=False),
    case("llama-10m", **TENSOR, fsdp_replicas=2, sequence_parallel=True, reshard_after_forward=False),
    case("gpt2", GPT2, context_parallel_size=4, activation_checkpointing="selective"),
    case("llama-10m", context_parallel_size=2, activation_checkpointing="full"),
    case("qwen3-0.6b", QWEN, context_parallel_size=4),  # two heads of keys for four ranks
    case("modern-1m", MODERN, context_parallel_size=2, fsdp_replicas=2),
    case("gemma2-2b", {**GEMMA, "sliding_window": 4}, context_parallel_size=2),
    case("gemma2-2b", GEMMA, context_parallel_size=2, **TENSOR),
    case("llama-10m", {"vocab_size": 399}, context_parallel_size=2, **TENSOR, sequence_parallel=True),
]


def architecture(case: Case) -> ModelConfig:
    return tiny_model(case.architecture, **{"init_std": 0.2, "zero_init_projections": False, **case.fields})


def batch(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, targets and documents; 15 tokens, which no number of ranks divides."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size or 0, (8, 16), generator=random)
    targets = tokens[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=random) < 0.3] = IGNORE_INDEX
    documents = (torch.arange(15) > torch.randint(3, 12, (8, 1), generator=random)).long()
    return tokens[:, :-1], targets, documents


def loss_of(model: Decoder, rows: slice) -> torch.Tensor:
    tokens, targets, documents = (part[rows] for part in batch(model.config))

    def losses(hidden: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
        return linear_cross_entropy(
            hidden.flatten(0, 1),
            targets=own_targets(model, targets, IGNORE_INDEX).flatten(),
            **head_rows(head),
            chunk_tokens=16,
            softcap=model.config.logits_softcap,
            z_loss=1e-2,
            num_classes=model.config.vocab_size,
        )

    return over_text(model, model(tokens, document_ids=documents, head=losses, head_reads_part=True))


def one_device(config: ModelConfig) -> tuple[float, dict[str, torch.Tensor]]:
    model = Decoder(config, seed=3)
    loss = loss_of(model, slice(None))
    loss.backward()
    return float(loss), {name: value.grad for name, value in model.named_parameters()}


def spread(case: Case) -> tuple[Decoder, slice, int]:
    """The decoder over the ranks, the rows that this one reads, and how many shares of rows there are."""
    trainer, config = TrainerConfig(strategy="fsdp", **case.trainer), architecture(case)
    tensor, replicas, context = trainer.tensor_parallel_size, trainer.fsdp_replicas, trainer.context_parallel_size
    mesh = make_mesh("cpu", RANKS // tensor // replicas, tensor, replicas=replicas)
    model = spread_decoder(config, trainer, mesh, seed=3)
    shares, place = data_mesh(mesh).size() // context, list(data_mesh(mesh).get_coordinate() or [])
    number = (place[0] * (RANKS // tensor // replicas) + place[1] if len(place) > 1 else place[0]) // context
    size = 8 // shares
    return model, slice(number * size, (number + 1) * size), shares


def compare_all(cases: list[Case]) -> None:
    for each in cases:
        expected, gradients = one_device(architecture(each))
        model, rows, shares = spread(each)
        loss = loss_of(model, rows)
        loss.backward()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        assert float(total) * shares / RANKS == pytest.approx(expected, rel=1e-5), each
        # FSDP takes the mean over the shares of the batch, and over the ranks that share a text
        times = shares * each.trainer.get("context_parallel_size", 1)
        found = {name: value.grad.full_tensor() * times for name, value in model.named_parameters()}
        try:
            assert_same_gradients(found, gradients)
        except AssertionError as error:
            raise AssertionError(f"{each}: {error}") from error


@pytest.mark.slow
def test_gradients_of_four_ranks(tmp_path: Path) -> None:
    run_ranks(compare_all, RANKS, tmp_path, CASES)


def compare_heads() -> None:
    """What else reads a head: log-probabilities with their gradients, the likeliest token, logits."""
    for fields in ({}, {"vocab_size": 399, "pad_vocab_to_multiple_of": 8, "logits_softcap": 4.0}):
        compare_head(case("llama-10m", {"tie_word_embeddings": False, **fields}, tensor_parallel_size=4))


def compare_head(each: Case) -> None:
    model, plain = spread(each)[0], Decoder(architecture(each), seed=3)
    assert isinstance(model.head, VocabularyHead)
    both = (model, plain)
    tokens, targets, _ = batch(model.config)
    with torch.no_grad():
        targets[:, ::3] = plain(tokens).argmax(-1)[:, ::3]
    weights = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
    options = {"with_entropy": True, "with_likeliest": True, "temperature": 0.7}
    found, expected = (token_log_probs(one, tokens, targets, chunk_tokens=9, **options) for one in both)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.likeliest, expected.likeliest) and found.likeliest.any()
    for output in (found, expected):
        (output.log_probs * weights).sum().backward()
    own, theirs = ({name: value.grad for name, value in one.named_parameters()} for one in both)
    assert_same_gradients({name: value.full_tensor() for name, value in own.items()}, theirs)

    # and with the gradient of the hidden states alone, which is prepared in the forward pass
    for one in both:
        one.zero_grad()
        one.head.requires_grad_(False)
        (token_log_probs(one, tokens, targets, chunk_tokens=9).log_probs * weights).sum().backward()
    own, theirs = (
        {name: value.grad for name, value in one.named_parameters() if not name.startswith("head.")} for one in both
    )
    assert_same_gradients({name: value.full_tensor() for name, value in own.items()}, theirs)

    def correct(hidden: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
        states, options = hidden.flatten(0, 1), {"chunk_tokens": 9, "num_classes": model.config.vocab_size}
        return linear_correct(states, targets=targets.flatten(), **head_rows(head), **options)

    with torch.no_grad():
        torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-5, atol=1e-5)
        assert int(model(tokens, head=correct)) == int(plain(tokens, head=correct)) > 0


@pytest.mark.slow
def test_what_reads_a_head_that_ranks_share(tmp_path: Path) -> None:
    run_ranks(compare_heads, RANKS, tmp_path)


def in_block(trainer: dict[str, Any], fields: dict[str, Any], ranks: int) -> dict[str, int]:
    """Exchanges of the ranks that share products, or texts, for one block, forward and backward."""
    counts = []
    tensor = trainer.get("tensor_parallel_size", 1)
    size = trainer.get("context_parallel_size", tensor)
    for layers in (2, 3):
        config = tiny_model(num_layers=layers, num_heads=8, num_key_value_heads=8, **fields)
        with pretended_ranks(ranks):
            with torch.device("meta"):
                model = Decoder(config)
            arrange(model, TrainerConfig(strategy="fsdp", **trainer), make_mesh("cpu", ranks // tensor, tensor))
            model.to_empty(device="cpu")
            with Collectives(group_size=size) as seen:
                loss_of(model, slice(0, 2)).backward()
            counts.append(seen.counts)
    return dict(counts[1] - counts[0])


@pytest.mark.parametrize("ranks", [16, 1024])
def test_four_exchanges_for_each_block(ranks: int) -> None:
    assert in_block({"tensor_parallel_size": 8}, {}, ranks) == {"all_reduce": 4}


def test_exchanges_of_a_stream_that_is_cut() -> None:
    trainer = {"tensor_parallel_size": 8, "sequence_parallel": True}
    # each all-reduce in two halves, and the gradients of the two norms
    counts = in_block(trainer, {}, 16)
    assert counts == {"all_gather": 4, "reduce_scatter": 4, "all_reduce": 2}


@pytest.mark.parametrize("ranks", [16, 1024])
def test_exchanges_of_ranks_that_share_a_text(ranks: int) -> None:
    assert in_block({"context_parallel_size": 8}, {}, ranks) == {"all_to_all": 4}


def test_which_vocabulary_is_split() -> None:
    assert splits_vocabulary(tiny_model(vocab_size=400), 4)
    assert not splits_vocabulary(tiny_model(vocab_size=399), 2)
    assert splits_vocabulary(tiny_model(vocab_size=399, pad_vocab_to_multiple_of=8), 8)
    assert not splits_vocabulary(tiny_model(vocab_size=64, pad_vocab_to_multiple_of=128), 2)  # a rank would be empty
    assert not splits_vocabulary(tiny_model(output="score", tie_word_embeddings=False), 2)


def test_texts_that_cannot_be_cut_are_refused() -> None:
    check_divisible(tiny_model(max_position_embeddings=33), 2)
    with pytest.raises(UserError, match=r"sequence_parallel .* does not divide model\.max_position_embeddings"):
        check_divisible(tiny_model(max_position_embeddings=33), 2, splits_tokens=True)


@pytest.mark.parametrize(
    ("fields", "trainer", "message"),
    [
        ({}, {"context_parallel_size": 3}, r"context_parallel_size 3 does not divide the model's heads, 4"),
        (
            {},
            {"context_parallel_size": 4, **TENSOR},
            r"context_parallel_size 4 does not divide the model's heads, 2 of a tensor-parallel rank \(4 / 2\)",
        ),
        (
            {"num_heads": 6, "num_key_value_heads": 3, "head_dim": 8},
            {"context_parallel_size": 2},
            r"context_parallel_size 2 does not divide the model's key-value heads, 3, nor do they divide it",
        ),
        (
            {"max_position_embeddings": 34},
            {"context_parallel_size": 2, **TENSOR, "sequence_parallel": True},
            r"into 4 parts, which does not divide model\.max_position_embeddings 34",
        ),
    ],
)
def test_texts_that_cannot_be_shared_are_refused(fields: dict[str, Any], trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_context(tiny_model(**fields), TrainerConfig(strategy="fsdp", **trainer))
    check_context(tiny_model(num_key_value_heads=2), TrainerConfig(strategy="fsdp", context_parallel_size=4))
