"""GGUF files in place of model folders: the same weights, logits and stops as where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from gguf_files import same_logits, tensors_of, values_of, write_gguf
from random_decoder import random_decoder, random_tokens

from lit_llm.config import ModelConfig, UserError
from lit_llm.interop import (
    generation_settings,
    load_model_folder,
    load_weights,
    read_model_config,
    read_quantization,
    save_model_folder,
    stop_token_ids,
)
from lit_llm.interop.gguf import save_gguf
from lit_llm.interop.gguf_reading.container import TYPES, GgufFile
from lit_llm.interop.gguf_reading.weights import dequantized
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
FILE = "model.gguf"
KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SMALL = {
    "hidden_size": 64,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}


def small(**fields: Any) -> ModelConfig:
    return tiny_model("llama-10m", **{**SMALL, **fields})


def decoder_of(path: Path) -> Decoder:
    """The decoder of a file without a tokenizer."""
    config = read_model_config(path)
    decoder = Decoder(config)
    decoder.load_state_dict(load_weights(path, config))
    return decoder.eval()


def exact_in(model: Decoder, dtype: torch.dtype) -> Decoder:
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    return model


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("F32", {"tie_word_embeddings": False, "pad_vocab_to_multiple_of": 64, "head_dim": 48}),
        ("F16", {}),
        ("BF16", {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}, "norm_eps": 1e-6}),
    ],
    ids=["F32 padded", "F16 tied", "BF16 linear"],
)
def test_what_we_write_is_read_bit_by_bit(
    kind: str, fields: dict[str, Any], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Norms are float32 in the file; where float16 cannot hold them, everything is read as float32."""
    model = random_decoder(small(**fields))
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, kind)  # type: ignore[arg-type]
    read, found = load_model_folder(tmp_path / FILE)
    expected = {
        name: weight if "norm" in name else weight.to(KINDS[kind]).float()
        for name, weight in model.state_dict().items()
    }
    rows = model.config.vocab_size  # what pads the vocabulary is not in the file
    expected |= {name: expected[name][:rows] for name in ("embedding.weight", "head.weight")}
    assert {weight.dtype for weight in read.state_dict().values()} == {torch.float32}
    for name, weight in read.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert read.config.rope_scaling == model.config.rope_scaling
    assert (read.config.norm_eps, read.config.rope_theta) == (model.config.norm_eps, model.config.rope_theta)
    model = Decoder(read.config)
    model.load_state_dict(expected)
    tokens = random_tokens(model.config, 2, 40)
    with torch.no_grad():
        assert torch.equal(read(tokens), model.eval()(tokens))
    text = "def f(x):\n    return 12345 ** x  # Größe 北京 👍"
    assert found.encode(text) == tokenizer.encode(text)
    assert found.digest == tokenizer.digest
    assert (found.eot_id, found.pad_id, found.trained_here) == (tokenizer.eot_id, tokenizer.pad_id, True)

    exact_in(model, KINDS[kind])
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, kind)  # type: ignore[arg-type]
    read, _ = load_model_folder(tmp_path / FILE)
    for name, weight in read.state_dict().items():
        assert weight.dtype == KINDS[kind] and torch.equal(weight.float(), model.state_dict()[name]), name
    assert load_model_folder(tmp_path / FILE, dtype=torch.bfloat16)[0].embedding.weight.dtype == torch.bfloat16


def test_eight_bits_are_read_as_the_library_reads_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_decoder(small())
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, "Q8_0")
    read, _ = load_model_folder(tmp_path / FILE)
    for name, weight in read.state_dict().items():
        exact = model.state_dict()[name].float()
        if weight.dim() == 2:  # the rows of queries and keys were in another order when they were rounded: each alone
            rows = gguf.quantize(exact.numpy(), gguf.GGMLQuantizationType.Q8_0)
            exact = torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType.Q8_0))
        assert torch.equal(weight, exact), name
    assert read_quantization(tmp_path / FILE) is None


