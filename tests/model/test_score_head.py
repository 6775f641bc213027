"""A decoder with a head of scores instead of a vocabulary's, or with a value head beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from ranks import mesh_of, run_ranks
from torch import Tensor, nn

from lit_llm.config import ModelConfig, OptimizerConfig, TrainerConfig, UserError, from_plain, to_plain
from lit_llm.generation import Engine, beam_search
from lit_llm.model import Decoder, last_scores, token_scores
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.parallel import arrange
from lit_llm.model.quantization import quantization_of, quantize
from lit_llm.optimization import build_optimizer
from lit_llm.planning import count_parameters, parameters_by_part, training_flops_per_token

LENGTHS = torch.tensor([5, 12, 1, 9])


def scorer(name: str = "llama-10m", **fields: object) -> Decoder:
    return random_decoder(tiny_model(name, **fields).as_score())


def scores_at_ends(model: Decoder, tokens: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    scores: Tensor = model(tokens, head=lambda hidden, head: last_scores(hidden, head, lengths))
    return scores


@pytest.mark.parametrize("name", ["llama-10m", "gpt2", "modern-1m", "transformer-2017"])
def test_scores_are_the_product_of_hidden_states_and_one_row(name: str) -> None:
    model = scorer(name)
    tokens = random_tokens(model.config, 3, 12)
    hidden = model(tokens, head=lambda hidden, head: hidden)
    scores = model(tokens)
    assert scores.shape == (3, 12)
    assert model.head.weight.shape == (1, 32)
    torch.testing.assert_close(scores, (hidden * model.head.weight[0]).sum(-1), atol=1e-5, rtol=0)


def test_a_text_is_scored_at_its_last_token_whatever_the_padding_is() -> None:
    model = scorer()
    tokens = random_tokens(model.config, 4, 12)
    tokens[0, 4] = tokens[0, 2] = 7  # the id of the padding, inside and at the end of a text
    padding = torch.arange(12) >= LENGTHS.unsqueeze(1)
    alone = torch.stack([model(row[:length].unsqueeze(0))[0, -1] for row, length in zip(tokens, LENGTHS, strict=True)])
    for pad in (7, 0):
        found = scores_at_ends(model, tokens.masked_fill(padding, pad))
        assert found.shape == (4,)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
    one_early = scores_at_ends(model, tokens, (LENGTHS - 1).clamp(min=1))
    assert float((one_early - alone).detach()[[0, 1, 3]].abs().min()) > 0.01
    with pytest.raises(RuntimeError, match="index"):
        scores_at_ends(model, tokens, LENGTHS - 1)  # a text without a token


def test_autocast_leaves_scores_their_digits() -> None:
    model = scorer()
    tokens = random_tokens(model.config, 4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(tokens)
        assert scores_at_ends(model, tokens).dtype == torch.float32
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
    assert model.to(torch.bfloat16)(tokens).dtype == torch.float32


def test_initial_weights_are_those_of_the_language_model_but_for_the_head() -> None:
    config = tiny_model("llama-10m", hidden_size=512, num_heads=4)
    language = Decoder(config, seed=5).state_dict()
    reward = Decoder(config.as_score(), seed=5).state_dict()
    critic = Decoder(tiny_model("llama-10m", hidden_size=512, num_heads=4, value_head=True), seed=5).state_dict()
    assert reward.keys() == language.keys()
    assert critic.keys() == {*language, "value_head.weight"}
    for name, weight in language.items():
        assert torch.equal(critic[name], weight), name
        assert name == "head.weight" or torch.equal(reward[name], weight), name
    for drawn in (reward["head.weight"], critic["value_head.weight"]):
        assert drawn.shape == (1, 512)
        # a standard deviation of n numbers is itself uncertain by 1 / sqrt(2 n); five of those
        assert float(drawn.std()) == pytest.approx(513**-0.5, rel=5 / (2 * 512) ** 0.5)
    assert not torch.equal(reward["head.weight"], critic["value_head.weight"])  # each has a stream of its own


def test_a_value_head_changes_no_logits_and_is_read_by_a_callback() -> None:
    config = tiny_model("llama-10m", value_head=True)
    model = random_decoder(config)
    plain = random_decoder(tiny_model("llama-10m"))
    plain.load_state_dict({name: w for name, w in model.state_dict().items() if not name.startswith("value_head")})
    tokens = random_tokens(config, 2, 12)
    assert torch.equal(model(tokens), plain(tokens))

    def both(hidden: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor]:
        assert model.value_head is not None
        return model.logits(hidden), token_scores(hidden, model.value_head)

    logits, values = model(tokens, head=both)
    assert torch.equal(logits, plain(tokens))
    hidden = plain(tokens, head=lambda hidden, head: hidden)
    torch.testing.assert_close(values, hidden @ model.value_head.weight[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_head_of_one_row_is_trained_by_adamw_with_decay(optimizer: str) -> None:
    torch.manual_seed(0)
    model = Decoder(tiny_model("llama-10m").as_score())
    steps = build_optimizer(model, OptimizerConfig(name=optimizer, learning_rate=3e-3))
    (group,) = (g for g in steps.param_groups if any(p is model.head.weight for p in g["params"]))
    assert group["name"] == "adamw_decay"
    assert group["weight_decay"] > 0
    tokens, lengths = random_tokens(model.config, 8, 12), torch.randint(1, 13, (8,))
    losses = []
    for _ in range(12):
        chosen, rejected = scores_at_ends(model, tokens, lengths).chunk(2)
        loss = -F.logsigmoid(chosen - rejected).mean()
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def ranks_score_alike(config: ModelConfig, tensor_parallel: int, expected: dict[str, Tensor]) -> None:
    """One step over two ranks, in one of them; the head has fewer rows than there are ranks."""
    mesh = mesh_of(2 // tensor_parallel, tensor_parallel)

    def sharded(precision: str) -> Decoder:
        with torch.device("meta"):
            model = Decoder(config, seed=3)
        arrange(model, TrainerConfig(strategy="fsdp", precision=precision, tensor_parallel_size=tensor_parallel), mesh)
        model.to_empty(device="cpu")
        initialize_weights(model, config, 3)
        return model

    scores = sharded("bf16-mixed")(random_tokens(config, 4, 12))
    assert not torch.equal(scores, scores.bfloat16().float())  # they keep their digits
    model = sharded("32-true")
    steps = build_optimizer(model, OptimizerConfig(learning_rate=3e-3))
    scores_at_ends(model, random_tokens(config, 4, 12)).sum().backward()
    steps.step()
    torch.testing.assert_close(model.head.weight.full_tensor(), expected["head"], atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(
            scores_at_ends(model, random_tokens(config, 4, 12)), expected["scores"], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("tensor_parallel", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sharded_over_more_ranks_than_the_head_has_rows(tensor_parallel: int, tmp_path: Path) -> None:
    config = tiny_model("llama-10m").as_score()
    model = Decoder(config, seed=3)
    steps = build_optimizer(model, OptimizerConfig(learning_rate=3e-3))
    scores_at_ends(model, random_tokens(config, 4, 12)).sum().backward()
    steps.step()
    with torch.no_grad():
        expected = {"scores": scores_at_ends(model, random_tokens(config, 4, 12)), "head": model.head.weight.clone()}
    run_ranks(ranks_score_alike, 2, tmp_path, config, tensor_parallel, expected)


def test_the_score_form_of_a_configuration() -> None:
    config = tiny_model("llama-10m", logits_softcap=30.0, value_head=True)
    assert config.tie_word_embeddings
    reward = config.as_score()
    assert (reward.output, reward.value_head) == ("score", False)
    assert (reward.tie_word_embeddings, reward.logits_softcap) == (False, None)
    assert reward.as_score() == reward
    assert from_plain(ModelConfig, to_plain(reward)) == reward
    saved_before = {
        name: value for name, value in to_plain(tiny_model()).items() if name not in ("output", "value_head")
    }
    assert from_plain(ModelConfig, saved_before) == tiny_model()


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({}, "tie_word_embeddings to false"),
        ({"tie_word_embeddings": False, "logits_softcap": 30.0}, "logits_softcap .* set it to null"),
        ({"tie_word_embeddings": False, "value_head": True}, "value_head .* set it to false"),
    ],
)
def test_what_a_head_of_scores_excludes(fields: dict[str, object], fix: str) -> None:
    with pytest.raises(UserError, match=fix):
        tiny_model("llama-10m", output="score", **fields)


def test_no_text_is_written() -> None:
    model = scorer()
    with pytest.raises(UserError, match="the model is a reward model: it gives scores, not text"):
        Engine(model, 1)
    with pytest.raises(UserError, match="it gives scores, not text"):
        beam_search(model, [1, 2], num_beams=2, max_new_tokens=2)


def test_quantization_leaves_the_row_of_scores_whole() -> None:
    model = scorer()
    tokens = random_tokens(model.config, 2, 12)
    before, head = model(tokens), model.head.weight.clone()
    quantize(model, "int8")
    assert quantization_of(model) == "int8"
    assert torch.equal(model.head.weight, head)
    difference = (model(tokens) - before).abs().max()
    assert 0 < difference < 0.2 * before.std()


def test_parameters_and_operations_are_counted() -> None:
    config = tiny_model("llama-10m")
    width, vocabulary = 32, 400
    reward, critic = config.as_score(), tiny_model("llama-10m", value_head=True)
    assert count_parameters(reward) == count_parameters(config) + width  # whose head is tied
    assert count_parameters(critic) == count_parameters(config) + width
    assert parameters_by_part(reward)["head"] == width
    assert parameters_by_part(critic)["value head"] == width
    # 2 operations per weight forward and 4 backward
    of_tokens = training_flops_per_token(config, 16)
    assert training_flops_per_token(reward, 16) == of_tokens - 6 * width * (vocabulary - 1)
    assert training_flops_per_token(critic, 16) == of_tokens + 6 * width
