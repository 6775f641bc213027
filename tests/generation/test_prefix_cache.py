"""The prefix cache: what was read or written is not read again, texts are those without it, and memory is bounded."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder
from test_continuous_batching import prompt
from test_engine import ARCHITECTURES, plain_loop

from lit_llm.config import LoraConfig, SamplingConfig, UserError
from lit_llm.generation import Completion, Engine, PrefixCache
from lit_llm.generation.prefix_cache import Page
from lit_llm.model import Decoder, KVCache
from lit_llm.model.lora import add_lora
from lit_llm.model.quantization import quantize

# no divisor of the windows, so that rings need spare room for whole pages
PAGE = 3


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Decoder:
    name, fields = ARCHITECTURES[request.param]
    # in float64, as in test_engine
    return random_decoder(tiny_model(name, **fields)).double()


@pytest.fixture
def llama() -> Decoder:
    return random_decoder(tiny_model("llama-10m", max_position_embeddings=64)).double()


def drawn(seed: int, **options: Any) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 6, "temperature": 1.0, "top_k": 40, "seed": seed, **options})


def room_for(model: Decoder, pages: int) -> PrefixCache:
    """A prefix cache of so many pages."""
    return PrefixCache(model, PrefixCache.mib_for(model, pages * PAGE, PAGE), page_tokens=PAGE)


def write(engine: Engine, text: list[int], sampling: SamplingConfig, **options: Any) -> Completion:
    request = engine.submit(text, sampling, **options)
    return engine.run()[request]


def assert_pages_are_right(model: Decoder, prefixes: PrefixCache) -> None:
    """Every page has the keys and values that reading its text at once gives."""
    by_number = {page.number: page for page in prefixes._pages.values()}
    assert len(by_number) == len(prefixes._pages) == prefixes.counts().pages

    def text_until(page: Page) -> list[int]:
        before = [] if isinstance(page.key[0], tuple) else text_until(by_number[page.key[0]])
        return [*before, *memoryview(page.key[1]).cast("i")]

    for page in by_number.values():
        text = text_until(page)
        cache = KVCache(model.config, 1, 64, spare=64, dtype=model.embedding.weight.dtype)
        with torch.no_grad():
            model(torch.tensor([text]), cache=cache)
        expected = torch.stack([memory[0, :, len(text) - PAGE : len(text)] for memory in (*cache.keys, *cache.values)])
        assert largest_difference(prefixes._memory._memory[page.number], expected) < 1e-9


def test_a_second_turn_reads_only_what_is_new(model: Decoder) -> None:
    prefixes = room_for(model, 20)
    engine = Engine(model, 2, prefill_chunk=5, prefix_cache=prefixes)
    first = write(engine, prompt(11), drawn(1))
    assert first.ids == plain_loop(model, prompt(11), drawn(1)) and first.cached_tokens == 0
    assert engine.tokens_read == 11 + 5
    text = prompt(11) + first.ids + prompt(5, seed=9)
    second = write(engine, text, drawn(2))
    assert second.ids == plain_loop(model, text, drawn(2))
    # of 17 tokens all but the last that was written have been read, and 15 of these fill pages
    assert second.cached_tokens == 15
    assert engine.tokens_read == 16 + 7 + 5
    # another engine, and the same text again: its last token is always read
    engine = Engine(model, 1, prefix_cache=prefixes)
    assert write(engine, text, drawn(3)).ids == plain_loop(model, text, drawn(3))
    assert engine.tokens_read == 1 + 5
    counts = prefixes.counts()
    assert (counts.requests, counts.hits) == (3, 2)
    assert (counts.prompt_tokens, counts.cached_tokens) == (11 + 22 + 22, 15 + 21)
    assert_pages_are_right(model, prefixes)


def test_texts_that_come_and_go_are_each_alone_while_pages_make_room(model: Decoder) -> None:
    chance = random.Random(0)
    stems = [prompt(length, seed=7) for length in (9, 14, 20)]
    jobs = [(prompt(30), drawn(5, max_new_tokens=12))]  # outgrows the context
    for number in range(14):
        stem = chance.choice(stems)
        text = stem[: chance.randint(1, len(stem))] + prompt(chance.randint(1, 6), seed=number % 3)
        jobs.append((text, drawn(number, max_new_tokens=chance.randint(1, 6))))
    prefixes = room_for(model, 11)
    engine = Engine(model, 3, prefill_chunk=7, prefix_cache=prefixes)
    done: dict[int, Completion] = {}
    ids: list[int] = []
    left: list[int] = []
    while engine.busy or len(ids) < len(jobs):
        if len(ids) < len(jobs):
            ids.append(engine.submit(*jobs[len(ids)]))
            if len(ids) % 3 == 0:
                left.append(engine.submit(stems[2], drawn(len(ids))))  # whose client goes away a little later
            elif left:
                engine.cancel(left.pop())
        for event in engine.step():
            done.setdefault(event.request, Completion()).add(event)
    counts = prefixes.counts()
    assert counts.evictions > 0 and counts.hits > 3
    assert counts.pages <= counts.most_pages == 11 and counts.pages_in_use == 0
    assert [done[request].ids for request in ids] == [plain_loop(model, *job) for job in jobs]
    assert_pages_are_right(model, prefixes)


def test_samples_and_prompts_that_begin_alike_share_it_one_after_the_other(llama: Decoder) -> None:
    engine = Engine(llama, 1, prefill_chunk=8, prefix_cache=room_for(llama, 30))
    texts = [prompt(25)] * 3 + [prompt(25)[:20] + prompt(6, seed=2)]
    ids = [engine.submit(text, drawn(seed)) for seed, text in enumerate(texts)]
    done = engine.run()
    assert [done[request].ids for request in ids] == [
        plain_loop(llama, text, drawn(seed)) for seed, text in enumerate(texts)
    ]
    assert [done[request].cached_tokens for request in ids] == [0, 24, 24, 18]
    assert engine.tokens_read == 25 + 1 + 1 + 8 + 4 * 5


def test_a_running_text_gives_more_than_whole_pages(llama: Decoder) -> None:
    """What is longer counts: the row of a text that runs, to the token, or pages of one that has ended."""
    engine = Engine(llama, 3, prefix_cache=room_for(llama, 30))
    shared = prompt(20)
    ids = [engine.submit(shared + prompt(4, seed=seed), drawn(seed)) for seed in (1, 2)]
    done = engine.run()
    assert [done[request].cached_tokens for request in ids] == [0, 20]
    running = engine.submit(shared[:17] + prompt(9, seed=3), drawn(3, max_new_tokens=9))
    engine.step()
    last = write(engine, shared + prompt(4, seed=1), drawn(4))
    assert last.cached_tokens == 21  # of the first text
    assert last.ids == plain_loop(llama, shared + prompt(4, seed=1), drawn(4))
    assert running not in engine.run()


@pytest.mark.parametrize("together", [True, False])
def test_namespaces_share_nothing(llama: Decoder, together: bool) -> None:
    prefixes = room_for(llama, 30)
    engine = Engine(llama, 3 if together else 1, prefix_cache=prefixes)
    spaces = ["a", None, "b", "a"]
    ids = [engine.submit(prompt(20), drawn(0), namespace=space) for space in spaces]
    done = engine.run()
    assert [done[request].cached_tokens for request in ids[:3]] == [0, 0, 0]
    assert done[ids[3]].cached_tokens >= 18
    assert {tuple(each.ids) for each in done.values()} == {tuple(plain_loop(llama, prompt(20), drawn(0)))}


@pytest.mark.parametrize("form", ["int8", "int8_dynamic", "int4", "lora", "bfloat16"])
def test_every_form_of_the_weights(form: str) -> None:
    """In the arithmetic that it has; with its log-probabilities."""
    model = random_decoder(tiny_model("llama-10m", num_key_value_heads=2))
    if form == "lora":
        add_lora(model, LoraConfig(rank=4), seed=0)
        model.load_state_dict({n: v + 0.2 * torch.randn_like(v) for n, v in model.state_dict().items()})
    elif form == "bfloat16":
        model = model.to(torch.bfloat16)
    else:
        quantize(model, form)
    text = prompt(20)
    expected = write(Engine(model, 1), text, drawn(1, temperature=0.0), log_probs=2)
    prefixes = room_for(model, 20)
    for read in (20, 2):
        engine = Engine(model, 1, prefix_cache=prefixes)
        found = write(engine, text, drawn(1, temperature=0.0), log_probs=2)
        assert engine.tokens_read == read + 5
        # bfloat16 has 8 bits, and a token that is read alone is summed up in another order
        tolerance = 0.1 if form == "bfloat16" else 1e-4
        assert found.log_probs[0].chosen == pytest.approx(expected.log_probs[0].chosen, abs=tolerance)
        if form != "bfloat16":
            assert found.ids == expected.ids
            assert [each.chosen for each in found.log_probs] == pytest.approx(
                [each.chosen for each in expected.log_probs], abs=tolerance
            )


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_texts_are_those_without_it() -> None:
    """Rows that are being read run along with those that write, which costs a ring its oldest token."""
    fields = {"num_key_value_heads": 2, "sliding_window": 5}
    model = random_decoder(tiny_model("mistral-7b", num_layers=1, max_position_embeddings=64, **fields))
    texts = [prompt(30)[: 12 + 3 * n] + prompt(3 + n, seed=n) for n in range(6)]
    prefixes = room_for(model, 12)
    engine = Engine(model, 4, prefill_chunk=4, compile=True, prefix_cache=prefixes)
    ids = [engine.submit(text, drawn(0, temperature=0.0)) for text in texts]
    done = engine.run()
    expected = [write(Engine(model, 1), text, drawn(0, temperature=0.0)).ids for text in texts]
    assert [done[request].ids for request in ids] == expected
    assert prefixes.counts().hits > 0


# memory


def keep(prefixes: PrefixCache, cache: KVCache, text: list[int]) -> list[Page]:
    """The pages of a text that is in the only row."""
    cache.lengths[0] = len(text)
    pages: list[Page] = []
    prefixes.keep(pages, None, text, cache, 0)
    return pages


def test_thousands_of_texts_take_no_more_than_the_bound(llama: Decoder) -> None:
    prefixes, cache = room_for(llama, 50), KVCache(llama.config, 1, 64, dtype=torch.float64)
    place = prefixes._memory._memory.data_ptr()
    for number in range(3000):
        prefixes.release(keep(prefixes, cache, [number % 400, number // 400, *range(7), number % 3, 5, 5]))
    counts = prefixes.counts()
    assert counts.pages == counts.most_pages == 50 and counts.pages_in_use == 0
    assert counts.evictions == 3000 * 4 - 50
    assert len(prefixes._pages) == len(prefixes._idle) == 50 and not prefixes._vacant
    assert prefixes._memory._memory.data_ptr() == place
    memory = prefixes._memory._memory
    # bookkeeping counts as well
    assert memory.numel() * memory.itemsize < 50 * counts.page_bytes == PrefixCache.mib_for(llama, 150, PAGE) * 2**20


def test_what_was_not_used_for_longest_makes_room_from_its_end(llama: Decoder) -> None:
    prefixes, cache = room_for(llama, 5), KVCache(llama.config, 1, 64, dtype=torch.float64)
    one, other, third = ([number] * 8 for number in (1, 2, 3))

    def held(text: list[int]) -> int:
        return len(prefixes.find(None, text, len(text)))

    prefixes.release(keep(prefixes, cache, one))
    prefixes.release(keep(prefixes, cache, other))
    prefixes.release(keep(prefixes, cache, one))
    assert (held(one), held(other), prefixes.counts().pages) == (2, 2, 4)
    in_use = keep(prefixes, cache, third)  # one page is vacant, and one has to go
    assert (held(one), held(other), held(third)) == (2, 1, 2)
    in_use += keep(prefixes, cache, one)
    in_use += keep(prefixes, cache, [4] * 8)  # there is room for one page, and what is in use stays
    assert (held(one), held(other), held(third), held([4] * 8)) == (2, 0, 2, 1)
    assert keep(prefixes, cache, [5] * 8) == [] and prefixes.counts().pages_in_use == 5
    prefixes.release(in_use)
    assert prefixes.counts().pages_in_use == 0
    prefixes.clear()
    assert held(one) == held(third) == prefixes.counts().pages == 0
    assert len(keep(prefixes, cache, [6] * 15)) == 5


def test_cancelled_and_closed_texts_let_go_of_their_pages(llama: Decoder) -> None:
    prefixes = room_for(llama, 30)
    engine = Engine(llama, 2, prefill_chunk=8, prefix_cache=prefixes)
    ids = [engine.submit(prompt(length), drawn(0, max_new_tokens=30)) for length in (9, 21, 15)]
    engine.step()
    engine.step()
    assert prefixes.counts().pages_in_use == 3 + 5
    for request in ids:
        engine.cancel(request)
    assert engine.step() == [] and not engine.busy
    assert prefixes.counts().pages_in_use == 0 and prefixes.counts().pages == 8
    engine.submit(prompt(21), drawn(0))
    engine.step()
    assert prefixes.counts().pages_in_use > 0
    engine.close()
    assert prefixes.counts().pages_in_use == 0
    again = write(Engine(llama, 1, prefix_cache=prefixes), prompt(21), drawn(0))
    assert again.ids == plain_loop(llama, prompt(21), drawn(0)) and again.cached_tokens >= 15


def test_a_text_that_fails_leaves_nothing_behind() -> None:
    model = random_decoder(tiny_model(tie_word_embeddings=False, max_position_embeddings=64))
    with torch.no_grad():
        model.embedding.weight[7] = math.nan
    prefixes = room_for(model, 30)
    engine = Engine(model, 2, prefill_chunk=6, prefix_cache=prefixes)
    bad = prompt(14, seed=1)
    bad[8] = 7
    options = {"temperature": 0.0, "logit_bias": {7: -1000.0}}
    requests = [engine.submit(text, drawn(0, **options)) for text in (bad, bad[:9], prompt(12))]
    done: dict[int, Completion] = {}
    while engine.busy:
        for event in engine.step():
            done.setdefault(event.request, Completion()).add(event)
    assert [done[request].finish_reason for request in requests] == ["error", "error", "length"]
    assert prefixes.counts().pages_in_use == 0
    held = [page.number for page in prefixes._pages.values()]
    assert len(held) == 2 + 5 and bool(prefixes._memory._memory[held].isfinite().all())  # two before it was no number
    assert write(engine, bad[:8] + prompt(4), drawn(0, **options)).cached_tokens == 6


def test_it_is_for_one_model_and_has_room_for_a_page(llama: Decoder) -> None:
    with pytest.raises(ValueError, match="the prefix cache was made for another model"):
        Engine(random_decoder(llama.config), 1, prefix_cache=room_for(llama, 3))
    with pytest.raises(UserError, match=r"0\.001 MiB has no room for a page of 16 tokens, which takes 0\.02 MiB; give"):
        PrefixCache(llama, 0.001)
    with pytest.raises(UserError, match=r"a prefix cache of 1e\+12 MiB cannot be had .* give it less, or 0"):
        PrefixCache(llama, 1e12)
