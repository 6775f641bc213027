"""What the stages after pretraining print of their rows before they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_llm.config import ConversationDataConfig, PreferenceDataConfig, PromptDataConfig
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.data.conversations.prompts import PromptDataModule
from lit_llm.data.conversations.supervised import ConversationDataModule
from lit_llm.stages.post_training import show_data
from lit_llm.tokenizer import Tokenizer, train_character

PROMPT = "<|im_start|>user\nwhat is two?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("kind", "config", "row", "shown"),
    [
        (
            PreferenceDataModule,
            PreferenceDataConfig,
            {"prompt": "what is two?", "chosen": "one and one", "rejected": "three"},
            [
                ("an example, chosen; what is learned is green", "one and one<|im_end|>", "32"),
                ("an example, rejected; what is learned is red", "three<|im_end|>", "31"),
            ],
        ),
        (
            ConversationDataModule,
            ConversationDataConfig,
            {"question": "what is two?", "answer": "a number"},
            [("an example; what is learned is green", "a number<|im_end|>", "32")],
        ),
        (PromptDataModule, PromptDataConfig, {"prompt": "what is two?"}, [("an example", "", "")]),
    ],
)
def test_an_example_is_shown_with_what_is_learned_in_colour(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    config: Any,
    row: dict[str, str],
    shown: list[tuple[str, str, str]],
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    tokenizer: Tokenizer = train_character(["abc"], show_progress=False)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = config(paths=[str(tmp_path / "rows.jsonl")], validation_fraction=0.0, sequence_length=200)
    data = kind(options, tokenizer, 0)
    data.setup("fit")
    capsys.readouterr()
    show_data(data, tokenizer)
    lines = capsys.readouterr().err.splitlines()
    headings = [line for line in lines if "an example" in line]
    assert [line.strip("\x1b[0123456789m─ ") for line in headings] == [heading for heading, _, _ in shown]
    texts = [line for line in lines[lines.index(headings[0]) : -1] if line not in headings]
    dim = "".join(f"\x1b[2m{line}\x1b[0m\n" for line in PROMPT.splitlines())
    coloured = [f"\x1b[{colour}m{answer}\x1b[0m" if answer else "" for _, answer, colour in shown]
    assert "\n".join(texts) == "\n".join(dim + answer for answer in coloured)
    for name in ("FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name)
    show_data(data, tokenizer)
    plain = capsys.readouterr().err
    assert "\x1b" not in plain and "green" not in plain and "red" not in plain.replace("rendered", "")
    for heading, answer, _ in shown:
        assert f"{heading.partition(';')[0]}; what is learned is between >> and <<" in plain or not answer
        assert f"{PROMPT}>>{answer}<<\n" in plain or not answer


def test_no_order_to_the_terminal_comes_from_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    row = {"question": "a\x1b[2Jb", "answer": "\x1b]0;owned\x07c\x9b", "note\x1b[8m": "d"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = ConversationDataConfig(paths=[str(tmp_path / "rows.jsonl")], validation_fraction=0.0, sequence_length=200)
    tokenizer: Tokenizer = train_character(["abc"], show_progress=False)
    data = ConversationDataModule(options, tokenizer, 0)
    data.setup("fit")
    capsys.readouterr()
    show_data(data, tokenizer)
    printed = capsys.readouterr().err
    assert "a\u241b[2Jb" in printed and ">>\u241b]0;owned\u2407c\ufffd<|im_end|><<" in printed
    assert "note\u241b[8m (1)" in printed and not set("\x1b\x07\x9b") & set(printed)
