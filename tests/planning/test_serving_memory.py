"""The memory of a served model is what the server allocates, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import letter_tokenizer, save_policy
from conftest import tiny_model
from random_decoder import random_decoder

from lit_llm.cli.serve import make_worker
from lit_llm.cli.serve_models import ModelFolders
from lit_llm.config import ServeConfig
from lit_llm.generation import Engine
from lit_llm.interop import save_model_folder
from lit_llm.model.adapters import RowAdapters
from lit_llm.model.quantization import quantize
from lit_llm.planning.serving import bytes_of, bytes_of_cache, cache_bytes, most_texts, serving_memory
from lit_llm.stages.loading import LoadedModel
from lit_llm.stages.serving_size import held_as

# "modern" keeps the last token of each row, too
CASES: dict[str, tuple[str, dict[str, Any], torch.dtype, str | None]] = {
    "llama": ("llama-10m", {}, torch.float32, None),
    "grouped, tied, bfloat16": (
        "llama-10m",
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        torch.bfloat16,
        None,
    ),
    "modern": ("modern-1m", {}, torch.float32, None),
    "int8": ("llama-10m", {}, torch.bfloat16, "int8"),
    "int4": ("llama-10m", {"num_key_value_heads": 1}, torch.bfloat16, "int4"),
    "gpt2": ("gpt2", {}, torch.float32, "int8_dynamic"),
    "windowed": ("mistral-7b", {"sliding_window": 4, "full_attention_every": 2}, torch.float32, None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_planned_is_what_the_engine_holds(case: str) -> None:
    name, fields, dtype, quantization = CASES[case]
    config = tiny_model(name, **fields)
    model = random_decoder(config).to(dtype)
    if quantization is not None:
        quantize(model, quantization)
    engine = Engine(model, 3, 24)
    planned = serving_memory(config, dtype, quantization, 3, 24)
    held: dict[int, int] = {}  # by where a storage lies, whatever shares it
    for tensor in (*model.parameters(), *model.buffers()):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert planned.weights == sum(held.values()) == bytes_of(model)
    memories = (*engine.cache.keys, *engine.cache.values)
    last = 0 if engine.cache.last_tokens is None else engine.cache.last_tokens.untyped_storage().nbytes()
    assert planned.cache == sum(memory.untyped_storage().nbytes() for memory in memories) + last
    assert planned.cache == bytes_of_cache(engine.cache) and planned.total == planned.weights + planned.cache


def test_how_many_texts_fit() -> None:
    config = tiny_model()
    one = cache_bytes(config, torch.float32, 1, 32)
    assert one == 2 * config.num_layers * config.kv_heads * 32 * config.width_per_head * 4
    assert [most_texts(config, torch.float32, 32, room) for room in (5.5 * one, 5 * one, 0.9 * one, -1)] == [5, 5, 0, 0]


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_server_counts_what_its_folders_take(tmp_path: Path, quantize: str) -> None:
    """With its adapters, which are held in float32; and a model that is stored quantized."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("httpx", reason="the package httpx is not installed")
    from serving_models import save_adapter_of

    folder = save_policy(tmp_path / "base", letter_tokenizer())
    adapter = save_adapter_of(folder, tmp_path / "adapter", 1)
    seen: list[int] = []

    def make(config: ServeConfig, loaded: LoadedModel, adapters: RowAdapters | None) -> Any:
        worker = make_worker(config, loaded, adapters)
        # what a layer adds is no parameter of it
        seen.append(bytes_of(loaded.model) + (0 if adapters is None else adapters.nbytes))
        return worker

    options = {"quantize": quantize, "max_batch": 3, "max_length": 40, "prefix_cache_mib": 0}
    config = ServeConfig(str(folder), adapters={"a": str(adapter)}, **options)
    models = ModelFolders(config, make)
    group = models.look("base")
    worker = models.load(group)
    try:
        assert group.nbytes == seen[0] + bytes_of_cache(worker._engine.cache)
    finally:
        worker.stop()


def test_a_stored_quantization_is_found(tmp_path: Path) -> None:
    tokenizer = letter_tokenizer()
    model = random_decoder(tiny_model(vocab_size=tokenizer.vocab_size)).to(torch.bfloat16)
    quantize(model, "int4")
    save_model_folder(tmp_path / "q", model.config, model.state_dict(), tokenizer, quantization="int4")
    assert held_as(tmp_path / "q", model.config, None, "none") == (torch.bfloat16, "int4")
    path = tmp_path / "q" / "config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "dtype"}))
    assert held_as(tmp_path / "q", model.config, None, "none") == (torch.bfloat16, "int4")
