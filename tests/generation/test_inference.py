"""Compiled generation writes what the engine writes without it."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import add_random_lora, random_decoder, random_tokens

from lit_llm.config import GenerateConfig, LoraConfig, ModelConfig, SamplingConfig, UserError
from lit_llm.generation import Engine, ahead_of_time, complete, generate
from lit_llm.generation import compiled as compilation
from lit_llm.model import Decoder
from lit_llm.model.adapters import RowAdapters
from lit_llm.model.packed_linear import can_pack, pack_weights
from lit_llm.model.quantization import quantize

GREEDY = SamplingConfig(max_new_tokens=20, temperature=0.0)
DRAWN = SamplingConfig(max_new_tokens=12, temperature=1.0, top_k=50, seed=5)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def prompt(model: Decoder, length: int) -> list[int]:
    return random_tokens(model.config, length, seed=length).tolist()


def one_layer(**fields: Any) -> ModelConfig:
    """Of one form wherever it can be, as each takes half a minute to compile and is kept."""
    return tiny_model("llama-10m", num_layers=1, max_position_embeddings=64, num_key_value_heads=2, **fields)


@pytest.mark.slow
def test_text_is_that_without_compiling_and_nothing_is_compiled_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(one_layer())
    made = []
    own = compilation.CompiledModel._compile
    monkeypatch.setattr(compilation.CompiledModel, "_compile", lambda self, rows: made.append(rows) or own(self, rows))
    # two rows, then one; over several sizes of what is read; and another engine with other sizes
    texts = [prompt(model, 3), prompt(model, 21)]
    for sampling in (GREEDY, DRAWN):
        assert generate(model, texts, sampling, eos_id=None, compile=True) == generate(
            model, texts, sampling, eos_id=None
        )
    long = SamplingConfig(max_new_tokens=70, temperature=0.0)  # past the context, where it begins again
    assert generate(model, texts[:1], long, eos_id=None, compile=True) == generate(model, texts[:1], long, eos_id=None)
    assert sorted(made) == [1, 2]


def test_the_step_is_made_of_what_the_compiler_turns_into_loops() -> None:
    """A kernel of torch's in between costs a call, and its threads, in every layer."""
    model = random_decoder(one_layer())
    form = compilation.CompiledModel(model)
    step = compilation.OneToken(form._few, form.windows, None)
    program = torch.export.export(step, (*compilation._example(form._few, 2), None), strict=False)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.exp.default" in called  # the weights of attention
    assert not [name for name in called if "attention" in name or "mm" in name or "linear" in name]


@pytest.mark.slow
def test_more_rows_than_are_compiled_read_packed_weights() -> None:
    """Also where rows of the other kind join and leave; without the weights as they were nothing is compiled."""
    if not can_pack(torch.float32):
        pytest.skip("this torch multiplies no packed weights")
    config = one_layer()
    plain, packed = random_decoder(config, std=0.2), pack_weights(random_decoder(config, std=0.2), keep=True)
    texts = [prompt(plain, 2 + number) for number in range(11)]

    def write(model: Decoder, compile: bool) -> list[list[int]]:
        engine = Engine(model, 11, compile=compile)
        for number, text in enumerate(texts):
            engine.submit(text, SamplingConfig(max_new_tokens=4 if number > 1 else 12, temperature=0.0))
        return [text.ids for _, text in sorted(engine.run().items())]

    assert write(packed, compile=True) == write(plain, compile=False)
    assert list(compilation.compiled(packed)._steps) == [2]
    with pytest.raises(ValueError, match="packed and not kept"):
        complete(pack_weights(plain), texts[:1], GREEDY, compile=True)


@pytest.mark.slow
def test_a_form_is_compiled_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def kept(model: Decoder) -> bool:
        """Whether its step is there already; it writes what is written without it."""
        found = []
        own = ahead_of_time._build
        monkeypatch.setattr(ahead_of_time, "_build", lambda *arguments: found.append(0) or own(*arguments))
        text = [prompt(model, 5)]
        assert generate(model, text, GREEDY, eos_id=None, compile=True) == generate(model, text, GREEDY, eos_id=None)
        monkeypatch.setattr(ahead_of_time, "_build", own)
        return not found

    one, other = random_decoder(one_layer(), seed=1), random_decoder(one_layer(), seed=2)
    assert not kept(one)
    assert kept(other)
    (library,) = tmp_path.glob("lit_llm/*")
    whole = library.read_bytes()
    library.write_bytes(whole[:5000])  # cut off, so it is made again
    monkeypatch.setattr(ahead_of_time, "_build", lambda path, *arguments: path.write_bytes(whole))
    assert not kept(random_decoder(one_layer(), seed=3))
    assert list(tmp_path.glob("lit_llm/*")) == [library] and library.suffix == ".pt2"


