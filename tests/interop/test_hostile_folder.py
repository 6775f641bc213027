"""Folders that a stranger made to break what reads them: one line each, in no time and memory worth speaking of."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import letter_tokenizer, save_policy
from conftest import tiny_model
from random_decoder import random_decoder
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from lit_llm.config import LoraConfig, UserError
from lit_llm.interop import (
    load_model_folder,
    load_weights,
    read_generation_config,
    read_model_config,
    save_adapter,
    save_model_folder,
)
from lit_llm.model.lora import add_lora
from lit_llm.model.quantization import quantize
from lit_llm.tokenizer import Tokenizer

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture
def saved(tmp_path: Path, letters: Tokenizer) -> Path:
    return save_policy(tmp_path / "model", letters)


def refusal(call: Callable[[], Any], message: str) -> str:
    """What a call says, which must be one line."""
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900
    return str(error.value)


@pytest.fixture
def modules_made() -> Iterator[list[str]]:
    """The names of the parts that modules were given during the test."""
    names: list[str] = []

    def note(module: nn.Module, name: str, part: nn.Module) -> None:
        names.append(name)

    handle = register_module_module_registration_hook(note)
    yield names
    handle.remove()


SIZES = {
    "num_hidden_layers": 9_999,
    "hidden_size": 2**18,
    "intermediate_size": 2**20,
    "vocab_size": 2**24,
    "head_dim": 2**16,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_held_against_the_weights_before_a_decoder_is_built(
    name: str, saved: Path, modules_made: list[str]
) -> None:
    path = saved / "config.json"
    values = json.loads(path.read_text())
    values.pop("lit_llm", None)
    path.write_text(json.dumps({**values, name: SIZES[name]}))
    modules_made.clear()
    for read in (read_model_config, load_model_folder):
        refusal(lambda read=read: read(saved), "has weights that do not fit its config.json: ")
    assert len(modules_made) < 100


def test_as_many_names_as_layers_are_needed(tmp_path: Path, letters: Tokenizer, modules_made: list[str]) -> None:
    """A file that has the first and the last of ten thousand layers."""
    config = tiny_model("llama-10m", vocab_size=letters.vocab_size)
    save_model_folder(tmp_path, config, random_decoder(config).state_dict(), letters)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name.replace("layers.1.", "layers.9998."): tensor for name, tensor in weights.items()},
        tmp_path / "model.safetensors",
    )
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 9_999}))
    modules_made.clear()
    refusal(lambda: read_model_config(tmp_path), "has 20 weights, and its config.json says 9999 layers")
    assert len(modules_made) < 100


def header(text: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor_of(shape: list[int], end: int = 4) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [end - 4, end]}}).encode()


HEADERS = {
    "a length of 2^60": header(b"{}", 2**60),
    "a length of 2^64": header(b"{}", 2**64 - 1),
    "a length beyond the file": header(b"{}", 2**26),
    "cut short": header(b'{"a":', 100),
    "a shape of 2^124": header(tensor_of([2**62, 2**62]), body=b"0000"),
    "a shape below none": header(tensor_of([-1]), body=b"0000"),
    "a place far away": header(tensor_of([1], 2**62), body=b"0000"),
    "nested": header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "no text": header(b"\xff\xfe{}"),
    "no file": b"",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_weights(name: str, saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(HEADERS[name])
    refusal(lambda: read_model_config(saved), r"model\.safetensors cannot be read: ")


@pytest.mark.parametrize(
    "file",
    [
        *(5, None, ["model.safetensors"], {"a": 1}, True, "model.bin", "", ".safetensors/..", "x\0.safetensors"),
        *("../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\model.safetensors", "C:model.safetensors"),
    ],
)
def test_an_index_leads_nowhere_else(file: Any, saved: Path) -> None:
    names = dict.fromkeys(load_file(saved / "model.safetensors"), "model-1.safetensors")
    (saved / "model.safetensors").rename(saved / "model-1.safetensors")
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    load_model_folder(saved)
    first = next(iter(names))
    index.write_text(json.dumps({"metadata": {"total_size": 2**62}, "weight_map": {**names, first: file}}))
    refusal(lambda: load_model_folder(saved), r"index\.json names .*; it must be a file of this folder")


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": None}])
def test_an_index_without_a_map(content: Any, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(content))
    refusal(lambda: load_model_folder(saved), "is not an index of weights: it has no weight_map")


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": read_model_config,
    "generation_config.json": read_generation_config,
    "model.safetensors.index.json": load_model_folder,
    "tokenizer.json": Tokenizer.load,
    "tokenizer_config.json": Tokenizer.load,
    "adapter_config.json": read_model_config,
}


@pytest.mark.parametrize("text", [f'{{"a": {DEEP}}}', f'{{"a": {LONG}}}', '{"a": "\xff"', "[1]"])
@pytest.mark.parametrize("name", READERS)
def test_json_that_is_nested_or_has_thousands_of_digits(name: str, text: str, saved: Path) -> None:
    if name == "adapter_config.json":
        (saved / "config.json").unlink()
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(text.encode("latin-1"))
    assert str(saved / name) in refusal(lambda: READERS[name](saved), "json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_named(value: float, dtype: torch.dtype, saved: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights = {key: tensor.to(dtype) for key, tensor in load_file(saved / "model.safetensors").items()}
    weights[name][3, 5] = value
    save_file(weights, saved / "model.safetensors")
    config = read_model_config(saved)
    for read in (lambda: load_model_folder(saved), lambda: load_weights(saved, config)):
        refusal(read, f"{name} holds NaN or an infinite number \\(as {str(dtype)[6:]}\\); these weights are spoiled")


def test_weights_too_large_for_a_type_are_named(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, saved / "model.safetensors")
    load_model_folder(saved)
    refusal(lambda: load_model_folder(saved, dtype=torch.float16), r"model\.norm\.weight holds .* \(as float16\)")


def test_quantized_weights_are_looked_at_too(tmp_path: Path, letters: Tokenizer) -> None:
    model = random_decoder(tiny_model("llama-10m", vocab_size=letters.vocab_size))
    quantize(model, "int8")
    save_model_folder(tmp_path, model.config, model.state_dict(), letters, quantization="int8")
    load_model_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name, tensor in weights.items() if "up_proj" in name and tensor.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    refusal(lambda: load_model_folder(tmp_path), f"{name} holds NaN")


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    config, lora = read_model_config(saved), LoraConfig(rank=2)
    model = load_model_folder(saved)[0]
    add_lora(model, lora, 0)
    save_adapter(tmp_path / "adapter", config, lora, model.state_dict(), str(saved))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": True}, "has no rank r"),
        ({"r": 2.0}, "has no rank r"),
        ({"r": 2**62}, "it has another shape for"),
        ({"lora_alpha": float("nan")}, r"lora\.alpha is nan; it must be a finite number"),
        ({"lora_alpha": "16"}, "adapter_config.json"),
        ({"lora_dropout": float("nan")}, "dropout is nan"),
        ({"base_model_name_or_path": 5}, "is an adapter of 5, which is no model folder here"),
        ({"base_model_name_or_path": "x\0y"}, "is an adapter of .*, which is no model folder here"),
    ],
)
def test_options_of_an_adapter(values: dict[str, Any], message: str, adapter: Path) -> None:
    load_model_folder(adapter)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    refusal(lambda: load_model_folder(adapter), message)


def test_additions_that_are_no_numbers(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[1] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")
    refusal(lambda: load_model_folder(adapter), f"{name} holds NaN")


def test_adapters_of_each_other(adapter: Path, tmp_path: Path) -> None:
    values = json.loads((adapter / "adapter_config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for folder, base in ((adapter, other), (other, adapter)):
        text = json.dumps({**values, "base_model_name_or_path": str(base)})
        (folder / "adapter_config.json").write_text(text)
    refusal(lambda: load_model_folder(adapter), "is an adapter of adapters that never come to a model")
