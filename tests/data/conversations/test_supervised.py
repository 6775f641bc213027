"""Batches of conversations: what is learned, packed and alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from chat_templates import OPEN_THOUGHTS
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from random_decoder import random_decoder
from test_rows import learned, make, talk, write_rows

from lit_llm.config import UserError
from lit_llm.data.conversations.encoded_rows import padded_width
from lit_llm.data.conversations.reading import RowPlace
from lit_llm.data.conversations.supervised import ConversationItems
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer

IGNORED = -100


def items_of(
    lengths: list[int], sequence_length: int, seed: int | None, masks: list[list[bool]] | None = None
) -> ConversationItems:
    """Conversations of distinct ids: text n has 100 n, 100 n + 1, ..."""
    ids = [np.arange(length) + 100 * (text + 1) for text, length in enumerate(lengths)]
    supervised = [np.array(mask) for mask in masks] if masks else [np.arange(length) > 0 for length in lengths]
    places = [RowPlace("f", text) for text in range(len(lengths))]
    return ConversationItems(places, ids, supervised, sequence_length, pad_id=0, seed=seed)


def test_a_batch_by_hand() -> None:
    masks = [[False, False, True, True], [False, True, False], [False, False, False, True, True]]
    alone = items_of([4, 3, 5], 16, None, masks)
    assert [len(alone), *map(alone.rows_of, range(3))] == [3, [0], [1], [2]]
    batch = alone.batch([1, 0, -1])
    assert set(batch) == {"tokens", "targets"}
    pad, no = [0] * 5, [IGNORED] * 5
    assert batch["tokens"].tolist() == [[200, 201, 0, *pad], [100, 101, 102, *pad], [0, 0, 0, *pad]]
    assert batch["targets"].tolist() == [[201, -100, -100, *no], [-100, 102, 103, *no], [-100, -100, -100, *no]]
    packed = items_of([4, 3, 5], 9, 0, masks)
    assert [len(packed), packed.rows_of(0)] == [1, [2, 0, 1]]
    batch = packed.batch([0, -1])
    assert batch["tokens"].tolist() == [[300, 301, 302, 303, 100, 101, 102, 200, 201], [0] * 9]
    assert batch["targets"].tolist() == [[-100, -100, 303, 304, -100, 102, 103, 201, -100], [-100] * 9]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2], [0] * 9]
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert packed.batch([-1])["tokens"].shape == (1, 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 13), min_size=1, max_size=40), st.integers(12, 40), st.integers(0, 3))
def test_packs_hold_every_token_once_and_targets_stay_inside(lengths: list[int], width: int, seed: int) -> None:
    items = items_of(lengths, width, seed)
    assert sorted(row for item in range(len(items)) for row in items.rows_of(item)) == list(range(len(lengths)))
    batch = items.batch(range(len(items)))
    tokens, targets, documents = batch["tokens"], batch["targets"], batch["document_ids"]
    assert tokens.shape[1] <= width
    assert sorted(tokens[tokens > 0].tolist()) == sorted(
        i for ids in map(items.ids, range(len(lengths))) for i in ids[:-1]
    )
    assert (targets[tokens > 0] == tokens[tokens > 0] + 1).all()
    assert (targets[tokens == 0] == IGNORED).all()
    for line in range(len(items)):
        # A document id is one text's, or the padding's, and documents come one after another.
        texts = [set((tokens[line][documents[line] == each] // 100).tolist()) for each in documents[line].unique()]
        assert all(len(each) == 1 for each in texts)
        assert (documents[line].diff() >= 0).all()
        assert (documents[line].diff() <= 1).all()


def test_packed_and_alone_learn_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [talk(f"ask {n}" * (n % 4 + 1), *[f"reply {n}"] * (n % 3 + 1)) for n in range(30)]
    path = write_rows(tmp_path / "talks.jsonl", rows)
    model = random_decoder(tiny_model(max_position_embeddings=200))
    found: list[Counter[int]] = []
    losses = []
    for packing in (True, False):
        data = make(path, tokenizer, packing=packing, sequence_length=200)
        batch = data.train_dataset.__getitems__(range(data.num_samples))
        assert ("document_ids" in batch) == packing
        found.append(Counter(target for row in learned(batch) for target in row))
        with torch.no_grad():
            logits = model(batch["tokens"], document_ids=batch.get("document_ids"))
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
        )
        if packing:
            assert data.num_samples < 20
            assert data.statistics_lines()[-1].startswith(f"packing: {data.num_samples} rows of a batch, ")
    assert found[0] == found[1]
    assert found[0][tokenizer.im_end_id] == sum(n % 3 + 1 for n in range(30))
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


def test_the_answers_and_their_ends_are_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "talks.jsonl", [talk("hello", "first<|endoftext|>", "second")])
    data = make(path, tokenizer)
    (row,) = learned(data.train_dataset[0])
    assert tokenizer.decode(row) == "first<|endoftext|><|im_end|>second<|im_end|>"
    assert tokenizer.eot_id not in row
    ((_, ids, supervised),) = data.example()
    assert tuple(index for index, mask in zip(ids, supervised, strict=True) if mask) == row
    # What comes after the last answer's end, a newline, teaches nothing.
    assert ids[-1] == tokenizer.im_end_id
    assert (
        ids
        == data.chat.render(
            [Message(m["role"], m["content"]) for m in talk("hello", "first<|endoftext|>", "second")["messages"]]
        ).ids[:-1]
    )
    everything = make(path, tokenizer, supervise="all")
    (row,) = learned(everything.train_dataset[0])
    assert row == (*ids[1:], *tokenizer.encode("\n"))


def weighted(*weights: int | None) -> dict[str, Any]:
    """A conversation of user and assistant in turn, whose messages have weights."""
    row = talk("ask", "WRONG", "GOOD")
    for message, weight in zip(row["messages"], weights, strict=True):
        if weight is not None:
            message["weight"] = weight
    return row


@pytest.mark.parametrize("packing", [False, True])
def test_a_turn_of_no_weight_is_read_and_not_learned(tmp_path: Path, tokenizer: Tokenizer, packing: bool) -> None:
    rows = [weighted(None, 0, None, 1), weighted(0, 0, 0, 1), weighted(None, 1, None, 0), talk("ask", "WRONG", "GOOD")]
    path = write_rows(tmp_path / "talks.jsonl", [*rows, *[talk("ask", "it")] * 6, weighted(None, 0, None, 0)])
    data = make(path, tokenizer, packing=packing, max_dropped_share=0.1)
    items = data.items("train")
    both = "WRONG<|im_end|>GOOD<|im_end|>"
    for row, words in enumerate(["GOOD<|im_end|>", "GOOD<|im_end|>", "WRONG<|im_end|>", both]):
        ids, supervised = items.ids(row), items.supervised(row)
        assert tokenizer.decode([index for index, kept in zip(ids, supervised, strict=True) if kept]) == words
        assert "WRONG" in tokenizer.decode(ids)
    # a conversation of which nothing is learned is left out, and counted
    assert data.num_rows == 10 and "1 without a token to learn" in data.statistics_lines()[1]


def test_weights_where_all_is_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "talks.jsonl", [weighted(1, 0, None, 1)])
    data = make(path, tokenizer, supervise="all")
    ((_, ids, supervised),) = data.example()
    unlearned = [index for index, kept in zip(ids[1:], supervised[1:], strict=True) if not kept]
    assert tokenizer.decode(unlearned) == "WRONG<|im_end|>"
    for supervise, weights, message in (
        ("assistant", (1, 0, None, 1), "message 1, the user's, is to be learned by its weight"),
        ("all", (None, None, 0, None), "message 3, the user's, is not to be learned by its weight"),
    ):
        path = write_rows(tmp_path / "talks.jsonl", [weighted(*weights)])
        with pytest.raises(UserError, match=rf"talks.jsonl, row 1: {message}"):
            make(path, tokenizer, supervise=supervise).setup("fit")


WITH_ALL = (
    "{% if tools %}<|im_start|>{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}({{ m.reasoning_content }}) {% endif %}{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("extra", "written", "refusal"),
    [
        ({"tools": [{"name": "find"}]}, '[{"name": "find"}]<|im_end|>', "the conversation has tools, which the chat"),
        ({"reasoning_content": "so"}, "(so) b<|im_end|>", "message 2, an assistant's, has reasoning_content, which"),
        ({"tool_calls": [{"f": 1}]}, 'b[{"f": 1}]<|im_end|>', "message 2, an assistant's, has tool_calls, which"),
    ],
)
def test_what_rows_have_besides_is_written_or_refused_with_its_row(
    extra: dict[str, Any], written: str, refusal: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    row = talk("a", "b")
    (row if "tools" in extra else row["messages"][1]).update(extra)
    row["messages"][0]["name"] = "Bob"
    path = write_rows(tmp_path / "talks.jsonl", [talk("q", "r"), {**row, "id": 7}])
    data = make(path, templated(tokenizer, WITH_ALL))
    assert written in tokenizer.decode(data.items("train").ids(1))
    unread = "data.paths: columns that are not read, with the rows that have them: id (1), name of messages (1)"
    assert data.statistics_lines()[1:2] == [unread]
    with pytest.raises(UserError, match=f"talks.jsonl, row 2: {refusal}"):
        make(path, tokenizer).setup("fit")


def templated(tokenizer: Tokenizer, template: str) -> Tokenizer:
    state = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.state))
    return Tokenizer(state, {"chat_template": template, "eos_token": "<|im_end|>"})


def test_rows_that_say_that_they_are_not_learned_are_no_fault(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "talks.jsonl", [{**talk(f"q{n}", "b"), "weight": int(n == 0)} for n in range(4)])
    data = make(path, tokenizer)
    assert data.num_rows == 1
    assert data.statistics_lines()[1] == (
        "data.paths: 3 of 4 rows left out (75.0%): 3 not to be learned by their weight, train or loss"
    )


def test_reasoning_of_earlier_turns_that_is_left_out_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    thought = "<think>\nso\n</think>\n\nb"
    rows = [talk("a", thought, "c", "d"), talk("a", "b", "c", "d"), talk("a", "b")]
    path = write_rows(tmp_path / "talks.jsonl", rows)
    line = "data.paths: rows with reasoning in earlier turns, which the chat template leaves out there: 1"
    opens = (
        "the chat template asks for answers with '<think>\\n' and does not write that before the answers of rows, "
        "which are learned without it"
    )
    for name, said in (("last thought", [line]), ("no thought", [line, opens])):
        data = make(path, templated(tokenizer, OPEN_THOUGHTS[name]), sequence_length=128)
        assert data.num_rows == 3 and data.statistics_lines()[1:] == said
        ((_, ids, supervised),) = data.example()
        kept = tokenizer.decode(index for index, keep in zip(ids, supervised, strict=True) if keep)
        assert kept.startswith("b<|im_end|>") and kept.endswith("d<|im_end|>") and "so" not in tokenizer.decode(ids)
    assert make(path, tokenizer, sequence_length=128).statistics_lines()[1:] == []  # ours leaves nothing out


@pytest.mark.parametrize("packing", [False, True])
def test_the_padding_token_decides_nothing(tmp_path: Path, tokenizer: Tokenizer, packing: bool) -> None:
    path = write_rows(tmp_path / "talks.jsonl", [talk(f"q{n}", "word " * n) for n in range(1, 9)])
    options: dict[str, Any] = {"packing": packing, "sequence_length": 48}
    batches = []
    for pad_id in (tokenizer.pad_id, tokenizer.im_end_id):
        data = make(path, tokenizer, **options)
        data.pad_id = pad_id
        batches.append(data.train_dataset.__getitems__(range(data.num_samples)))
    assert torch.equal(batches[0]["targets"], batches[1]["targets"])
    assert not torch.equal(batches[0]["tokens"], batches[1]["tokens"])
    assert int((batches[0]["targets"] == tokenizer.im_end_id).sum()) == 8


def test_a_conversation_of_one_token_more_than_the_inputs_fits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "talks.jsonl", [talk("question", "answer")])
    length = len(make(path, tokenizer).example()[0][1])
    batch = make(path, tokenizer, sequence_length=length - 1).train_dataset[0]
    assert batch["tokens"].shape == (1, length - 1)
    with pytest.raises(UserError, match=r"100.0% of 1 rows are left out"):
        make(path, tokenizer, sequence_length=length - 2).setup("fit")
    cut = make(path, tokenizer, sequence_length=length - 2, too_long="truncate")
    assert tokenizer.decode(learned(cut.train_dataset[0])[0]) == "answer"


def test_widths() -> None:
    assert [padded_width(n, 30) for n in (1, 8, 9, 24, 25, 30)] == [8, 8, 16, 24, 30, 30]


def test_a_tokenizer_without_chat_tokens_is_an_error(tmp_path: Path, shared_data: Path) -> None:
    path = write_rows(tmp_path / "talks.jsonl", [talk("question", "answer")])
    gpt2 = Tokenizer.from_gpt2_files(shared_data / "gpt2" / "vocab.json", shared_data / "gpt2" / "merges.txt")
    with pytest.raises(UserError, match=r"data.add_chat_tokens"):
        make(path, gpt2)


def test_real_instructions(shared_data: Path, tokenizer: Tokenizer) -> None:
    data = make(
        str(shared_data / "instructions.json"), tokenizer, sequence_length=512, packing=True, validation_fraction=0.05
    )
    validation = len(data.items("validation").places)
    assert 25 <= validation <= 80
    assert data.num_rows + validation == 1000
    items = data.items("train")
    assert items.fill()[0] > 0.97 > 0.5 > items.fill()[1]
    batch = data.train_dataset.__getitems__(range(data.num_samples))
    ends = int((batch["targets"] == tokenizer.im_end_id).sum())
    assert ends == data.num_rows
    place, text = data.train_dataset.describe(0, tokenizer)
    assert place.count("instructions.json, row") == text.count("assistant\n") > 1
    assert len(data.prompts(3)) == 3
    assert ChatFormat(tokenizer).render_prompt(data.prompts(1)[0])