def test_the_same_tensors_under_another_formula_are_another_form() -> None:
    def name(**fields: Any) -> str:
        form = compilation.CompiledModel(random_decoder(one_layer(**fields)))
        step = compilation.OneToken(form._few, form.windows, None)
        return ahead_of_time._form(step, (*compilation._example(form._few, 1), None))

    assert name() == name() != name(norm_eps=0.1)


WINDOWED = {"num_key_value_heads": 2, "sliding_window": 5, "full_attention_every": 2, "num_layers": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields", "dtype", "kind"),
    [
        ("mistral-7b", WINDOWED, torch.float32, "int8"),
        ("modern-1m", {}, torch.float32, None),
        ("gpt2", {"num_layers": 1}, torch.float32, "int8_dynamic"),
        ("gpt2", {"num_layers": 1}, torch.bfloat16, None),
        ("llama-10m", {"num_layers": 1}, torch.bfloat16, "int8"),
        ("llama-10m", {"num_layers": 1}, torch.float32, "int4"),
        ("llama-10m", {"num_layers": 1}, torch.bfloat16, "int4"),
    ],
)
def test_every_form_is_compiled(name: str, fields: dict[str, Any], dtype: torch.dtype, kind: str | None) -> None:
    model = random_decoder(tiny_model(name, **fields)).to(dtype)
    if kind is not None:
        quantize(model, kind, tied_head=True)
    # each number of rows takes half a minute to compile: texts that end together need one; `test_one_token` has more
    texts = [prompt(model, length) for length in ((3,) if kind == "int4" else (3, 11))]
    written = complete(model, texts, GREEDY, compile=True)
    assert len(compilation.compiled(model)._steps) == 1
    if dtype == torch.float32 and kind != "int8_dynamic":
        assert [row.ids for row in written] == [row.ids for row in complete(model, texts, GREEDY)]
    # rounding differs, and with it what comes after two tokens that are about as likely
    assert all(len(row.ids) == 20 for row in written)


@pytest.mark.slow
def test_texts_of_several_adapters_are_those_without_compiling() -> None:
    """One function for all of them, also where a model without adapters was compiled before."""
    model = random_decoder(one_layer())
    plain = compilation.compiled(model)
    read = {}
    for seed, name in enumerate(("one", "two")):
        config = LoraConfig(rank=2 + seed, alpha=6.0, dora=name == "two")
        other = Decoder(model.config).eval()
        other.load_state_dict(model.state_dict())
        read[name] = config, add_random_lora(other, config, seed)
    adapters = RowAdapters(model, read)

    def write(compile: bool) -> dict[tuple[int, str | None], list[int]]:
        engine = Engine(model, 2, adapters=adapters, compile=compile)
        asked = {engine.submit(prompt(model, 9), GREEDY, adapter=name): name for name in ("one", "two", None, "one")}
        return {(number, asked[number]): done.ids for number, done in engine.run().items()}

    written = write(True)
    assert written == write(False) and len({tuple(ids) for ids in written.values()}) == 3
    assert compilation.compiled(model) is not plain and list(compilation.compiled(model)._steps) == [2]


@pytest.mark.slow
def test_texts_that_join_late_are_those_without_compiling() -> None:
    model = random_decoder(one_layer())
    texts = [prompt(model, length) for length in (2, 30, 9)]

    def write(compile: bool) -> dict[int, list[int]]:
        engine = Engine(model, 2, prefill_chunk=4, compile=compile)
        for text in texts:
            engine.submit(text, GREEDY)
        return {number: done.ids for number, done in engine.run().items()}

    assert write(True) == write(False)


def test_the_compiled_form_goes_with_the_model() -> None:
    model = random_decoder(one_layer())
    form = compilation.compiled(model)
    assert compilation.compiled(model) is form
    model.to(torch.bfloat16)
    assert compilation.compiled(model) is not form
    gone = weakref.ref(model)
    del model, form
    gc.collect()
    assert gone() is None


def test_without_a_compiler_the_fix_is_named() -> None:
    from torch._inductor import config

    missing = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(UserError, match=r"compile needs a C\+\+ compiler, .* install g\+\+"):
        Engine(random_decoder(one_layer()), 1, compile=True)


def test_code_of_another_user_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UserError, match=r"lit_llm belongs to another user, .* set TORCHINDUCTOR_CACHE_DIR"):
        generate(random_decoder(one_layer()), [[1, 2]], GREEDY, eos_id=None, compile=True)


@pytest.mark.parametrize("mode", [{"num_beams": 2}, {"draft_model": "x"}])
def test_modes_that_are_not_compiled_say_so(mode: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(mode))} cannot be had together with compile"):
        GenerateConfig(compile=True, **mode)
