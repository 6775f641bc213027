"""Beam search against every text there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder
from test_engine import plain_loop

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import beam_search
from lit_llm.model import Decoder

VOCABULARY = 5
PROMPT = [3, 1, 4, 1]


@pytest.fixture(params=["llama-10m", "modern-1m", "mistral-7b"])
def model(request: pytest.FixtureRequest) -> Decoder:
    window = {"sliding_window": 3, "num_key_value_heads": 2} if request.param == "mistral-7b" else {}
    return random_decoder(tiny_model(request.param, vocab_size=VOCABULARY, **window), std=0.1)


@torch.no_grad()
def every_text(model: Decoder, length: int, penalty: float, stops: tuple[int, ...]) -> list[tuple[float, list[int]]]:
    """Score and ids of every text of up to `length` tokens that ends with a stop token or is that long."""
    found = []
    for count in range(1, length + 1):
        for ids in itertools.product(range(VOCABULARY), repeat=count):
            if any(token in stops for token in ids[:-1]) or (count < length and ids[-1] not in stops):
                continue
            log_probs = model(torch.tensor([[*PROMPT, *ids]]))[0, len(PROMPT) - 1 : -1].log_softmax(-1)
            total = float(log_probs.gather(1, torch.tensor(ids).unsqueeze(1)).sum())
            written = list(ids[:-1] if ids[-1] in stops else ids)
            found.append((total / count**penalty, written))
    return sorted(found, reverse=True)


@pytest.mark.parametrize(("penalty", "stops"), [(0.0, ()), (1.0, (2,)), (2.0, (0, 2)), (-1.0, (2,))])
def test_a_wide_search_finds_the_best_of_all(model: Decoder, penalty: float, stops: tuple[int, ...]) -> None:
    beams = beam_search(
        model, PROMPT, num_beams=25, max_new_tokens=3, length_penalty=penalty, stop_tokens=stops, prefill_chunk=3
    )
    expected = every_text(model, 3, penalty, stops)[: len(beams)]
    assert len(beams) == 25
    assert [beam.ids for beam in beams[:10]] == [ids for _, ids in expected[:10]]
    assert [beam.score for beam in beams[:10]] == pytest.approx([score for score, _ in expected[:10]], abs=1e-4)


def test_one_beam_is_greedy(model: Decoder) -> None:
    greedy = plain_loop(model, PROMPT, SamplingConfig(max_new_tokens=12, temperature=0.0))
    assert beam_search(model, PROMPT, num_beams=1, max_new_tokens=12)[0].ids == greedy


def test_more_beams_find_likelier_texts() -> None:
    model = random_decoder(tiny_model(), std=0.1)
    scores = [
        beam_search(model, PROMPT, num_beams=beams, max_new_tokens=8, length_penalty=0.0)[0].score for beams in (1, 8)
    ]
    assert scores[1] > scores[0] + 0.01


def test_the_search_ends_with_the_context_and_when_nothing_can_get_better() -> None:
    model = random_decoder(tiny_model(vocab_size=VOCABULARY))
    prompt = PROMPT * 7  # 28 of 32
    assert len(beam_search(model, prompt, num_beams=2, max_new_tokens=50)[0].ids) == 5
    steps: list[int] = []
    model.register_forward_hook(lambda *_: steps.append(1))
    beam_search(model, PROMPT, num_beams=1, max_new_tokens=20, stop_tokens=range(VOCABULARY))
    assert len(steps) == 1
    with pytest.raises(UserError, match="num_beams is 0"):
        beam_search(model, PROMPT, num_beams=0, max_new_tokens=3)
    with pytest.raises(UserError, match="32 tokens leaves no room in the context of 32"):
        beam_search(model, PROMPT * 8, num_beams=2, max_new_tokens=3)


def test_texts_that_end_leave_room_for_those_that_go_on() -> None:
    model = random_decoder(tiny_model(vocab_size=VOCABULARY), std=0.1)
    with torch.no_grad():
        likeliest = int(model(torch.tensor([PROMPT]))[0, -1].argmax())
    # the likeliest first token ends the text, but so high a power of the length favours going on
    options = {"num_beams": 1, "max_new_tokens": 6, "stop_tokens": [likeliest]}
    assert len(beam_search(model, PROMPT, length_penalty=5.0, **options)[0].ids) >= 5
    assert beam_search(model, PROMPT, length_penalty=0.0, **options)[0].ids == []
