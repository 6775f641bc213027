"""Model folders: what is saved is what is loaded, and what is wrong is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from safetensors.torch import load_file, save_file

from lit_llm.config import ModelConfig, UserError
from lit_llm.interop import load_model_folder, load_weights, read_model_config, save_model_folder, stop_token_ids
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama-10m", {}),
    "untied": ("llama-10m", {"tie_word_embeddings": False, "rope_scaling": YARN}),
    "padded": ("gpt2", {"vocab_size": 390, "pad_vocab_to_multiple_of": 64}),
    "modern": ("modern-1m", {}),
    "transformer-2017": ("transformer-2017", {}),
}


def save(folder: Path, model: Decoder, tokenizer: Tokenizer) -> Path:
    save_model_folder(folder, model.config, model.state_dict(), tokenizer)
    return folder


MODEL_TYPES = {"tied": "llama", "untied": "llama", "padded": "gpt2"}  # the others are our own


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A small tied model."""
    return save(tmp_path / "model", random_decoder(tiny_model("llama-10m")), tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_the_saved_one(name: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Tokenizer) -> None:
    architecture, fields = MODELS[name]
    model = random_decoder(tiny_model(architecture, **fields)).to(dtype)
    folder = save(tmp_path / "a" / "b", model, tokenizer)
    assert json.loads((folder / "config.json").read_text())["model_type"] == MODEL_TYPES.get(name, "lit_llm")
    loaded, loaded_tokenizer = load_model_folder(folder)
    assert loaded.config == model.config
    assert loaded_tokenizer.digest == tokenizer.digest
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for key, tensor in before.items():
        assert after[key].dtype == dtype
        assert tensor.shape == after[key].shape
        # rows that pad the vocabulary are not stored
        rows = model.config.vocab_size if key in ("embedding.weight", "head.weight") else None
        assert torch.equal(tensor[:rows], after[key][:rows]), key
    tokens = random_tokens(model.config, 2, 16)
    assert torch.equal(model(tokens), loaded(tokens))
    # and it can be trained on
    loaded(tokens).float().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    assert (loaded.head.weight is loaded.embedding.weight) == model.config.tie_word_embeddings


def test_files_of_a_model_folder(saved: Path, tokenizer: Tokenizer) -> None:
    assert {path.name for path in saved.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not [path.name for path in saved.iterdir() if path.name.startswith(".")]
    config = json.loads((saved / "config.json").read_text())
    assert (config["model_type"], config["dtype"], config["hidden_size"]) == ("llama", "float32", 32)
    generation = json.loads((saved / "generation_config.json").read_text())
    ends = [tokenizer.eot_id, tokenizer.im_end_id]
    assert generation == {"bos_token_id": ends[0], "eos_token_id": ends, "pad_token_id": tokenizer.pad_id}
    assert stop_token_ids(saved, tokenizer) == ends


def test_a_tied_head_is_not_stored(saved: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    stored = load_file(saved / "model.safetensors")
    assert EMBEDDING in stored
    assert "lm_head.weight" not in stored
    untied = save(tmp_path / "untied", random_decoder(tiny_model("llama-10m", tie_word_embeddings=False)), tokenizer)
    assert "lm_head.weight" in load_file(untied / "model.safetensors")


def test_saving_again_replaces_the_weights(saved: Path, tokenizer: Tokenizer) -> None:
    other = random_decoder(tiny_model("llama-10m", hidden_size=48), seed=5)
    save(saved, other, tokenizer)
    loaded, _ = load_model_folder(str(saved))
    assert loaded.config.hidden_size == 48
    assert torch.equal(loaded.embedding.weight, other.embedding.weight)


def test_weights_are_converted_when_asked(saved: Path) -> None:
    stored = load_file(saved / "model.safetensors")
    model, _ = load_model_folder(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.embedding.weight, stored[EMBEDDING].bfloat16())
    assert model.head.weight is model.embedding.weight


def test_transformers_reads_the_tokenizer(saved: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(saved)
    automatic = transformers.AutoTokenizer.from_pretrained(saved)
    for text in ("def f(x):\n    return x ** 2\n", "Größe 北京 👍", "  two  spaces"):
        assert theirs(text)["input_ids"] == automatic(text)["input_ids"] == tokenizer.encode(text)
        assert automatic.decode(tokenizer.encode(text)) == text
    assert automatic.eos_token_id == tokenizer.eot_id
    assert automatic.pad_token_id == tokenizer.pad_id


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return damage


def edit_config(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


EMBEDDING, Q_PROJ = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"is not a model folder: it has no config\.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json"),
    "half a config": (cut("config.json", 40), r"config\.json is not valid JSON"),
    "an empty config": (cut("config.json", 0), r"config\.json is not valid JSON"),
    "a config of bytes": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json is not"),
    "a config that is a list": (lambda folder: (folder / "config.json").write_text("[1]"), r"config\.json is not"),
    "a foreign model": (edit_config(model_type="bert"), r"model_type 'bert'; only lit_llm, gpt2, llama, "),
    "an unknown option": (edit_config(num_experts=8), r"config\.json: the option num_experts "),
    "a number as text": (
        edit_config(num_hidden_layers="2"),
        r"config\.json: model\.num_layers is '2'; it must be a whole number",
    ),
    "an impossible option": (
        edit_config(num_attention_heads=5, head_dim=None),
        r"config\.json: model\.hidden_size 32 does not divide by model\.num_heads 5",
    ),
    "another shape": (edit_config(intermediate_size=96), r"of another shape .*up_proj\.weight"),
    "more layers": (edit_config(num_hidden_layers=3), r"missing model\.layers\.2\."),
    "fewer layers": (edit_config(num_hidden_layers=1), r"unexpected model\.layers\.1\."),
    "a weight missing": (edit_weights(lambda weights: weights.pop(Q_PROJ)), rf"missing {Q_PROJ}$"),
    "the embedding missing": (
        edit_weights(lambda weights: weights.pop(EMBEDDING)),
        rf"missing {EMBEDDING}$",
    ),
    "a weight extra": (edit_weights(lambda weights: weights.update(extra=torch.ones(2))), r"unexpected extra$"),
    "a weight turned": (
        edit_weights(lambda weights: weights.update({Q_PROJ: torch.ones(16, 64)})),
        rf"of another shape {Q_PROJ}$",
    ),
    "weights cut short": (cut("model.safetensors", 5000), r"model\.safetensors cannot be read"),
    "empty weights": (cut("model.safetensors", 0), r"model\.safetensors cannot be read"),
    "weights that are text": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 3),
        r"model\.safetensors cannot be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(name: str, saved: Path) -> None:
    damage, message = DAMAGE[name]
    damage(saved)
    with pytest.raises(UserError, match=message) as error:
        load_model_folder(saved)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_folder_that_is_not_there_or_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a model folder"):
        read_model_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere is not a model folder"):
        load_weights(tmp_path / "nowhere", tiny_model())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the model folder .*file"):
        save(tmp_path / "file", random_decoder(tiny_model()), tokenizer)


def test_many_missing_weights_are_not_all_listed(saved: Path) -> None:
    edit_config(num_hidden_layers=40)(saved)
    with pytest.raises(UserError) as error:
        load_model_folder(saved)
    assert str(error.value).endswith("...")
    assert len(str(error.value)) < 500


def test_weights_of_another_configuration_fit_where_the_shapes_do(saved: Path) -> None:
    """A run may start from a folder with other dropout."""
    config = ModelConfig(**{**vars(read_model_config(saved)), "dropout": 0.3})
    model = Decoder(config)
    model.load_state_dict(load_weights(saved, config))
    assert torch.equal(model.embedding.weight, load_file(saved / "model.safetensors")[EMBEDDING])