def test_every_type_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    """Random bytes are numbers in every type; a scale may be NaN, which both say."""
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for kind in TYPES.values():
        count = 3 * 512 // kind.numbers * kind.size
        tensors[f"{kind.name}.weight"] = (random.integers(0, 256, (3, count // 3), dtype=np.uint8), kind.name)
    file = GgufFile(write_gguf(tmp_path / FILE, "llama", {}, tensors))
    for kind in TYPES.values():
        rows, _ = tensors[f"{kind.name}.weight"]
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind.name])
        found = dequantized(file, file.tensors[f"{kind.name}.weight"])
        assert found.shape == (3, 512)
        np.testing.assert_array_equal(found.float().numpy(), expected.astype(np.float32), err_msg=kind.name)


def test_tensors_larger_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gguf.quantize(np.random.default_rng(0).normal(size=(7, 256)).astype("f4"), gguf.GGMLQuantizationType.Q4_0)
    file = GgufFile(write_gguf(tmp_path / FILE, "llama", {}, {"a.weight": (rows, "Q4_0")}))
    monkeypatch.setattr("lit_llm.interop.gguf_reading.weights._NUMBERS_AT_ONCE", 96)
    expected = gguf.dequantize(rows, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(dequantized(file, file.tensors["a.weight"]).numpy(), expected)


LLAMA = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
GEMMA = {**LLAMA, "head_dim": 16, "sliding_window": 8, "tie_word_embeddings": True, "query_pre_attn_scalar": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**LLAMA, "head_dim": 8}),
    "llama with biases": ("Llama", {**LLAMA, "head_dim": 12, "attention_bias": True, "mlp_bias": True}),
    "llama yarn": ("Llama", {**LLAMA, "head_dim": 8, "rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "gpt2": ("GPT2", {"vocab_size": 90, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 7}),
}
READ_BY_TRANSFORMERS = ("llama", "qwen2")
"""Those that transformers reads right from such a file; it passes over biases, positions, Gemma's caps, the width of
Qwen 3's heads and the names of GPT-2's options."""


def foreign_model(name: str, **more: Any) -> Any:
    """A model of transformers with random weights, norms and biases among them."""
    transformers = pytest.importorskip("transformers")
    kind, options = MODELS[name]
    if kind == "Gemma3":
        config = transformers.Gemma3TextConfig(**{**options, **more})
        model = transformers.Gemma3ForCausalLM(config)
    else:
        config = getattr(transformers, f"{kind}Config")(**{**options, **more})
        model = getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.15)
    return model.eval()


def file_of(model: Any, path: Path, change: Any = lambda tensors: tensors) -> Path:
    values = values_of(model.config)
    architecture = {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)
    return write_gguf(path, architecture, values, change(tensors_of(model)))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    model = foreign_model(name)
    path = file_of(model, tmp_path / FILE)
    tokens = torch.randint(90, (2, 50), generator=torch.Generator().manual_seed(1))
    decoder = decoder_of(path)
    with torch.no_grad():
        size = float(model(tokens).logits.abs().max())
    # Gemma's norms lose some bits where one was added to them and taken away again
    assert same_logits(model, decoder, tokens) < 2e-5 * max(size, 1.0)
    assert decoder.config.tie_word_embeddings is model.config.tie_word_embeddings


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_from_a_quantized_file(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    kind = gguf.GGMLQuantizationType.Q4_1 if name == "llama" else gguf.GGMLQuantizationType.Q8_0

    def quantized(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            each: (gguf.quantize(array, kind), kind.name) if array.ndim == 2 and array.shape[1] % 32 == 0 else array
            for each, array in tensors.items()
        }

    path = file_of(foreign_model(name, intermediate_size=64), tmp_path / FILE, quantized)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, dtype=torch.float32)
    tokens = torch.randint(90, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        size = float(theirs(tokens).logits.abs().max())
    assert same_logits(theirs, decoder_of(path), tokens) < 2e-5 * max(size, 1.0)


def test_a_head_that_is_the_embedding_once_more(tmp_path: Path) -> None:
    """llama.cpp's files of GPT-2 have it twice."""
    model = foreign_model("gpt2")
    path = file_of(model, tmp_path / FILE, lambda found: {**found, "output.weight": found["token_embd.weight"]})
    assert decoder_of(path).config.tie_word_embeddings
    other = file_of(
        model, tmp_path / "other.gguf", lambda found: {**found, "output.weight": -found["token_embd.weight"]}
    )
    assert not decoder_of(other).config.tie_word_embeddings


@pytest.mark.parametrize(
    ("low", "high", "original", "width"), [(1.0, 4.0, 8192, 32), (1.0, 4.0, 32, 32), (0.3, 2.0, 128, 64)]
)
def test_llama3_positions_are_found_from_the_factors(
    low: float, high: float, original: int, width: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    scaling = {"type": "llama3", "factor": 8.0, "low_freq_factor": low, "high_freq_factor": high}
    scaling["original_max_position_embeddings"] = original
    base = 500000.0 if original == 8192 else 500.0
    model = random_decoder(small(rope_scaling=scaling, head_dim=width, rope_theta=base, max_position_embeddings=256))
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, "F32")
    read, _ = load_model_folder(tmp_path / FILE)
    tokens = random_tokens(model.config, 1, 200)
    with torch.no_grad():
        expected, found = model(tokens), read(tokens)
        model.load_state_dict(random_decoder(model.config).state_dict())
        plain = random_decoder(small(head_dim=width, rope_theta=base, max_position_embeddings=256))(tokens)
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    assert float((plain - expected).abs().max()) > 0.1 * float(expected.abs().max())
    if (low, high) == (1.0, 4.0):
        assert torch.equal(found, expected)


def test_factors_of_another_kind_are_refused(tmp_path: Path) -> None:
    model = foreign_model("llama")
    factors = np.array([1.0, 5.0, 2.0, 8.0], dtype="f4")
    path = file_of(model, tmp_path / FILE, lambda found: {**found, "rope_freqs.weight": factors})
    with pytest.raises(UserError, match=r"factors that are not those of Llama 3"):
        read_model_config(path)


def test_ends_of_a_text_are_those_of_the_file(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizer = Tokenizer.load(save_foreign_tokenizer("llama3", tmp_path / "tokenizer"))
    tokenizer = tokenizer.extended(["<|eot_id|>", "<|eom_id|>"])
    model = random_decoder(small(vocab_size=410))
    ends = [tokenizer.special_ids[name] for name in ("</s>", "<|eot_id|>", "<|eom_id|>")]
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, "F16", ends)
    found = load_model_folder(tmp_path / FILE)[1]
    assert stop_token_ids(tmp_path / FILE, found) == ends
    assert (found.rule_ids, found.begin_id) == (tokenizer.rule_ids, tokenizer.begin_id)
    assert found.chat_template == tokenizer.chat_template
    settings = generation_settings(found, tmp_path / FILE)
    assert settings.ids["eos_token_id"] == ends and settings.ids["bos_token_id"] == tokenizer.begin_id
    save_model_folder(tmp_path / "folder", model.config, model.state_dict(), found, settings=settings)
    assert stop_token_ids(tmp_path / "folder", Tokenizer.load(tmp_path / "folder")) == ends
