"""The decoder as a program of torch.export or ONNX: equal logits with and without a cache, for any batch and length."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from torch import Tensor

from lit_llm.cli.commands import COMMANDS
from lit_llm.config import ExportConfig, ModelConfig, UserError
from lit_llm.interop import load_model_folder, save_model_folder
from lit_llm.interop.programs import export_program, names_of, no_past
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer

export = COMMANDS["export"].run
# tokens, mask, past, the token before -> logits, past
Run = Callable[[Tensor, Tensor, list[Tensor], Tensor | None], tuple[Tensor, list[Tensor]]]

FAMILIES: dict[str, dict[str, Any]] = {
    "llama-10m": {"num_key_value_heads": 1},
    "gpt2": {},
    "gemma2-2b": {"sliding_window": 6},
    "modern-1m": {},
}


def test_the_decoder_as_it_is() -> None:
    """torch.export takes it without a cache, windows and all, for each length up to the context."""
    config = tiny_model("gemma2-2b", sliding_window=6)
    model = random_decoder(config, std=0.1).requires_grad_(False)
    free = torch.export.Dim.AUTO
    program = torch.export.export(model, (random_tokens(config, 2, 5),), dynamic_shapes=({0: free, 1: free},))
    for rows, length in ((1, 1), (2, 6), (3, config.max_position_embeddings)):
        tokens = random_tokens(config, rows, length)
        same(program.module()(tokens), model(tokens))


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-5 * float(expected.abs().max()))


def check(model: Decoder, run: Run) -> None:
    """Whole texts, one token after another, chunks, and rows of different lengths with padding on the left."""
    config = model.config
    smears = config.token_smear
    tokens = random_tokens(config, 3, 20)
    expected = model(tokens)
    before = torch.zeros(3, 1, dtype=torch.long) if smears else None
    ones = torch.ones_like(tokens)
    logits, past = run(tokens, ones, no_past(model, 3), before)
    same(logits, expected)
    assert len(past) == 2 * config.num_layers
    assert past[0].shape == (3, config.kv_heads, 20, config.width_per_head)

    past = no_past(model, 1)
    row, last = tokens[:1], None if before is None else before[:1]
    start = 0
    for width in (1, 1, 8, 1, 3):
        new = row[:, start : start + width]
        logits, past = run(new, ones[:1, : start + width], past, last)
        same(logits, expected[:1, start : start + width])
        start, last = start + width, None if last is None else new[:, -1:]

    lengths, width = (12, 20, 1), 20
    padded, mask = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for number, length in enumerate(lengths):
        padded[number, width - length :], mask[number, width - length :] = tokens[number, :length], 1
    logits, past = run(padded[:, :-1], mask[:, :-1], no_past(model, 3), before)
    logits, _ = run(padded[:, -1:], mask, past, None if before is None else padded[:, -2:-1])
    for number, length in enumerate(lengths):
        same(logits[number, -1], expected[number, length - 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_program_with_a_cache(name: str, request: pytest.FixtureRequest) -> None:
    model = small(name)
    check(model, export_program(model).module())


def small(name: str) -> Decoder:
    return random_decoder(tiny_model(name, **FAMILIES[name]), std=0.1).requires_grad_(False)


def folder_of(model: Decoder, path: Path, tokenizer: Tokenizer) -> Path:
    save_model_folder(path, model.config, model.state_dict(), tokenizer)
    return path


def test_a_program_by_export(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    model = small("llama-10m")
    folder = folder_of(model, tmp_path / "model", tokenizer)
    export(ExportConfig(str(folder), str(tmp_path / "out"), format="torch_export"))
    file = tmp_path / "out" / "model.pt2"
    size = file.stat().st_size
    assert capsys.readouterr().out == f"torch program  {file} (float32, {size:,} bytes; {folder})\n"
    program = torch.export.load(file).module()
    check(model, program)
    assert json.loads((file.parent / "config.json").read_text())["model_type"] == "llama"
    assert Tokenizer.load(file.parent).digest == tokenizer.digest
    assert "torch.export.load" in (file.parent / "README.md").read_text()
    with pytest.raises(UserError, match="already holds a model"):
        export(ExportConfig(str(folder), str(tmp_path / "out"), format="torch_export"))
    with pytest.raises(UserError, match="already holds a model"):  # whose config.json would be another's
        export(ExportConfig(str(folder), str(folder), format="torch_export"))
    with pytest.raises(UserError, match=r"has no .*safetensors"):
        load_model_folder(file.parent)


def test_what_is_refused(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"format": "onnx", "dtype": "bfloat16"}, "computes no bfloat16"),
        ({"format": "onnx", "dtype": "q8_0"}, "q8_0 is for format gguf alone"),
        ({"format": "torch_export", "quantize": "int8"}, "quantize int8 is in our own form alone"),
        ({"format": "ollama", "quantize": "int4"}, "quantize int4 is in our own form alone"),
        ({"format": "onnx", "lora": "adapter"}, "format onnx has no effect on an adapter"),
        ({"format": "onnx", "license": "mit", "output": "a.onnx"}, r"license has no effect: a\.onnx cannot name one"),
        *(
            ({"format": name, "max_shard_size": "1KB"}, f"max_shard_size has no effect on format {name}")
            for name in ("gguf", "ollama", "onnx", "torch_export")
        ),
    ):
        with pytest.raises(UserError, match=message):
            ExportConfig(**options)  # type: ignore[arg-type]
    config: ModelConfig = tiny_model("llama-10m").as_score()
    folder = folder_of(random_decoder(config), tmp_path / "reward", tokenizer)
    with pytest.raises(UserError, match="is a reward model"):
        export(ExportConfig(str(folder), str(tmp_path / "out"), format="torch_export"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    folder = folder_of(small("gpt2"), tmp_path / "model", tokenizer)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript .*pip install onnx onnxscript"):
        export(ExportConfig(str(folder), str(tmp_path / "out"), format="onnx"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = small(name)
    folder = folder_of(model, tmp_path / "model", tokenizer)
    export(ExportConfig(str(folder), str(tmp_path / "out"), format="onnx"))
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    inputs, outputs = names_of(model)
    assert [value.name for value in session.get_inputs()] == inputs
    assert [value.name for value in session.get_outputs()] == outputs

    def run(tokens: Tensor, mask: Tensor, past: list[Tensor], last: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        values = [tokens, mask, *past, *([] if last is None else [last])]
        found = session.run(None, {key: value.numpy() for key, value in zip(inputs, values, strict=True)})
        logits, *past = map(torch.from_numpy, found)
        return logits, past

    check(model, run)
