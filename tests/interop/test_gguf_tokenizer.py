"""Tokenizers in GGUF files: the ids of where they come from, on texts of many scripts."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers
from foreign_tokenizers import BOS, EOS, FORMS, save_foreign_tokenizer
from gguf_files import write_gguf
from tokenizers import pre_tokenizers

from lit_llm.config import UserError
from lit_llm.interop import load_tokenizer
from lit_llm.interop.gguf_reading.pre_tokenizers import SPLITTINGS, name_of_splitting
from lit_llm.interop.gguf_reading.scores import merges_of_scores
from lit_llm.tokenizer import Tokenizer

pytest.importorskip("gguf")
pytest.importorskip("transformers")
FEW = 300

RANGES = [
    *((0x61, 0x7B), (0x41, 0x5B), (0x30, 0x3A), (0x20, 0x40), (0x00C0, 0x0180)),  # Latin, digits, marks
    *((0x0370, 0x0400), (0x0400, 0x0500), (0x0530, 0x0590), (0x0590, 0x0600), (0x0600, 0x0700)),
    *((0x0900, 0x0980), (0x0E00, 0x0E7F), (0x10A0, 0x1100), (0x1100, 0x1200), (0x0300, 0x0370)),
    *((0x3040, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAD00), (0x1F300, 0x1F650), (0x2000, 0x2070), (0x10000, 0x10100)),
]
WORDS = ["def", "return", "self", "the", "and", "is", "don't", "I'LL", "we've", "3.14", "2026", "+=", "**", "(", '"']
WORDS += ["", "\t", "\n", "\n\n", "\r\n"]


@cache
def texts(count: int) -> list[str]:
    """Texts of words, lines, code and runs of characters of one or several scripts, always the same."""
    random = Random(0)
    made = []
    for _ in range(count):
        parts = []
        for _ in range(random.randrange(1, 12)):
            if random.random() < 0.4:
                parts.append(random.choice(WORDS))
            else:
                low, high = random.choice(RANGES)
                parts.append("".join(chr(random.randrange(low, high)) for _ in range(random.randrange(1, 9))))
            parts.append(random.choice(["", " ", " ", "  ", "\n"]))
        made.append("".join(parts))
    return made


def smollm(lines: Any) -> tokenizers.Tokenizer:
    digits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = FORMS["gpt2"](lines)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(digits)
    return tokenizer


FORMS.setdefault("smollm", smollm)


def described(tokenizer: Tokenizer, **more: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a tokenizer; the score of a token is that of the merge that makes it."""
    state = tokenizer.state
    size = tokenizer.vocab_size
    special = set(tokenizer.special_ids.values())
    tokens, types, scores = [""] * size, [1] * size, [-1e6] * size
    for token, index in state["model"]["vocab"].items():
        tokens[index] = token
        types[index] = 6 if token.startswith("<0x") else 1
    for added in state["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if added["id"] in special else 4
    values: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    ids = {"bos": tokenizer.special_ids[BOS], "eos": tokenizer.special_ids[EOS]}
    if tokenizer.kind == "bpe":
        values["tokenizer.ggml.model"] = "gpt2"
        values["tokenizer.ggml.pre"] = name_of_splitting(state)
        values["tokenizer.ggml.merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
    else:
        for rank, pair in enumerate(state["model"]["merges"]):
            scores[tokens.index("".join(pair))] = -float(rank)
        values |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
        values["tokenizer.ggml.add_space_prefix"] = "Prepend" in json.dumps(state["normalizer"])
        ids["unknown"] = state["model"]["vocab"]["<unk>"]
    values |= {f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items()}
    values["tokenizer.ggml.add_bos_token"] = bool(tokenizer.rule_ids)
    values["tokenizer.chat_template"] = tokenizer.chat_template
    return {**values, **more}


def pair_of(form: str, folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and the one of a GGUF file that describes it."""
    ours = Tokenizer.load(save_foreign_tokenizer(form, folder / "tokenizer"))
    architecture = "gemma2" if form == "gemma" else "llama"
    write_gguf(folder / "model.gguf", architecture, described(ours), {})
    return ours, load_tokenizer(folder / "model.gguf")


def differing(one: Tokenizer, other: Tokenizer, count: int) -> list[str]:
    found = []
    for text, first, second in zip(
        texts(count), one.encode_bulk(texts(count)), other.encode_bulk(texts(count)), strict=True
    ):
        if first.tolist() != second.tolist():
            found.append(text)
    return found


@pytest.mark.parametrize("count", [FEW, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["gpt2", "smollm", "llama3", "qwen", "llama2", "gemma"])
def test_the_same_ids(form: str, count: int, tmp_path: Path) -> None:
    ours, read = pair_of(form, tmp_path)
    assert differing(ours, read, count) == []
    assert read.kind == ours.kind
    assert (read.rule_ids, read.begin_id, read.special_ids) == (ours.rule_ids, ours.begin_id, ours.special_ids)
    assert read.named_tokens["eos_token"] == EOS and read.chat_template == ours.chat_template
    for text in texts(50):
        ids = ours.encode(f"{text}{EOS}{text}", allow_special=True)
        assert read.encode(f"{text}{EOS}{text}", allow_special=True) == ids
        assert read.decode(ids) == ours.decode(ids)
        assert read.encode_further(text) == ours.encode_further(text)


def test_the_check_sees_another_split(tmp_path: Path) -> None:
    ours, _ = pair_of("smollm", tmp_path)
    write_gguf(tmp_path / "other.gguf", "llama", described(ours, **{"tokenizer.ggml.pre": "gpt-2"}), {})
    assert len(differing(ours, load_tokenizer(tmp_path / "other.gguf"), FEW)) > 0


@pytest.mark.parametrize("form", ["llama3", "qwen", "gpt2"])
def test_transformers_reads_the_same_ids(form: str, tmp_path: Path) -> None:
    import transformers

    _, read = pair_of(form, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in texts(FEW):
        text = unicodedata.normalize("NFC", text)  # transformers leaves out that Qwen's tokenizer does so
        assert theirs(text, add_special_tokens=False)["input_ids"] == read.encode(text)


def test_the_reader_and_the_writer_share_their_names(tmp_path: Path) -> None:
    for form, name in (("gpt2", "gpt-2"), ("smollm", "smollm"), ("llama3", "llama-bpe"), ("qwen", "qwen2")):
        tokenizer = Tokenizer.load(save_foreign_tokenizer(form, tmp_path / form))
        assert name_of_splitting(tokenizer.state) == name
    for splitting in SPLITTINGS.values():
        normalizer = splitting.normal_form and {"type": splitting.normal_form}
        state = {"pre_tokenizer": splitting.pre_tokenizer(), "normalizer": normalizer}
        assert SPLITTINGS[str(name_of_splitting(state))].pre_tokenizer() == splitting.pre_tokenizer()


def test_tokens_are_added_and_begin_where_the_file_says(tmp_path: Path) -> None:
    ours, _ = pair_of("llama3", tmp_path)
    values = described(ours)
    del values["tokenizer.ggml.add_bos_token"]
    write_gguf(tmp_path / "a.gguf", "llama", values, {})
    assert load_tokenizer(tmp_path / "a.gguf").rule_ids == [ours.special_ids[BOS]]  # as Llama 3's do
    values |= {"tokenizer.ggml.pre": "gpt-2"}
    write_gguf(tmp_path / "b.gguf", "llama", values, {})
    assert load_tokenizer(tmp_path / "b.gguf").rule_ids == []
    write_gguf(tmp_path / "c.gguf", "llama", {**values, "tokenizer.ggml.add_eos_token": True}, {})
    read = load_tokenizer(tmp_path / "c.gguf")
    read.save(tmp_path / "c")
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "c" / "tokenizer.json")).encode("x").ids
    assert (read.rule_ids, whole) == ([], [*ours.encode("x"), ours.special_ids[EOS]])


def test_tokens_that_name_rows_without_a_token_are_none(tmp_path: Path) -> None:
    ours, _ = pair_of("gpt2", tmp_path)
    values = described(ours)
    size = ours.vocab_size
    values["tokenizer.ggml.tokens"] += [f"[PAD{size}]", f"[PAD{size + 1}]"]
    values["tokenizer.ggml.token_type"] += [5, 5]
    write_gguf(tmp_path / "a.gguf", "llama", values, {})
    assert load_tokenizer(tmp_path / "a.gguf").vocab_size == size


def test_gemma_joins_in_the_order_of_its_tokens() -> None:
    vocabulary = {token: index for index, token in enumerate(("abc", "ab", "bc", "a", "b", "c"))}
    tokens = [("abc", 0.0), ("ab", -1.0), ("bc", -2.0)]
    assert merges_of_scores(vocabulary, tokens) == [["ab", "c"], ["a", "bc"], ["a", "b"], ["b", "c"]]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"tokenizer.ggml.model": "bert"}, "a tokenizer of kind 'bert'; what is read is gpt2"),
    "splitting": ({"tokenizer.ggml.pre": "mystery"}, r"\(tokenizer.ggml.pre\) is 'mystery'; what is read is gpt-2"),
    "no splitting": ({"tokenizer.ggml.pre": None}, r"\(tokenizer.ggml.pre\) is None"),
    "merges": ({"tokenizer.ggml.merges": ["a b c"]}, "the merge 'a b c' is not of two tokens"),
    "merges of strangers": ({"tokenizer.ggml.merges": ["qqq zzz"]}, "not a tokenizer"),
    "types": ({"tokenizer.ggml.token_type": [1]}, "tokens, and 1 in tokenizer.ggml.token_type"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "has no tokenizer"),
    "numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is no list of str"),
    "a role": ({"tokenizer.ggml.bos_token_id": 99999}, "bos_token_id is 99999, and there are"),
    "a switch": ({"tokenizer.ggml.add_bos_token": 3}, "add_bos_token is 3, not true or false"),
    "template": ({"tokenizer.chat_template": 5}, "chat_template is 5; it must be text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    changes, message = BROKEN[name]
    ours = Tokenizer.load(save_foreign_tokenizer("gpt2", tmp_path / "tokenizer"))
    values = {key: value for key, value in described(ours, **changes).items() if value is not None}
    write_gguf(tmp_path / "model.gguf", "llama", values, {})
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path / "model.gguf")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
