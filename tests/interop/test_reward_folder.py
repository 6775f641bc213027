"""Folders of reward models: transformers gives the same scores; and reward models begin as language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import largest_difference, random_decoder, random_tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_llm.cli.commands import COMMANDS
from lit_llm.cli.generate import generate
from lit_llm.config import ExportConfig, GenerateConfig, ModelConfig, UserError
from lit_llm.interop import (
    iterate_weights,
    load_model_folder,
    load_weights,
    read_model_config,
    save_model_folder,
    why_remote_code,
    without_value_head,
)
from lit_llm.interop.families import FAMILIES
from lit_llm.model import Decoder, last_scores
from lit_llm.tokenizer import Tokenizer

export = COMMANDS["export"].run

LENGTHS = torch.tensor([5, 12, 1, 9])
PRESETS_OF = {
    "gpt2": "gpt2",
    "llama": "llama-10m",
    "mistral": "mistral-7b",
    "qwen2": "qwen2.5-0.5b",
    "qwen3": "qwen3-0.6b",
    "olmo2": "olmo2-1b",
    "gemma2": "gemma2-2b",
    "gemma3_text": "gemma3-1b",
}


def save(folder: Path, model: Decoder, tokenizer: Tokenizer, **options: Any) -> Path:
    save_model_folder(folder, model.config, model.state_dict(), tokenizer, **options)
    return folder


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def rewrite_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def ragged(config: ModelConfig, pad: int) -> tuple[Tensor, Tensor]:
    """Texts of LENGTHS, padded on the right, and the mask of their tokens."""
    tokens = random_tokens(config, 4, 12)
    attended = torch.arange(12) < LENGTHS.unsqueeze(1)
    tokens[tokens == pad] = pad - 1
    return tokens.masked_fill(~attended, pad), attended


@torch.no_grad()
def our_scores(model: Decoder, tokens: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    scores: Tensor = model(tokens, head=lambda hidden, head: last_scores(hidden, head, lengths))
    return scores


@torch.no_grad()
def their_scores(model: Any, tokens: Tensor, attended: Tensor) -> Tensor:
    scores: Tensor = model(tokens, attention_mask=attended.long()).logits
    assert scores.shape == (4, 1)
    return scores[:, 0].float()


def qwen_tokenizer(folder: Path) -> Tokenizer:
    """Of Qwen2's form, with a padding token."""
    save_foreign_tokenizer("qwen", folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "<s>"}))
    return Tokenizer.load(folder)


