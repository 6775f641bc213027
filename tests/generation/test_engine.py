"""Batched generation against the plainest loop that could do it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens

from lit_llm.config import SamplingConfig, UserError, sample_seed
from lit_llm.generation import choose, generate
from lit_llm.model import Decoder

ARCHITECTURES = {
    "gpt2": ("gpt2", {}),
    "grouped-query": ("llama-10m", {"num_key_value_heads": 2}),
    "windowed": ("mistral-7b", {"num_key_value_heads": 1, "sliding_window": 4}),
    "mixed-windows": ("mistral-7b", {"num_key_value_heads": 2, "sliding_window": 4, "full_attention_every": 2}),
    "modern": ("modern-1m", {}),
    "transformer-2017": ("transformer-2017", {}),
}


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Decoder:
    name, fields = ARCHITECTURES[request.param]
    # In float64: of two ways of computing, one now and then draws another token for a rounding in float32.
    return random_decoder(tiny_model(name, **fields)).double()


def prompt(model: Decoder, length: int) -> list[int]:
    return random_tokens(model.config, length, seed=length).tolist()


@torch.no_grad()
def plain_loop(model: Decoder, text: list[int], sampling: SamplingConfig, row: int = 0) -> list[int]:
    """No cache, no batch, no padding: the whole text is read again for every token.

    A text that outgrows the context keeps its newest half.
    """
    limit = model.config.max_position_embeddings
    generator = torch.Generator().manual_seed(sample_seed(sampling.seed, row))
    seen, written = list(text), []
    for _ in range(sampling.max_new_tokens):
        if len(seen) > limit:
            seen = seen[-(limit // 2) :]
        token = int(choose(model(torch.tensor([seen]))[:, -1], sampling, [generator]))
        seen.append(token)
        written.append(token)
    return written


GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)
DRAWN = SamplingConfig(max_new_tokens=12, temperature=1.0, top_k=50, top_p=0.95, seed=5)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_text_is_that_of_the_plain_loop(model: Decoder, sampling: SamplingConfig) -> None:
    text = prompt(model, 9)
    assert generate(model, [text], sampling, eos_id=None) == [plain_loop(model, text, sampling)]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_batch_of_ragged_prompts_is_each_alone(model: Decoder, sampling: SamplingConfig) -> None:
    texts = [prompt(model, length) for length in (3, 17, 1, 8)]
    together = generate(model, texts, sampling, eos_id=None)
    assert together == [plain_loop(model, text, sampling, row) for row, text in enumerate(texts)]


def test_ragged_prompts_stay_apart_beyond_the_context(model: Decoder) -> None:
    """Each row drops its older half when it is full itself, not when its neighbour is."""
    texts = [prompt(model, length) for length in (3, 31, 24)]
    sampling = replace(DRAWN, max_new_tokens=32)
    together = generate(model, texts, sampling, eos_id=None)
    assert together == [plain_loop(model, text, sampling, row) for row, text in enumerate(texts)]


def test_the_context_is_filled_to_its_last_token(model: Decoder) -> None:
    """The next token after a full context still saw all of it."""
    text = prompt(model, 31)
    sampling = SamplingConfig(max_new_tokens=2, temperature=0.0)
    written = generate(model, [text], sampling, eos_id=None)[0]
    with torch.no_grad():
        assert written[1] == int(model(torch.tensor([[*text, written[0]]]))[0, -1].argmax())


def test_what_plans_or_compiles_for_each_length_is_left_out() -> None:
    model = random_decoder(tiny_model("llama-10m"))
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    written = generate(model, [prompt(model, 4)], GREEDY, eos_id=None)

    def by_compiler(*arguments: object) -> None:
        raise AssertionError("a block that was compiled for training")

    for block in model.blocks:
        block._compiled_call_impl = by_compiler
    assert generate(model, [prompt(model, 4)], GREEDY, eos_id=None) == written
    assert seen and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(AssertionError, match="compiled for training"):
        model(torch.zeros(1, 4, dtype=torch.long))


def test_the_seed_decides_the_text() -> None:
    model = random_decoder(tiny_model("llama-10m"), std=0.1)
    texts = [prompt(model, 4)] * 3

    def write(seed: int) -> list[list[int]]:
        return generate(model, texts, SamplingConfig(max_new_tokens=10, temperature=1.0, seed=seed), eos_id=None)

    first = write(0)
    torch.manual_seed(99)
    assert write(0) == first
    assert first[0] == generate(model, texts[:1], SamplingConfig(max_new_tokens=10, temperature=1.0), eos_id=None)[0]


def test_no_two_samples_of_neighbouring_seeds_are_the_same() -> None:
    """Neither samples of one call, nor ranks, nor answers of a conversation draw what those of another seed draw."""
    model = random_decoder(tiny_model("llama-10m"), std=0.1)
    texts = [
        tuple(row)
        for seed in range(10)
        for row in generate(model, [[5]] * 8, SamplingConfig(max_new_tokens=6, temperature=1.0, seed=seed), eos_id=None)
    ]
    assert len(set(texts)) == 80
    assert len({sample_seed(seed, index) for seed in range(-50, 50) for index in range(50)}) == 5000


def test_end_of_text_stops_its_row_alone_and_is_not_returned(model: Decoder) -> None:
    texts = [prompt(model, length) for length in (6, 2, 11)]
    free = generate(model, texts, DRAWN, eos_id=None)
    eos = free[0][4]
    expected = [row[: row.index(eos)] if eos in row else row for row in free]
    assert len(expected[0]) <= 4
    assert generate(model, texts, DRAWN, eos_id=eos) == expected


def test_every_row_may_end_early() -> None:
    model = random_decoder(tiny_model("llama-10m"))
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    eos = plain_loop(model, [5], GREEDY)[0]
    steps.clear()
    assert generate(model, [[5], [5]], GREEDY, eos_id=eos) == [[], []]
    assert len(steps) == 1  # nothing is read for texts that have ended


def test_on_token_is_told_every_token_in_order() -> None:
    model = random_decoder(tiny_model("llama-10m"))
    told: dict[int, list[int]] = {0: [], 1: []}
    texts = [prompt(model, 5), prompt(model, 2)]
    eos = generate(model, texts, DRAWN, eos_id=None)[1][3]
    written = generate(model, texts, DRAWN, eos_id=eos, on_token=lambda row, token: told[row].append(token))
    assert written == [told[0], told[1]]


def test_prompts_that_cannot_be_continued_are_named() -> None:
    model = random_decoder(tiny_model("llama-10m"))
    with pytest.raises(UserError, match="a prompt is empty"):
        generate(model, [[1], []], GREEDY, eos_id=None)
    with pytest.raises(UserError, match=r"prompt of 32 tokens leaves no room in the context of 32 tokens"):
        generate(model, [[1], prompt(model, 32)], GREEDY, eos_id=None)
    assert len(generate(model, [prompt(model, 31)], GREEDY, eos_id=None)[0]) == 12


def test_dropout_is_off_while_generating_and_the_mode_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(tiny_model("gpt2", dropout=0.5)).train()
    text = prompt(model, 5)
    modes: list[bool] = []
    set_mode = model.train
    monkeypatch.setattr(model, "train", lambda mode=True: (modes.append(mode), set_mode(mode))[1])
    first = generate(model, [text], GREEDY, eos_id=None)
    assert model.training and modes[-2:] == [False, True] and len(modes) <= 4  # not at each token
    assert generate(model, [text], GREEDY, eos_id=None) == first
    with pytest.raises(RuntimeError, match="stop"):
        generate(model, [text], GREEDY, eos_id=None, on_token=stop)
    assert model.training
    model.eval()
    assert generate(model, [text], GREEDY, eos_id=None) == first
    assert not model.training


def stop(row: int, token: int) -> None:
    raise RuntimeError("stop")


def test_bfloat16_weights_write_too() -> None:
    model = random_decoder(tiny_model("llama-10m", num_key_value_heads=2)).to(torch.bfloat16)
    written = generate(model, [prompt(model, 3), prompt(model, 20)], DRAWN, eos_id=None)
    assert [len(row) for row in written] == [12, 12]
    assert all(0 <= token < 400 for row in written for token in row)


def test_padding_of_the_vocabulary_is_never_written() -> None:
    model = random_decoder(tiny_model("gpt2", vocab_size=3, pad_vocab_to_multiple_of=64))
    sampling = SamplingConfig(max_new_tokens=50, temperature=50.0)
    assert set(generate(model, [[0], [1, 2]], sampling, eos_id=None)[0]) == {0, 1, 2}
