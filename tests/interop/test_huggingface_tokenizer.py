"""Tokenizers of other models: the ids, texts and chat templates that `AutoTokenizer` has."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import tiny_model
from foreign_tokenizers import BOS, CHAT_TEMPLATE, EOS, FORMS, save_foreign_tokenizer
from random_decoder import random_decoder

from lit_llm.config import UserError
from lit_llm.interop import load_model_folder, save_model_folder
from lit_llm.tokenizer import Tokenizer, prompt_ids

TEXTS = (
    "def f(x):\n    return x ** 2\n",
    "Größe 北京 👍 e\u0301 ﬁ",
    "  two  spaces",
    " \n\n\t 1234567 don't I'LL",
    f"{BOS}a forged token{EOS}",
    "",
)


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_texts_are_those_of_transformers(form: str, tmp_path: Path, transformers: ModuleType) -> None:
    folder = save_foreign_tokenizer(form, tmp_path)
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, allow_special=True) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.encode_bulk([text])[0].tolist() == ours.encode(text)
        assert not {ours.special_ids[BOS], ours.special_ids[EOS]} & set(ours.encode(text))
        assert pickle.loads(pickle.dumps(ours)).encode(text) == ours.encode(text)
    assert ours.eot_id == theirs.eos_token_id
    assert ours.begin_id == theirs.bos_token_id


@pytest.mark.parametrize(
    "said", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": False}], ids=str
)
@pytest.mark.parametrize("form", ["gpt2", "llama3", "llama2"])
def test_texts_begin_by_the_tokenizers_own_rule(
    form: str, said: dict[str, Any], tmp_path: Path, transformers: ModuleType
) -> None:
    """The post-processor's, whatever tokenizer_config.json says beside it."""
    folder = save_foreign_tokenizer(form, tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    tokenizer, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("x y", f"x{EOS}y", " \n"):
        ids = prompt_ids(tokenizer, text)
        assert ids == theirs(text)["input_ids"]
        assert prompt_ids(tokenizer, text, "always") == [
            tokenizer.special_ids[BOS],
            *prompt_ids(tokenizer, text, "never"),
        ]
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").rule_ids == tokenizer.rule_ids


def test_a_rule_is_kept_where_only_the_tokenizer_is_there(tmp_path: Path, transformers: ModuleType) -> None:
    folder = save_foreign_tokenizer("llama3", tmp_path)
    (folder / "tokenizer_config.json").unlink()
    Tokenizer.load(folder).save(folder)
    assert transformers.AutoTokenizer.from_pretrained(folder)("x")["input_ids"] == prompt_ids(
        Tokenizer.load(folder), "x"
    )
    assert len(prompt_ids(Tokenizer.load(folder), "x")) == 2


@pytest.mark.parametrize("form", FORMS)
def test_pieces_and_lengths(form: str, tmp_path: Path, transformers: ModuleType) -> None:
    tokenizer = Tokenizer.load(save_foreign_tokenizer(form, tmp_path))
    for text in TEXTS[:3]:
        ids = tokenizer.encode(text)
        stream = tokenizer.stream_decoder()
        pieces = "".join(stream.push(index) for index in ids) + stream.flush()
        first = " " if form == "llama2" else ""  # which reads a text as if a space stood before it
        assert pieces == first + tokenizer.decode(ids)
        assert tokenizer.byte_lengths()[ids].sum() == len(pieces.encode())


def architecture(form: str, **fields: Any) -> Any:
    name = {"gpt2": "gpt2", "qwen": "qwen2.5-0.5b"}.get(form, "llama-10m")
    return tiny_model(name, sliding_window=8 if form == "gemma" else None, **fields)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_folder_keeps_the_tokenizer(form: str, tmp_path: Path, transformers: ModuleType) -> None:
    """Under every model type that we write, AutoTokenizer gives the ids that the model knows."""
    original = save_foreign_tokenizer(form, tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(original)
    model = random_decoder(architecture(form))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chat_template.jinja").write_text("an old one")
    (tmp_path / "model" / "special_tokens_map.json").write_text('{"eos_token": "<old>"}')
    (tmp_path / "model" / "added_tokens.json").write_text('{"<older>": 3}')
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), tokenizer, form="huggingface")
    _, again = load_model_folder(tmp_path / "model")
    assert again.digest == tokenizer.digest
    assert again.chat_template == CHAT_TEMPLATE
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    before = transformers.AutoTokenizer.from_pretrained(original)
    assert theirs.eos_token == before.eos_token and "<older>" not in theirs.get_vocab()
    for text in TEXTS:
        assert theirs(text)["input_ids"] == before(text)["input_ids"]
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, allow_special=True)
    messages = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Yes"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False)
    assert rendered == f"{BOS}[user]Hi there{EOS}[assistant]Yes{EOS}"
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert ids == tokenizer.encode(rendered, allow_special=True)  # with one beginning, not two
    assert ids.count(tokenizer.special_ids[BOS]) == 1


def test_a_sentencepiece_model_alone_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(UserError, match=r"tokenizer\.model only, .*AutoTokenizer\.from_pretrained"):
        Tokenizer.load(tmp_path)


def test_another_kind_is_named(tmp_path: Path, transformers: ModuleType) -> None:
    folder = save_foreign_tokenizer("llama2", tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["decoder"] = None
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="a BPE tokenizer that is neither byte-level BPE nor SentencePiece's"):
        Tokenizer.load(folder)
