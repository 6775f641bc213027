"""Batches of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_rows import write_rows

from lit_llm.config import PromptDataConfig, UserError
from lit_llm.data.conversations.prompts import PromptDataModule
from lit_llm.tokenizer import Tokenizer


def make(path: str, tokenizer: Tokenizer, **options: Any) -> PromptDataModule:
    defaults = {"sequence_length": 64, "batch_size": 4, "validation_fraction": 0.0}
    return PromptDataModule(PromptDataConfig(**{**defaults, "paths": [path], **options}), tokenizer, 5)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"{n} + 1 =", "answer": n + 1} for n in range(10)])


def test_prompts_ask_for_an_answer_and_keep_their_fields(path: str, tokenizer: Tokenizer) -> None:
    data = make(path, tokenizer)
    batch = data.train_dataset.__getitems__(range(10))
    assert sorted(batch) == ["fields", "prompts", "sample_ids"]
    assert batch["sample_ids"].tolist() == list(range(10))
    numbers = [fields["answer"] - 1 for fields in batch["fields"]]
    assert sorted(numbers) == list(range(10))
    turns = "<|im_start|>user\n{} + 1 =<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.decode(ids) for ids in batch["prompts"]] == [turns.format(n) for n in numbers]
    ((_, ids, supervised),) = data.example()
    assert tokenizer.decode(ids) == turns.format(0)
    assert supervised == [False] * len(ids)


def test_filler_is_a_prompt_without_a_number(path: str, tokenizer: Tokenizer) -> None:
    data = make(path, tokenizer, validation_paths=[path], validation_batch_size=2)
    batches = [batch for rank in range(3) for batch in data.make_evaluation_loader("validation", rank, 3)]
    ids = [each for batch in batches for each in batch["sample_ids"].tolist()]
    assert sorted(ids) == [-1, -1, *range(10)]
    for batch in batches:
        assert all(batch["prompts"])
        for sample, fields in zip(batch["sample_ids"].tolist(), batch["fields"], strict=True):
            assert fields["answer"] == max(sample, 0) + 1


def test_a_long_prompt_loses_its_beginning(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"prompt": f"q{n}"} for n in range(19)] + [{"prompt": "first " + "so " * 60 + "last"}]
    path = write_rows(tmp_path / "prompts.jsonl", rows)
    assert make(path, tokenizer, sequence_length=24).num_rows == 19
    cut = make(path, tokenizer, sequence_length=24, too_long="truncate")
    assert cut.num_rows == 20
    ids = cut.items("train").ids(19)
    assert len(ids) == 23
    assert tokenizer.decode(ids).endswith("so last<|im_end|>\n<|im_start|>assistant\n")
    assert "first" not in tokenizer.decode(ids)
    assert cut.statistics_lines()[1] == "data.paths: 1 of 20 rows truncated (5.0%)"
    # A prompt leaves room for one token.
    length = len(cut.items("train").ids(0))
    short = write_rows(tmp_path / "short.jsonl", rows[:3])
    assert make(short, tokenizer, sequence_length=length + 1).num_rows == 3
    with pytest.raises(UserError, match=r"100.0% of 3 rows are left out"):
        make(short, tokenizer, sequence_length=length).setup("fit")
    with pytest.raises(UserError, match=r"100.0% of 3 rows are left out"):
        make(short, tokenizer, sequence_length=1, too_long="truncate").setup("fit")


def test_equal_prompts_are_kept_and_fields_are_in_the_fingerprint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    paths = [
        write_rows(tmp_path / f"{answer}.jsonl", [{"prompt": "q", "answer": answer}] * 4) for answer in ("yes", "no")
    ]
    first, second = (make(path, tokenizer) for path in paths)
    assert first.num_samples == 4
    with pytest.raises(UserError, match="the tokenised training rows"):
        second.load_state_dict(first.state_dict())
