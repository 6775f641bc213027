"""Tokenizer files that a stranger made to hang or fill a process: one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_llm.config import UserError
from lit_llm.tokenizer import Tokenizer, train_bpe
from lit_llm.tokenizer.patterns import MOST_CHARACTERS, MOST_PATTERNS, patterns_of


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["the dog and the cat " * 9], 262, show_progress=False).save(folder)
    return (folder / "tokenizer.json").read_text()


Change = Callable[[dict[str, Any]], Any]


def load(folder: Path, state: str, change: Change = lambda values: None, **settings: Any) -> Tokenizer:
    values = json.loads(state)
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.load(folder)


def split(*patterns: str) -> Change:
    def change(values: dict[str, Any]) -> None:
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in patterns
        ]
        spelled = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, spelled]}

    return change


def refused(message: str, folder: Path, state: str, change: Change = lambda values: None, **settings: Any) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(folder, state, change, **settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_usual_and_quadratic_patterns_are_taken(tmp_path: Path, state: str) -> None:
    words = r"\p{N}{1,3}| ?\p{L}+|\s+$|\s+| ?[^\s\p{L}\p{N}]+"
    tokenizer = load(tmp_path, state, split(words))
    assert tokenizer.decode(tokenizer.encode("the dog 12345\n ")) == "the dog 12345\n "


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(foo|fo+)+$", r"(?:\w+\s?)+[.]|(\w+\s?)+$"])
def test_patterns_that_explode_are_refused(pattern: str, tmp_path: Path, state: str) -> None:
    refused("takes a time that explodes with the length of a text", tmp_path, state, split(r"\p{L}+", pattern))


def test_patterns_anywhere_are_looked_at(tmp_path: Path, state: str) -> None:
    def normalized(values: dict[str, Any]) -> None:
        replace = {"type": "Replace", "pattern": {"Regex": "(b+)+$"}, "content": ""}
        values["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]}

    refused(r"the regular expression '\(b\+\)\+\$' takes a time", tmp_path, state, normalized)
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}]}
    assert list(patterns_of({"decoder": decoder})) == ["x"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["["], r"the regular expression '\[' is broken \(premature end of char-class\); correct it"),
        (["a" * (MOST_CHARACTERS + 1)], "1 regular expressions of up to 4001 characters; there may be"),
        ([f"a{index}" for index in range(MOST_PATTERNS + 1)], "33 regular expressions of up to 3 characters"),
    ],
)
def test_patterns_that_are_broken_long_or_many(patterns: list[str], message: str, tmp_path: Path, state: str) -> None:
    refused(message, tmp_path, state, split(*patterns))


def added(count: int, first: int = 1000) -> Change:
    def change(values: dict[str, Any]) -> None:
        token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        values["added_tokens"] += [{**token, "id": first + n, "content": f"<|{n}|>"} for n in range(count)]

    return change


def begins_with(index: int) -> Change:
    def change(values: dict[str, Any]) -> None:
        values["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"x": {"id": "x", "ids": [index], "tokens": ["x"]}},
        }

    return change


def replaced(*path: str, value: Any) -> Change:
    def change(values: dict[str, Any]) -> None:
        for name in path[:-1]:
            values = values[name]
        values[path[-1]] = value

    return change


STATES: dict[str, tuple[Change, str]] = {
    "too many added tokens": (added(100_000), "100,004 added tokens; there may be 100,000"),
    "an id of four thousand million": (
        replaced("model", value={"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}),
        "a token has the id 4294967295; ids must be below 16,777,216",
    ),
    "an id of 2^62": (replaced("model", "vocab", value={"a": 2**62}), "not a tokenizer"),
    "an id below none": (replaced("model", "vocab", value={"a": -1}), "not a tokenizer"),
    "a beginning that is no token": (begins_with(2**31), r"post_processor adds the ids \[2147483648\]"),
    "a pattern that is a number": (
        replaced("normalizer", value={"type": "Replace", "pattern": {"Regex": 5}, "content": ""}),
        "a regular expression is 5; it must be text",
    ),
    "tokens that are a number": (replaced("added_tokens", value=5), "not a tokenizer"),
    "a model that is a list": (replaced("model", value=[1]), "not a tokenizer"),
    "merges of nothing": (replaced("model", "merges", value=[["x", "yy"]]), "not a tokenizer"),
}


@pytest.mark.parametrize("name", STATES)
def test_states_that_are_too_large_or_of_another_type(name: str, tmp_path: Path, state: str) -> None:
    change, message = STATES[name]
    refused(message, tmp_path, state, change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token": 5}, "eos_token is 5; it must be the text of a token"),
        ({"pad_token": ["<|pad|>"]}, "pad_token is .*; it must be the text of a token"),
        ({"bos_token": {"content": [1]}}, "bos_token is .*; it must be the text of a token"),
        ({"chat_template": 5}, "chat_template is 5; it must be text, or a list of texts, each with a name"),
        ({"chat_template": [{"name": "default"}]}, "chat_template is .*; it must be text, or a list"),
        ({"chat_template": {"default": "x"}}, "chat_template is .*; it must be text, or a list"),
        ({"added_tokens_decoder": [1]}, r"added_tokens_decoder is \[1\]; it must be a group of tokens"),
    ],
)
def test_settings_of_another_type(settings: dict[str, Any], message: str, tmp_path: Path, state: str) -> None:
    refused(message, tmp_path, state, **settings)


def test_a_failure_of_the_library_on_a_text_is_an_error(tmp_path: Path, state: str) -> None:
    """Where an expression that exploded was not found out, a text ends in a line and not in a panic."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = load(tmp_path, state)
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("(a+)+$"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    with pytest.raises(UserError, match=r"the tokenizer fails on this text .*retry-limit"):
        tokenizer.encode("a" * 60 + "!")
