"""The engine: texts that come and go, prompts read in pieces or not again, and reasons to end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from test_engine import ARCHITECTURES, plain_loop

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import AllowedTokens, Completion, Engine, Event, beam_search, complete, speculate
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Decoder:
    name, fields = ARCHITECTURES[request.param]
    # in float64, as in test_engine
    return random_decoder(tiny_model(name, **fields)).double()


@pytest.fixture
def llama() -> Decoder:
    return random_decoder(tiny_model("llama-10m", max_position_embeddings=64)).double()


def prompt(length: int, seed: int = 0) -> list[int]:
    return random_tokens(tiny_model(), length, seed=100 * seed + length).tolist()


def drawn(seed: int, **options: Any) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 9, "temperature": 1.0, "top_k": 40, "seed": seed, **options})


def test_texts_that_join_and_leave_are_each_alone(model: Decoder) -> None:
    """More texts than places, of different lengths and options, submitted at different times, read in chunks."""
    jobs = [
        (prompt(5), drawn(1, max_new_tokens=3)),
        (prompt(20), drawn(2, top_p=0.8)),
        (prompt(1), drawn(3, temperature=0.0, max_new_tokens=20)),
        (prompt(13), drawn(4, min_p=0.05, top_k=None)),
        (prompt(30), drawn(5, max_new_tokens=12)),  # outgrows the context
        (prompt(7), drawn(6, temperature=0.5, max_new_tokens=1)),
        (prompt(16), drawn(7, top_k=3)),
    ]
    engine = Engine(model, 3, prefill_chunk=6)
    done: dict[int, Completion] = {}
    ids = []
    for number in range(200):
        if number % 2 == 0 and len(ids) < len(jobs):
            ids.append(engine.submit(*jobs[len(ids)]))
        for event in engine.step():
            done.setdefault(event.request, Completion()).add(event)
        if not engine.busy and len(ids) == len(jobs):
            break
    assert [done[request].ids for request in ids] == [plain_loop(model, *job) for job in jobs]
    assert {completion.finish_reason for completion in done.values()} == {"length"}


def test_a_text_that_has_ended_costs_nothing(llama: Decoder) -> None:
    engine = Engine(llama, 4)
    for length, new in ((4, 2), (9, 5), (6, 10)):
        engine.submit(prompt(length), drawn(0, max_new_tokens=new))
    widths = []
    llama.register_forward_hook(lambda module, inputs, output: widths.append(tuple(inputs[0].shape)))
    engine.run()
    # the three prompts at once, then one token of each text that goes on
    assert widths == [(3, 9), (3, 1), (2, 1), (2, 1), (2, 1), *[(1, 1)] * 5]
    assert engine.tokens_read == 19 + 1 + 4 + 9


def test_a_prompt_is_read_once_for_all_its_samples(model: Decoder) -> None:
    text = prompt(25)
    engine = Engine(model, 4, prefill_chunk=8)
    ids = [engine.submit(text, drawn(seed, max_new_tokens=4)) for seed in range(4)]
    done = engine.run()
    assert [done[request].ids for request in ids] == [
        plain_loop(model, text, drawn(s, max_new_tokens=4)) for s in range(4)
    ]
    assert (
        engine.tokens_read == 25 + 3 * 1 + 4 * 3
    )  # the prompt, its last token for each other sample, what was written


def test_a_prompt_takes_its_beginning_from_another(llama: Decoder) -> None:
    shared = prompt(20)
    texts = [shared + prompt(5, seed=1), shared + prompt(9, seed=2), prompt(20, seed=3)]
    engine = Engine(llama, 3)
    ids = [engine.submit(text, drawn(0)) for text in texts]
    done = engine.run()
    assert [done[request].ids for request in ids] == [plain_loop(llama, text, drawn(0)) for text in texts]
    assert engine.tokens_read == 25 + 9 + 20 + 3 * 8


def test_the_chunk_bounds_what_one_step_reads(llama: Decoder) -> None:
    widths = []
    llama.register_forward_hook(lambda module, inputs, output: widths.append(tuple(inputs[0].shape)))
    engine = Engine(llama, 2, prefill_chunk=8)
    engine.submit(prompt(3), drawn(0, max_new_tokens=4))
    engine.submit(prompt(20), drawn(1, max_new_tokens=2))
    counts = []
    while engine.busy:
        counts.append(len(engine.step()))
    # the short text goes on while the long prompt is read: neither waits for the other
    assert widths == [(2, 8), (1, 8), (1, 1), (1, 4), (1, 1), (2, 1)]
    assert counts == [1, 1, 2, 2]


def test_cancelled_texts_leave_without_a_word(llama: Decoder) -> None:
    engine = Engine(llama, 2)
    first, second, third = (engine.submit(prompt(length), drawn(length)) for length in (4, 6, 8))
    seen = [event.request for event in engine.step()]
    assert seen == [first, second]
    engine.cancel(first)
    engine.cancel(99)
    done = engine.run()
    assert first not in done and done[third].ids == plain_loop(llama, prompt(8), drawn(8))
    assert done[second].ids == plain_loop(llama, prompt(6), drawn(6))[1:]
    waiting = engine.submit(prompt(4), drawn(0))
    engine.cancel(waiting)
    assert engine.step() == [] and not engine.busy


def test_a_full_context_ends_the_text_or_shifts(llama: Decoder) -> None:
    stopped = complete(llama, [prompt(60)], drawn(0, max_new_tokens=30, context_full="stop"))[0]
    shifted = complete(llama, [prompt(60)], drawn(0, max_new_tokens=30))[0]
    # a text of 64 tokens and the one that follows it
    assert len(stopped.ids) == 5 and stopped.finish_reason == "length"
    assert len(shifted.ids) == 30 and shifted.ids[:5] == stopped.ids


def test_a_long_prompt_is_refused_or_cut(llama: Decoder) -> None:
    text = prompt(100)
    with pytest.raises(UserError, match=r"100 tokens leaves no room in the context of 64 tokens.*truncate_prompt"):
        Engine(llama, 1).submit(text, drawn(0))
    for new, kept in ((9, 55), (40, 32)):  # room for the text, but at least half of the context is prompt
        options = drawn(0, max_new_tokens=new, truncate_prompt=True)
        assert complete(llama, [text], options)[0].ids == plain_loop(llama, text[-kept:], options)
    with pytest.raises(UserError, match="max_length 65 is more than the model's context of 64"):
        Engine(llama, 1, 65)


def test_ids_outside_the_vocabulary_are_named(llama: Decoder) -> None:
    engine = Engine(llama, 1)
    with pytest.raises(UserError, match="token id 400 is not in the model's vocabulary of 400"):
        engine.submit([3, 400])
    with pytest.raises(UserError, match="token id -1 is not"):
        engine.submit([3], SamplingConfig(logit_bias={-1: 1.0}))
    with pytest.raises(UserError, match="stop_strings need a tokenizer"):
        engine.submit([3], SamplingConfig(stop_strings=["a"]))
    assert not engine.busy


def test_several_stop_tokens(llama: Decoder) -> None:
    free = plain_loop(llama, prompt(5), drawn(3))
    for stops, expected in (([free[6], free[2]], free[:2]), ([free[0]], [])):
        options = drawn(3, stop_token_ids=stops[1:])
        done = complete(llama, [prompt(5)], options, stop_tokens=stops[:1])[0]
        assert (done.ids, done.finish_reason) == (expected, "stop")


def test_options_work_for_each_text_by_itself(llama: Decoder) -> None:
    """A bias, penalties and log-probabilities of one text leave its neighbours alone."""
    engine = Engine(llama, 4)
    plain = engine.submit(prompt(5), drawn(1))
    forced = engine.submit(prompt(5), drawn(1, logit_bias={7: 1000.0}))
    varied = engine.submit(prompt(5), drawn(1, temperature=0.0, presence_penalty=1000.0))
    told = engine.submit(prompt(5), drawn(1), log_probs=2)
    done = engine.run()
    assert done[plain].ids == done[told].ids == plain_loop(llama, prompt(5), drawn(1))
    assert done[forced].ids == [7] * 9
    assert len(set(done[varied].ids)) == 9
    assert not done[plain].log_probs and len(done[told].log_probs) == 9


def test_log_probabilities_are_those_of_the_model(llama: Decoder) -> None:
    text = prompt(5)
    engine = Engine(llama, 1)
    request = engine.submit(text, drawn(1, temperature=0.3, repetition_penalty=1.5, top_k=2), log_probs=3)
    done = engine.run()[request]
    with torch.no_grad():
        expected = llama(torch.tensor([text + done.ids]))[0].log_softmax(-1)[len(text) - 1 : -1]
    for row, token, found in zip(expected, done.ids, done.log_probs, strict=True):
        assert found.chosen == pytest.approx(float(row[token]), abs=1e-4)
        assert [token for token, _ in found.alternatives] == row.topk(3).indices.tolist()
        assert [value for _, value in found.alternatives] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_tokens_can_be_restricted_from_outside(llama: Decoder) -> None:
    def alternate(written: list[int]) -> torch.Tensor:
        mask = torch.zeros(400, dtype=torch.bool)
        if len(written) < 6:
            mask[len(written) % 2 :: 2] = True
        return mask

    engine = Engine(llama, 2)
    request = engine.submit(prompt(5), drawn(2), allowed_tokens=alternate)
    free = engine.submit(prompt(5), drawn(2))
    done = engine.run()
    assert [token % 2 for token in done[request].ids] == [0, 1, 0, 1, 0, 1]
    assert done[request].finish_reason == "stop"  # nothing more is allowed
    assert done[free].ids == plain_loop(llama, prompt(5), drawn(2))


# texts that cannot go on

WITHOUT = {7: -1000.0}  # the token that is no number


def with_bad_token(model: Decoder, token: int) -> Decoder:
    """The model with an embedding that is no number, which its head does not share."""
    with torch.no_grad():
        model.embedding.weight[token] = math.nan
    return model


def failing(kind: str) -> tuple[list[int], SamplingConfig, AllowedTokens | None]:
    """A request that fails in its first step or its third."""
    if kind == "options":
        options = drawn(9)
        options.top_k = "many"  # type: ignore[assignment]
        return prompt(6), options, None
    if kind.startswith("numbers"):
        length, place = (6, 4) if kind.endswith("once") else (60, 12)
        ids = prompt(length, seed=3)
        ids[place] = 7
        return ids, drawn(9, temperature=0.0), None

    def allowed(written: list[int]) -> torch.Tensor:
        if len(written) == 2:
            raise ValueError("no such state")
        return torch.ones(400, dtype=torch.bool)

    return prompt(6), drawn(9), allowed


@pytest.mark.parametrize("kind", ["options", "constraint", "numbers at once", "numbers of a long prompt"])
def test_a_text_that_cannot_go_on_ends_alone(kind: str) -> None:
    fields = {"tie_word_embeddings": False, "max_position_embeddings": 64}
    model = with_bad_token(random_decoder(tiny_model(**fields)), 7)
    ids, options, allowed = failing(kind)
    # one runs already and is done soon, so that rows move, and others come to the rows that are free
    lengths_and_options: list[tuple[int, dict[str, Any]]] = [
        (9, {"max_new_tokens": 8}),
        (5, {"max_new_tokens": 24, "frequency_penalty": 0.5}),
        (30, {"temperature": 0.0}),
        (7, {"max_new_tokens": 2}),
    ]
    jobs = [(prompt(n), drawn(n, logit_bias=WITHOUT, **options)) for n, options in lengths_and_options]
    assert all(7 not in text for text, _ in jobs)
    engine = Engine(model, 2, prefill_chunk=5)
    asked = [engine.submit(*jobs[0])]
    assert engine.step() == []
    bad = engine.submit(ids, options, allowed_tokens=allowed, log_probs=1)
    asked += [engine.submit(*job) for job in jobs[1:]]
    done: dict[int, Completion] = {}
    alone = [complete(model, [text], sampling)[0].ids for text, sampling in jobs]
    while engine.busy:
        for event in engine.step():
            done.setdefault(event.request, Completion()).add(event)
    assert [done[request].ids for request in asked] == alone
    assert done[bad].finish_reason == "error" and len(done[bad].ids) == (2 if kind == "constraint" else 0)
    expected = {"options": "'str'", "constraint": "no such state"}.get(kind, "predictions are not finite")
    assert expected in str(done[bad].error)
    assert all(done[request].error is None for request in asked)
    assert all(bool(memory.isfinite().all()) for memory in (*engine.cache.keys, *engine.cache.values))


def test_who_waits_for_all_texts_is_told_of_the_one_that_failed() -> None:
    model = with_bad_token(random_decoder(tiny_model(tie_word_embeddings=False)), 7)
    heard: list[int] = []
    with pytest.raises(UserError, match="the model's predictions are not finite; its weights are damaged"):
        complete(model, [[7], [5]], drawn(0, logit_bias=WITHOUT), on_event=lambda number, event: heard.append(number))
    assert heard.count(1) == 9
    for search in (
        lambda: beam_search(model, [7], num_beams=2, max_new_tokens=3),
        lambda: speculate(model, model, [7], SamplingConfig(max_new_tokens=3)),
    ):
        with pytest.raises(UserError, match="predictions are not finite"):
            search()


# text


def spoken(engine: Engine, *arguments: Any, **options: Any) -> tuple[list[str], Completion]:
    """The pieces of one text, and all of it."""
    pieces, done = [], Completion()
    engine.submit(*arguments, **options)

    def hear(event: Event) -> None:
        pieces.append(event.text)
        done.add(event)

    engine.run(hear)
    return pieces, done


def test_text_comes_in_whole_characters(llama: Decoder, tokenizer: Tokenizer) -> None:
    """Bytes drawn at random: characters that are cut short become U+FFFD, and nothing is lost or split."""
    pieces, done = spoken(Engine(llama, 1, tokenizer=tokenizer), prompt(5), drawn(1, max_new_tokens=40, top_k=None))
    assert len(done.ids) == 40
    assert done.text == "".join(pieces) == tokenizer.decode(done.ids)
    for piece in pieces:
        piece.encode("utf-8")


def test_a_stop_string_ends_the_text_before_it(llama: Decoder, tokenizer: Tokenizer) -> None:
    options = drawn(1, max_new_tokens=20)
    engine = Engine(llama, 1, tokenizer=tokenizer)
    free = spoken(engine, prompt(5), options)[1]
    spelled = [tokenizer.decode([token]) for token in free.ids]
    # from the middle of one token into the next: no token is or has the string
    place = next(i for i in range(5, 19) if len(spelled[i]) > 1 and spelled[i].isascii() and spelled[i + 1].isascii())
    stop = spelled[place][-1] + spelled[place + 1]
    assert stop in free.text
    before = free.text[: free.text.index(stop)]
    pieces, done = spoken(engine, prompt(5), drawn(1, max_new_tokens=20, stop_strings=["zzzzz", stop]))
    assert done.finish_reason == "stop"
    assert done.text == "".join(pieces) == before
    assert done.ids == free.ids[: len(done.ids)] and stop in tokenizer.decode(done.ids)
    assert len(done.ids) <= place + 2


def test_sharded_models_are_told_apart_by_their_guard(llama: Decoder) -> None:
    """A whole model is run in inference mode: nothing is kept for a gradient."""
    modes = []
    llama.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    complete(llama, [prompt(5)], drawn(0))
    assert modes and all(modes)
