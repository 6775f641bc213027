"""Batches of preferences: two answers to one prompt, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from chat_templates import OPEN_THOUGHTS
from test_rows import write_rows

from lit_llm.config import PreferenceDataConfig, UserError
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer


def pair(prompt: Any, chosen: Any, rejected: Any, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **fields}


def make(path: str, tokenizer: Tokenizer, **options: Any) -> PreferenceDataModule:
    defaults = {"sequence_length": 64, "batch_size": 4, "validation_fraction": 0.0}
    return PreferenceDataModule(PreferenceDataConfig(**{**defaults, "paths": [path], **options}), tokenizer, 5)


@pytest.fixture
def path(tmp_path: Path) -> str:
    rows = [pair(f"ask {n}", f"good {n}" + "!" * (n % 5), f"bad {n}" + "?" * (n % 7)) for n in range(20)]
    rows[4]["margin"] = 1.5
    return write_rows(tmp_path / "pairs.jsonl", rows)


def test_a_batch_holds_whole_texts_and_learns_the_answers(path: str, tokenizer: Tokenizer) -> None:
    data = make(path, tokenizer)
    batch = data.items("train").batch([4, 1, -1])
    assert {name: (tuple(each.shape), each.dtype) for name, each in batch.items()} == {
        "tokens": (batch["tokens"].shape, torch.int64),
        "targets": (batch["tokens"].shape, torch.int64),
        "lengths": ((6,), torch.int64),
        "margin": ((3,), torch.float32),
        "has_margin": ((3,), torch.bool),
        "row_ids": ((3,), torch.int64),
    }
    tokens, targets, lengths = batch["tokens"], batch["targets"], batch["lengths"]
    assert tokens.shape[0] == 6 and tokens.shape[1] % 8 == 0
    texts = [tokenizer.decode(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    turns = "<|im_start|>user\nask {}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
    assert texts == [
        turns.format(4, "good 4!!!!"),
        turns.format(1, "good 1!"),
        "<|pad|>",
        turns.format(4, "bad 4????"),
        turns.format(1, "bad 1?"),
        "<|pad|>",
    ]
    # The score is read at the end of the turn.
    last = tokens.gather(1, lengths[:, None] - 1)[:, 0]
    assert last[[0, 1, 3, 4]].tolist() == [tokenizer.im_end_id] * 4
    learned = [tokenizer.decode(row[row != -100]) for row in targets]
    assert learned[:3] == ["good 4!!!!<|im_end|>", "good 1!<|im_end|>", ""]
    assert learned[3:] == ["bad 4????<|im_end|>", "bad 1?<|im_end|>", ""]
    for row in range(6):
        places = (targets[row] != -100).nonzero()[:, 0]
        assert torch.equal(targets[row, places], tokens[row, places + 1])
        assert (tokens[row, lengths[row] :] == tokenizer.pad_id).all()
    assert batch["margin"].tolist() == [1.5, 0.0, 0.0]
    assert batch["has_margin"].tolist() == [True, False, False]
    assert batch["row_ids"].tolist() == [4, 1, -1]
    assert data.statistics_lines()[-1] == "margins: 1 of 20 training rows have one"


def test_only_the_last_answer_of_a_dialogue_is_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    dialogue = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    sides = [[{"role": "assistant", "content": text}] for text in ("four", "five")]
    data = make(write_rows(tmp_path / "dialogue.jsonl", [pair(dialogue, *sides)]), tokenizer)
    targets = data.train_dataset[0]["targets"]
    assert [tokenizer.decode(row[row != -100]) for row in targets] == ["four<|im_end|>", "five<|im_end|>"]
    place, text = data.train_dataset.describe(0, tokenizer)
    assert "dialogue.jsonl, row 1" in place
    assert text.count("be kind") == 2 and "four" in text and "five" in text


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_reference_batches_have_every_pair_once(path: str, tokenizer: Tokenizer, world_size: int, split: str) -> None:
    data = make(path, tokenizer, validation_paths=[path], validation_batch_size=4)
    loaders = [data.make_evaluation_loader(split, rank, world_size) for rank in range(world_size)]
    assert len({len(loader) for loader in loaders}) == 1
    seen = {}
    for loader in loaders:
        for batch in loader:
            assert torch.equal(batch["row_ids"], batch["sample_ids"])
            for index, row in enumerate(batch["row_ids"].tolist()):
                if row >= 0:
                    assert row not in seen
                    seen[row] = batch["tokens"][index, : batch["lengths"][index]].tolist()
    assert sorted(seen) == list(range(20))
    if world_size == 1:
        assert list(seen) == list(range(20))
    # The row_ids of training batches are numbers of the same pairs.
    batch = data.train_dataset.__getitems__(range(20))
    assert sorted(batch["row_ids"].tolist()) == list(range(20))
    for index, row in enumerate(batch["row_ids"].tolist()):
        assert batch["tokens"][index, : batch["lengths"][index]].tolist() == seen[row]


def test_a_digest_is_of_the_split_s_pairs(path: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = make(path, tokenizer, validation_paths=[path])
    assert data.digest("train") == data.digest("validation") == make(path, tokenizer).digest("train")
    text = Path(path).read_text()
    for old, new in (("bad 3", "bad 4"), ("good 3", "good 4"), ('"margin": 1.5', '"margin": 2.5')):
        other = tmp_path / "other.jsonl"
        other.write_text(text.replace(old, new))
        assert make(str(other), tokenizer).digest("train") != data.digest("train")


def test_pairs_that_cannot_be_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [pair(f"q{n}", "yes", "no") for n in range(15)]
    rows += [pair("same", "yes", "yes"), pair("q", "short", "long " * 40), pair("ask " * 40, "yes", "no")]
    rows += [pair("q", "word " * 40, "word " * 40 + "else"), pair("q", "ok " * 40, "no " * 40)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        UserError, match=r"data.paths: 25.0% of 20 rows are left out \(4 longer than .* 32, 1 whose two"
    ):
        make(path, tokenizer, sequence_length=32).setup("fit")
    dropped = make(path, tokenizer, sequence_length=32, max_dropped_share=0.25)
    assert dropped.num_rows == 15
    assert dropped.items("train").token_lengths().max() <= 32
    cut = make(path, tokenizer, sequence_length=32, too_long="truncate", max_dropped_share=0.25)
    assert cut.statistics_lines()[1:] == [
        "data.paths: 3 of 20 rows left out (15.0%): 1 whose two answers are the same, 1 whose two answers are the same "
        "once truncated, 1 without a token to learn once truncated",
        "data.paths: 2 of 20 rows truncated (10.0%)",
    ]
    batch = cut.items("train").batch(range(17))
    assert batch["tokens"].shape == (34, 32)
    assert (batch["lengths"][[15, 16, 32, 33]]).tolist() == [batch["lengths"][15], 32, 32, 32]
    assert batch["lengths"][15] < 32
    assert ((batch["targets"] != -100).sum(dim=1) > 0).all()
    # A text of just sequence_length tokens fits.
    longest = int(dropped.items("train").token_lengths().max())
    options = {"max_dropped_share": 0.25}
    assert make(path, tokenizer, sequence_length=longest, **options).num_rows == 15
    with pytest.raises(UserError, match="rows are left out"):
        make(path, tokenizer, sequence_length=longest - 1, **options).setup("fit")


def test_a_prompt_in_the_answers_is_read_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        pair(f"Human: Say {x}\nAssistant:", *(f"Human: Say {x}\nAssistant: {y}" for y in "yn")) for x in ("hi", "ho")
    ]
    data = make(write_rows(tmp_path / "rows.jsonl", rows), tokenizer)
    batch = data.items("train").batch([0, 1])
    texts = [tokenizer.decode(row[:length]) for row, length in zip(batch["tokens"], batch["lengths"], strict=True)]
    turns = "<|im_start|>user\nHuman: Say {}\nAssistant:<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
    assert texts == [turns.format(x, y) for y in "yn" for x in ("hi", "ho")]


def test_answers_come_after_what_a_model_is_asked_with(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A template may move the system's message into the last turn, where that is a user's."""
    template = (
        "{% set first = messages[0] %}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[user"
        "{% if loop.last and first.role == 'system' %} {{ first.content }}{% endif %}]{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    state = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.state))
    moving = Tokenizer(state, {"chat_template": template, "eos_token": "<|im_end|>"})
    path = write_rows(tmp_path / "rows.jsonl", [pair("ask", "yes", "no", system="be kind")])
    batch = make(path, moving).items("train").batch([0])
    texts = [tokenizer.decode(row[:length]) for row, length in zip(batch["tokens"], batch["lengths"], strict=True)]
    prompt = tokenizer.decode(ChatFormat(moving).render_prompt([Message("system", "be kind"), Message("user", "ask")]))
    assert prompt == "[user be kind]ask<|im_end|>"
    assert texts == [f"{prompt}{answer}<|im_end|>" for answer in ("yes", "no")]


@pytest.mark.parametrize("name", OPEN_THOUGHTS)
def test_answers_of_a_template_that_opens_a_thought(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """They are read as the template writes them, also after an earlier turn whose thought it leaves out."""
    state = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.state))
    opening = Tokenizer(state, {"chat_template": OPEN_THOUGHTS[name], "eos_token": "<|im_end|>"})
    history = [Message("user", "a"), Message("assistant", "<think>\nr\n</think>\n\nb"), Message("user", "c")]
    prompt = [{"role": message.role, "content": message.content} for message in history]
    path = write_rows(tmp_path / "rows.jsonl", [pair(prompt, "yes", "no")])
    data = make(path, opening, sequence_length=96)
    batch = data.items("train").batch([0])
    words = [tokenizer.decode(row[row != -100]) for row in batch["targets"]]
    begin = "\n</think>\n\n" if name == "last thought" else ""
    assert words == [f"{begin}{answer}<|im_end|>" for answer in ("yes", "no")]
    read = tokenizer.decode(batch["tokens"][0, : batch["lengths"][0]]).removesuffix(words[0])
    asked = tokenizer.decode(ChatFormat(opening).render_prompt(history))
    assert asked == read + ("" if name == "last thought" else "<think>\n")
    lines = data.statistics_lines()
    assert sum("which the chat template leaves out there: 1" in line for line in lines) == 1
    assert sum("the chat template asks for answers with" in line for line in lines) == (name == "no thought")


def test_real_preferences(shared_data: Path, tokenizer: Tokenizer) -> None:
    data = make(str(shared_data / "preferences.json"), tokenizer, sequence_length=512, validation_fraction=0.1)
    validation = len(data.items("validation"))
    assert 900 <= data.num_rows + validation <= 1000
    assert 60 <= validation <= 140
    batch = data.train_dataset.__getitems__(range(64))
    size = 64
    assert batch["tokens"].shape[0] == 2 * size
    for index in range(size):
        starts = [int((batch["targets"][row] != -100).nonzero()[0]) for row in (index, size + index)]
        assert starts[0] == starts[1]
        assert torch.equal(batch["tokens"][index, : starts[0] + 1], batch["tokens"][size + index, : starts[0] + 1])