@pytest.fixture
def reward(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A small reward model in Llama's form."""
    return save(tmp_path / "reward", random_decoder(tiny_model("llama-10m").as_score()), tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_our_scores(family: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    if family == "qwen2":
        tokenizer = qwen_tokenizer(tmp_path / "tokenizer")
    window = {} if tiny_model(PRESETS_OF[family]).sliding_window is None else {"sliding_window": 4}
    language = tiny_model(PRESETS_OF[family], **window)
    model = random_decoder(language.as_score(), std=0.1)
    folder = tmp_path / "model"
    assert save_model_folder(folder, model.config, model.state_dict(), tokenizer) == family
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        output_loading_info=True,
        attn_implementation="eager",  # in some versions the default one leaves a soft cap of the scores out
    )
    assert not any(report.values()), report
    assert type(theirs).__name__.endswith("ForSequenceClassification")
    assert (theirs.config.num_labels, theirs.config.pad_token_id) == (1, tokenizer.pad_id)
    tokens, attended = ragged(model.config, tokenizer.pad_id or 0)
    expected = their_scores(theirs, tokens, attended)
    assert expected.std() > 0.05
    torch.testing.assert_close(our_scores(model, tokens), expected, atol=1e-5, rtol=0)
    # which the score at any other token would not be
    for lengths in (LENGTHS - 1, torch.full((4,), 12)):
        other = our_scores(model, tokens, lengths.clamp(min=1))
        assert (other - expected).abs().max() > 0.05

    loaded, _ = load_model_folder(folder)
    assert read_model_config(folder) == loaded.config
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert torch.equal(our_scores(loaded, tokens), our_scores(model, tokens))


THEIR_OPTIONS: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 2, "use_sliding_window": False},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "GPT2": {},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", THEIR_OPTIONS)
def test_we_give_the_scores_of_transformers(name: str, tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = save_foreign_tokenizer("llama3", tmp_path / "theirs")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        **({} if name == "GPT2" else {"intermediate_size": 64, "max_position_embeddings": 64}),
        **THEIR_OPTIONS[name],
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=399,
        bos_token_id=380,
        eos_token_id=381,
        num_labels=1,
    )
    kind = getattr(transformers, f"{name}ForSequenceClassification")
    kind(config).to(dtype).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is tied
    model, _ = load_model_folder(folder, dtype=torch.float32)
    assert model.config.output == "score"
    assert not model.config.tie_word_embeddings
    tokens, attended = ragged(model.config, 399)
    expected = their_scores(kind.from_pretrained(folder, dtype=torch.float32), tokens, attended)
    torch.testing.assert_close(our_scores(model, tokens), expected, atol=1e-5, rtol=0)
    if dtype == torch.bfloat16:  # whose arithmetic is no worse here than there
        loaded, _ = load_model_folder(folder)
        assert loaded.head.weight.dtype == dtype
        in_dtype = their_scores(kind.from_pretrained(folder, dtype=dtype), tokens, attended)
        assert largest_difference(our_scores(loaded, tokens), expected) < 2 * largest_difference(in_dtype, expected)


@pytest.mark.parametrize("name", ["llama-10m", "modern-1m"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_our_own_form(name: str, dtype: torch.dtype | None, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_decoder(tiny_model(name).as_score())
    folder = save(tmp_path / "model", model, tokenizer, form="lit_llm", dtype=dtype)
    assert read_model_config(folder) == model.config
    loaded, _ = load_model_folder(folder)
    assert_same(dict(loaded.state_dict()), dict(model.to(dtype or torch.float32).state_dict()))
    values = json.loads((folder / "config.json").read_text())
    assert values["output"] == "score"
    # a folder without these fields, as they were written before, is of a language model
    language = save(tmp_path / "language", random_decoder(tiny_model(name)), tokenizer, form="lit_llm")
    values = json.loads((language / "config.json").read_text())
    del values["output"], values["value_head"]
    (language / "config.json").write_text(json.dumps(values))
    assert read_model_config(language) == tiny_model(name)


@pytest.mark.parametrize("form", ["huggingface", "lit_llm"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_begins_as_a_language_model(tied: bool, form: Any, tmp_path: Path, tokenizer: Tokenizer) -> None:
    language = random_decoder(tiny_model("llama-10m", tie_word_embeddings=tied, pad_vocab_to_multiple_of=64))
    folder = save(tmp_path / "language", language, tokenizer, form=form)
    model = Decoder(read_model_config(folder).as_score(), seed=3).eval()
    drawn = model.head.weight.detach().clone()
    weights = load_weights(folder, model.config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["head.weight"], [])
    assert torch.equal(model.head.weight, drawn)
    tokens = random_tokens(language.config, 2, 12)
    hidden = language(tokens, head=lambda hidden, head: hidden)
    assert torch.equal(model(tokens, head=lambda hidden, head: hidden), hidden)

    # every other weight is still asked for
    damaged = load_file(folder / "model.safetensors")
    del damaged[next(name for name in damaged if "up_proj" in name)]
    save_file(damaged, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing .*up_proj"):
        load_weights(folder, model.config)


def test_a_critic_begins_as_the_reward_model(reward: Path) -> None:
    config = read_model_config(reward)
    assert_same(load_weights(reward, config), dict(load_model_folder(reward)[0].state_dict()))


def test_a_value_head_comes_and_goes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = tiny_model("llama-10m", value_head=True)
    model = random_decoder(config)
    folder = tmp_path / "critic"
    assert save_model_folder(folder, config, model.state_dict(), tokenizer) == "lit_llm"
    assert read_model_config(folder) == config
    loaded, _ = load_model_folder(folder)
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    with pytest.raises(UserError, match="no place for a value head"):
        save(tmp_path / "no", model, tokenizer, form="huggingface")

    # without it: written for transformers, and read for another stage
    plain, weights = without_value_head(config, model.state_dict())
    assert plain == tiny_model("llama-10m")
    assert save_model_folder(tmp_path / "plain", plain, weights, tokenizer, form="huggingface") == "llama"
    assert_same(load_weights(tmp_path / "plain", plain), weights)
    assert_same(load_weights(folder, plain), weights)
    trunk = {name: weight for name, weight in weights.items() if name != "head.weight"}
    assert_same(load_weights(folder, config.as_score()), trunk)

    # a policy begins without one, and keeps what it has drawn
    assert_same(load_weights(tmp_path / "plain", config), weights)


def test_a_reward_model_is_no_language_model(reward: Path, tmp_path: Path) -> None:
    language = tiny_model("llama-10m")
    for config in (language, tiny_model("llama-10m", tie_word_embeddings=False, value_head=True)):
        with pytest.raises(UserError, match=rf"{reward} is a reward model \(it has no output head\); give a language"):
            iterate_weights(reward, config)
    with pytest.raises(UserError, match=f"{reward} is a reward model: it gives scores, not text"):
        generate(GenerateConfig(str(reward), ["def "]))
    with pytest.raises(UserError, match="a reward model is not written as GGUF"):
        export(ExportConfig(str(reward), str(tmp_path / "gguf"), format="gguf"))
    with pytest.raises(UserError, match="it gives scores, not text"):
        export(ExportConfig(str(reward), str(tmp_path / "int8"), quantize="int8"))


@pytest.mark.parametrize("labels", [{"0": "good", "1": "bad"}, None])
def test_several_labels_are_refused(labels: dict[str, str] | None, reward: Path) -> None:
    rewrite_config(reward, id2label=labels)
    with pytest.raises(UserError, match="a classifier with num_labels 2 is not supported; only reward models"):
        read_model_config(reward)
    rewrite_config(reward, num_labels=1)
    assert read_model_config(reward).output == "score"


def test_transformers_needs_a_padding_token_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = random_decoder(tiny_model("llama-10m").as_score())
    folder = save_foreign_tokenizer("llama3", tmp_path / "tokenizer")
    settings = folder / "tokenizer_config.json"
    for pad in (None, "</s>"):  # which ends a text
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": pad}))
        tokenizer = Tokenizer.load(folder)
        reason = why_remote_code(model.config, tokenizer)
        assert "no padding token of its own; set pad_token in its tokenizer_config.json" in (reason or "")
        assert save_model_folder(tmp_path / "ours", model.config, model.state_dict(), tokenizer) == "lit_llm"
        assert json.loads((tmp_path / "ours" / "config.json").read_text())["pad_token_id"] is None
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "<s>"}))
    fixed = Tokenizer.load(folder)
    assert save_model_folder(tmp_path / "model", model.config, model.state_dict(), fixed) == "llama"


def test_from_folder_to_folder(reward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(ExportConfig(str(reward), str(tmp_path / "same")))
    assert capsys.readouterr().out == f"model folder  {tmp_path / 'same'} ({reward})\n"
    assert_same(load_file(reward / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors"))
    assert read_model_config(tmp_path / "same") == read_model_config(reward)
