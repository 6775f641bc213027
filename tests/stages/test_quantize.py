"""Quantized models from the command line: generate.py and export.py, and the folders between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from safetensors.torch import load_file, save_file

from lit_llm.cli.commands import COMMANDS
from lit_llm.cli.generate import generate
from lit_llm.config import EvaluateConfig, ExportConfig, GenerateConfig, SamplingConfig, UserError
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.interop import load_model_folder, load_weights, read_quantization, save_model_folder
from lit_llm.model.quality import quality
from lit_llm.model.quantization import KINDS, quantize
from lit_llm.tokenizer import Tokenizer

SHORT = SamplingConfig(max_new_tokens=8, temperature=0.0)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    model = random_decoder(tiny_model(max_position_embeddings=64, tie_word_embeddings=False), std=0.1)
    save_model_folder(tmp_path / "full", model.config, model.state_dict(), tokenizer)
    return tmp_path / "full"


def quantized(folder: Path, kind: str, **options: str) -> Path:
    output = folder.parent / kind
    COMMANDS["export"].run(ExportConfig(str(folder), str(output), quantize=kind, **options))  # type: ignore[arg-type]
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_same_bit_for_bit(
    kind: str, tied: bool, dtype: torch.dtype, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config = tiny_model("qwen2.5-0.5b", tie_word_embeddings=tied, vocab_size=391)
    model = quantize(random_decoder(config).to(dtype), kind)
    kept = {"form": "auto", "quantization": kind}
    model_type = save_model_folder(tmp_path / "one", config, model.state_dict(), tokenizer, **kept)  # type: ignore[arg-type]
    assert model_type == "lit_llm"
    loaded, _ = load_model_folder(tmp_path / "one")
    assert loaded.config == config
    assert read_quantization(tmp_path / "one") == kind
    tokens = random_tokens(config, 2, 16)
    with torch.no_grad():
        assert torch.equal(model(tokens), loaded(tokens))
    # and again, in several files
    save_model_folder(
        tmp_path / "two", config, loaded.state_dict(), tokenizer, quantization=kind, max_shard_bytes=20_000
    )
    assert len(list((tmp_path / "two").glob("model-*.safetensors"))) > 1
    first = load_file(tmp_path / "one" / "model.safetensors")
    assert ("head.weight" in first) == (not tied)
    again, _ = load_model_folder(tmp_path / "two")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_generating_quantized_is_generating_with_the_exported_model(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(GenerateConfig(str(folder), ["def"], sampling=SHORT, quantize=kind))  # type: ignore[arg-type]
    printed = capsys.readouterr()
    told, and_told, begins, speed = printed.err.splitlines()
    assert told.startswith(f"{kind} against the full model, on the prompts: KL ")
    assert and_told.startswith(f"{kind} against the full model, on a built-in text: KL ")
    assert begins.startswith("texts begin with <|endoftext|>, as documents did in training;") and "tokens/s" in speed
    output = quantized(folder, kind)
    said = capsys.readouterr()
    assert f"{kind} against the full model, on a built-in text: KL " in said.err
    assert "for this package alone: the weights are quantized" in said.out
    generate(GenerateConfig(str(output), ["def"], sampling=SHORT))
    assert capsys.readouterr().out == printed.out


def test_the_loss_of_quality_is_that_of_the_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "def f(x):\n    return x ** 2\n" * 10
    (tmp_path / "text.py").write_text(text)
    output = quantized(folder, "int4", quality_text=str(tmp_path / "text.py"))
    full, tokenizer = load_model_folder(folder)
    assert tokenizer.begin_id is not None
    ids = torch.tensor([tokenizer.begin_id, *tokenizer.encode(text)])[:512]
    expected = quality(full, load_model_folder(output)[0], ids.split(64))
    assert f"text.py: {expected}\n" in capsys.readouterr().err
    assert expected.tokens == len(ids) > 64
    assert expected.kl > 1e-6


def test_the_loss_of_quality_is_told_of_the_users_own_text(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts of some length, the documents to evaluate on, a file that is given, or what the run was validated on."""
    text = "def f(x):\n    return x ** 2\n" * 20
    (tmp_path / "text.txt").write_text(text)
    full, tokenizer = load_model_folder(folder)
    ids = torch.tensor([tokenizer.begin_id, *tokenizer.encode(text)])[:512]
    expected = quality(full, quantize(load_model_folder(folder)[0], "int4"), ids.split(64))
    options: dict[str, Any] = {"quantize": "int4", "sampling": SHORT}

    def told() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if "against the full model" in line]

    truncated = replace(SHORT, truncate_prompt=True)
    generate(GenerateConfig(str(folder), [text], **{**options, "sampling": truncated}))
    assert told() == [f"int4 against the full model, on the prompts: {expected}"]
    generate(GenerateConfig(str(folder), ["x"], quality_text=str(tmp_path / "text.txt"), **options))
    assert told() == [f"int4 against the full model, on {tmp_path / 'text.txt'}: {expected}"]
    texts = [str(tmp_path / "text.txt")]
    COMMANDS["evaluate"].run(EvaluateConfig(str(folder), texts=texts, quantize="int4", max_tokens=9))
    assert told() == [f"int4 against the full model, on the beginning of {texts[0]}: {expected}"]

    # a run folder
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / "model")
    (run / "config.yaml").write_text(json.dumps({"data": {"paths": [str(shards)]}}))
    generate(GenerateConfig(str(run), ["x"], **options))
    first, second = told()
    assert first.startswith("int4 against the full model, on the prompts: ") and first.endswith("(2 tokens)")
    ids = ShardedTokens(shards / "validation").read(0, 512).tolist()
    text = tokenizer.decode(ids, skip_special=True)
    ids = torch.tensor([tokenizer.begin_id, *tokenizer.encode(text)])[: 512 - 2]
    full, _ = load_model_folder(run / "model")
    expected = quality(full, quantize(load_model_folder(run / "model")[0], "int4"), ids.split(64))
    assert second == f"int4 against the full model, on the validation text of {run}: {expected}"
    quantized(run / "model", "int4")
    assert told()[0].startswith(f"int4 against the full model, on the validation text of {run}: ")
    (run / "config.yaml").write_text(json.dumps({"data": {"paths": [str(tmp_path / "gone")]}}))
    generate(GenerateConfig(str(run), **{**options, "prompts": ["x"]}))
    assert told()[1].startswith("int4 against the full model, on a built-in text: ")


def test_int4_calibrated_on_a_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its loss is told beside that of rounding to the nearest, and the folder is like any other."""
    (tmp_path / "read.py").write_text("class A:\n    def f(self, y):\n        return self.y + y\n" * 40)
    text = "def f(x):\n    return x ** 2\n" * 10
    (tmp_path / "text.py").write_text(text)
    given = {"quality_text": str(tmp_path / "text.py"), "calibration_text": str(tmp_path / "read.py")}
    output = quantized(folder, "int4", **given)
    told = [line for line in capsys.readouterr().err.splitlines() if "against the full model" in line]
    full, tokenizer = load_model_folder(folder)
    ids = torch.tensor([tokenizer.begin_id, *tokenizer.encode(text)])[:512].split(64)
    nearest = quality(full, quantize(load_model_folder(folder)[0], "int4"), ids)
    calibrated = quality(full, load_model_folder(output)[0], ids)
    read = 1 + len(tokenizer.encode((tmp_path / "read.py").read_text()))
    assert told == [
        f"int4 rounded to the nearest against the full model, on {tmp_path / 'text.py'}: {nearest}",
        f"int4 calibrated on {read:,} tokens against the full model, on {tmp_path / 'text.py'}: {calibrated}",
    ]
    assert calibrated.kl != nearest.kl
    assert json.loads((output / "config.json").read_text())["quantization"] == "int4"
    for options, message in (
        ({"quantize": "int8", **given}, "calibration_text is for quantize int4 alone, not int8"),
        ({"quantize": "int4", **given, "quality_text": given["calibration_text"]}, "is the quality_text, too"),
        ({"quantize": "int4", "calibration_text": str(tmp_path / "gone")}, "gone: cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            COMMANDS["export"].run(ExportConfig(str(folder), str(tmp_path / "out"), **options))  # type: ignore[arg-type]


def test_weights_converted_on_the_way_are_quantized_as_converted(folder: Path) -> None:
    output = quantized(folder, "int8", dtype="bfloat16")
    config = json.loads((output / "config.json").read_text())
    assert (config["model_type"], config["dtype"], config["quantization"]) == ("lit_llm", "bfloat16", "int8")
    reference = quantize(load_model_folder(folder, dtype=torch.bfloat16)[0], "int8")
    for name, tensor in load_model_folder(output)[0].state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    output = quantized(folder, "int8")
    model, tokenizer = load_model_folder(output)
    with pytest.raises(UserError, match=r"is quantized \(int8\): it can write text, and be neither trained"):
        load_weights(output, model.config)
    with pytest.raises(UserError, match=r"is quantized \(int8\)"):
        COMMANDS["export"].run(ExportConfig(str(output), str(tmp_path / "again")))
    with pytest.raises(UserError, match=r"was quantized for float32 and runs in that alone"):
        load_model_folder(output, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"quantized already \(int8\)"):
        generate(GenerateConfig(str(output), quantize="int8"))
    with pytest.raises(UserError, match=r"transformers cannot load our int8 weights"):
        save_model_folder(
            tmp_path / "a", model.config, model.state_dict(), tokenizer, form="huggingface", quantization="int8"
        )
    with pytest.raises(UserError, match=r"weights quantized as int8 cannot be converted"):
        save_model_folder(
            tmp_path / "a", model.config, model.state_dict(), tokenizer, dtype=torch.bfloat16, quantization="int8"
        )
    for options, message in (
        ({"quantize": "int8", "format": "huggingface"}, "quantize int8 is in our own form alone"),
        ({"quantize": "int8", "format": "gguf"}, "quantize int8 is in our own form alone"),
        ({"quantize": "int2"}, "quantize is 'int2'; it must be none, int8"),
        ({"quality_text": "a.txt"}, "quality_text is given, but quantize is none"),
    ):
        with pytest.raises(UserError, match=message):
            ExportConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="quantize is 'int2'"):
        GenerateConfig(quantize="int2")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"nowhere: cannot be read"):
        quantized(folder, "int4", quality_text=str(tmp_path / "nowhere"))
    assert not (folder.parent / "int4").exists()


def test_a_folder_that_does_not_fit_its_config(folder: Path) -> None:
    output = quantized(folder, "int8")
    path = output / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization": "int4"}))
    with pytest.raises(UserError, match=r"of another shape blocks\.0"):
        load_model_folder(output)
    path.write_text(json.dumps({**config, "quantization": "int5"}))
    with pytest.raises(UserError, match=r"quantization 'int5'; only int8, int8_dynamic, int4 can be read"):
        load_model_folder(output)
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "quantization"}))
    with pytest.raises(UserError, match=r"q_proj\.weight is stored as I8; quantized weights are not read"):
        load_model_folder(output)
    path.write_text(json.dumps(config))
    weights = load_file(output / "model.safetensors")
    weights["blocks.0.attention.q_proj.weight"] = weights["blocks.0.attention.q_proj.weight"].float()
    save_file(weights, output / "model.safetensors")
    with pytest.raises(UserError, match=r"q_proj\.weight is stored as torch.float32, which does not fit"):
        load_model_folder(output)
