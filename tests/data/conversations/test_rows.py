"""What every stage's rows have in common: splits, counts, order, ranks, workers, resume."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_batches import Recorder, trainer_for

from lit_llm.config import ConversationDataConfig, PreferenceDataConfig, PromptDataConfig, UserError
from lit_llm.data.conversations.data_module import opening_share
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.data.conversations.prompts import PromptDataModule
from lit_llm.data.conversations.supervised import ConversationDataModule
from lit_llm.tokenizer import Message, Tokenizer


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talk(question: str, *answers: str) -> dict[str, Any]:
    """A row: a question, answered, and for each further answer "go on"."""
    messages = [{"role": "user", "content": question}]
    for answer in answers:
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": "go on"})
    return {"messages": messages[:-1]}


def write_talks(path: Path, count: int = 40) -> str:
    """Conversations of different lengths, with distinct questions."""
    return write_rows(path, [talk(f"question {n}?", f"answer {n}" + "!" * (n % 9)) for n in range(count)])


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write_talks(tmp_path / "talks.jsonl")


def make(path: str | list[str], tokenizer: Tokenizer, **options: Any) -> ConversationDataModule:
    seed = options.pop("seed", 5)
    defaults = {"sequence_length": 64, "batch_size": 4, "validation_fraction": 0.0, "packing": False}
    paths = [path] if isinstance(path, str) else path
    return ConversationDataModule(ConversationDataConfig(**{**defaults, "paths": paths, **options}), tokenizer, seed)


def learned(batch: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """For each sample of a batch, its targets without padding."""
    return [tuple(row[row != -100].tolist()) for row in batch["targets"]]


def steps_of(data: ConversationDataModule, world_size: int, num_steps: int) -> list[dict[int, tuple[int, ...]]]:
    """For each optimizer step, sample id -> what is learned of it, over all ranks and micro-batches."""
    steps: list[dict[int, tuple[int, ...]]] = [{} for _ in range(num_steps)]
    for rank in range(world_size):
        sampler = data.train_sampler(rank, world_size, num_steps)
        for index, batch in enumerate(data.make_train_loader(sampler)):
            step = steps[index // sampler.accumulate_grad_batches]
            step.update(zip(batch["sample_ids"].tolist(), learned(batch), strict=True))
    return steps


@pytest.mark.parametrize("packing", [False, True])
def test_steps_depend_on_neither_ranks_nor_micro_batches_nor_workers(
    path: str, tokenizer: Tokenizer, packing: bool
) -> None:
    expected = steps_of(make(path, tokenizer, packing=packing), 1, 12)
    assert [sorted(step) for step in expected] == [list(range(4 * k, 4 * k + 4)) for k in range(12)]
    for world_size, micro in ((2, None), (2, 1), (4, None), (1, 2)):
        assert steps_of(make(path, tokenizer, packing=packing, micro_batch_size=micro), world_size, 12) == expected
    assert steps_of(make(path, tokenizer, packing=packing, num_workers=1), 2, 12) == expected
    assert steps_of(make(path, tokenizer, packing=packing, seed=6), 1, 12) != expected


def test_each_epoch_has_every_row_once(path: str, tokenizer: Tokenizer) -> None:
    data = make(path, tokenizer)
    assert (data.num_rows, data.num_samples, data.passes(60)) == (40, 40, 1.5)
    stream = pickle.loads(pickle.dumps(data.train_dataset))
    epochs = [[row for _, row in stream.locate(range(40 * epoch, 40 * epoch + 40))] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 40 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert {Path(file) for file, _ in stream.locate(range(40))} == {Path(path)}
    # What is read at a place is what the file has there.
    first = min(epochs[0])
    for sample in (0, 41, 119):
        place, text = stream.describe(sample, tokenizer)
        row = stream.locate([sample])[0][1]
        assert place == f"{path}, row {row}"
        assert text.split("\n")[1].startswith(f"question {row - first}?")
        assert stream[sample]["sample_ids"].tolist() == [sample]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_reads_every_row_once_and_fills_up(path: str, tokenizer: Tokenizer, world_size: int) -> None:
    data = make(path, tokenizer, validation_paths=[path], validation_rows=10, validation_batch_size=4)
    assert data.has_split("validation") and not data.has_split("test")
    loaders = [data.make_evaluation_loader("validation", rank, world_size) for rank in range(world_size)]
    batches = [batch for loader in loaders for batch in loader]
    assert len({len(loader.dataset) for loader in loaders}) == 1
    ids = torch.cat([batch["sample_ids"] for batch in batches])
    assert sorted(ids[ids >= 0].tolist()) == list(range(10))
    assert len(ids) == -(-10 // world_size) * world_size
    for batch in batches:
        filler = batch["sample_ids"] < 0
        assert (batch["targets"][filler] == -100).all()
        assert ((batch["targets"] != -100).sum(dim=1)[~filler] > 0).all()
    assert loaders[0].dataset[0]["sample_ids"].tolist() == [0]


def test_equal_prompts_stay_on_one_side_in_every_stage(tmp_path: Path, tokenizer: Tokenizer) -> None:
    questions = [f"what is {n}?" for n in range(200)]
    talks = write_rows(tmp_path / "a.jsonl", [talk(q, "it", *more) for q in questions for more in ((), ("yes",))])
    pairs = write_rows(
        tmp_path / "b.jsonl", [{"prompt": q, "chosen": f"good {n}", "rejected": "bad"} for q in questions for n in "12"]
    )
    asked = write_rows(tmp_path / "c.jsonl", [{"prompt": q} for q in questions])
    options = {"sequence_length": 64, "validation_fraction": 0.2}
    modules = [
        ConversationDataModule(ConversationDataConfig(paths=[talks], **options), tokenizer, 1),
        PreferenceDataModule(PreferenceDataConfig(paths=[pairs], **options), tokenizer, 2),
        PromptDataModule(PromptDataConfig(paths=[asked], **options), tokenizer, 3),
    ]
    prompts = [module.prompts(200) for module in modules]
    assert 20 < len(prompts[0]) < 60
    assert prompts[0] == prompts[1] == prompts[2]
    assert all(message.role == "user" for prompt in prompts[0] for message in prompt)
    assert modules[0].prompts(2) == prompts[0][:2]
    for module, copies in zip(modules, (2, 2, 1), strict=True):
        assert len(module.items("validation").places) == copies * len(prompts[0])
        assert module.num_rows == copies * (200 - len(prompts[0]))
        assert not any("trained on" in line for line in module.statistics_lines())


def test_openings() -> None:
    ask, answer = Message("user", "a"), Message("assistant", "b")
    share = opening_share([ask])
    assert share == opening_share([ask, answer]) == opening_share([ask, answer, Message("user", "c")])
    assert share != opening_share([Message("system", "s"), ask])
    # What an assistant begins is told by all of it.
    assert opening_share([answer]) != opening_share([Message("assistant", "other")])
    system = Message("system", "s")
    assert opening_share([system, answer]) != opening_share([system, Message("assistant", "other")])
    # The split of a data set is the same tomorrow.
    assert share == pytest.approx(0.4915790296, abs=1e-9)
    shares = [opening_share([Message("user", str(n))]) for n in range(4000)]
    counts = Counter(int(10 * each) for each in shares)
    assert set(counts) == set(range(10))
    assert all(330 < count < 470 for count in counts.values())


def test_splits(path: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert not make(path, tokenizer).has_split("validation")
    assert make(path, tokenizer).prompts(3) == []
    # A fraction that no hash falls below still gives one row.
    data = make(path, tokenizer, validation_fraction=1e-9)
    assert (data.num_rows, len(data.items("validation"))) == (39, 1)
    some, few = (make(path, tokenizer, validation_fraction=0.4, validation_rows=rows) for rows in (None, 2))
    assert some.num_rows == few.num_rows == 40 - len(some.items("validation"))
    assert len(few.items("validation")) == 2
    assert few.prompts(9) == some.prompts(2)
    with pytest.raises(UserError, match=r"no training row is left \(40 are set aside for validation\)"):
        make(path, tokenizer, validation_fraction=1 - 1e-9).setup("fit")
    with pytest.raises(UserError, match=r"data\.paths .*: all 40 rows are left out: 40 longer than data\.seq"):
        make(path, tokenizer, validation_paths=[path], sequence_length=3, max_dropped_share=1.0).setup("fit")
    # A file for validation leaves all rows of the other for training.
    other = write_rows(tmp_path / "other.jsonl", [talk("question 3?", "x"), talk("else?", "y")])
    data = make(path, tokenizer, validation_paths=[other])
    assert (data.num_rows, len(data.items("validation"))) == (40, 2)
    assert data.statistics_lines()[-1] == "prompts of validation rows that are trained on, too: 1"


def test_what_cannot_be_read(path: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"^data.paths is empty; give it files"):
        make([], tokenizer).setup("fit")
    with pytest.raises(UserError, match=r"nowhere"):
        make(str(tmp_path / "nowhere.jsonl"), tokenizer).setup("fit")


def test_rows_that_do_not_fit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [talk(f"q{n}", "short") for n in range(18)]
    rows[3:3] = [talk("q", "x " * 100)]
    rows += [talk("z " * 100, "short")]
    path = write_rows(tmp_path / "long.jsonl", rows)
    whole = make(path, tokenizer, sequence_length=1000)
    assert whole.statistics_lines()[0].startswith("train: 20 rows, 40 turns; tokens of each: min ")
    longest = int(whole.items("train").token_lengths().max())
    dropped = make(path, tokenizer, sequence_length=32)
    assert dropped.num_rows == 18
    assert dropped.statistics_lines()[1] == (
        "data.paths: 2 of 20 rows left out (10.0%): 2 longer than data.sequence_length 32"
    )
    with pytest.raises(UserError) as error:
        make(path, tokenizer, sequence_length=32, max_dropped_share=0.09).setup("fit")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("data.paths: 10.0% of 20 rows are left out (2 longer than data.sequence_length 32)")
    places = whole.items("train").places
    assert f"{places[3]} with" in message and f"{places[19]} with" in message
    assert f"with {longest:,} tokens" in message
    # Cut, one has an answer left and the other has not.
    cut = make(path, tokenizer, sequence_length=32, too_long="truncate")
    assert cut.num_rows == 19
    assert cut.statistics_lines()[1:] == [
        "data.paths: 1 of 20 rows left out (5.0%): 1 without a token to learn once truncated",
        "data.paths: 1 of 20 rows truncated (5.0%)",
    ]
    assert cut.items("train").token_lengths().max() == 33


def test_a_fingerprint_tells_rows_apart(path: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = make(path, tokenizer)
    state = data.state_dict()
    assert json.loads(json.dumps(state)) == state
    moved = tmp_path / "moved.jsonl"
    moved.write_text(Path(path).read_text())
    make(str(moved), tokenizer).load_state_dict(state)
    moved.write_text(moved.read_text().replace("answer 7", "answer 8"))
    changed = make(str(moved), tokenizer)
    assert changed.digest("train") != data.digest("train")
    with pytest.raises(UserError, match=r"the tokenised training rows \(from .*\) changed"):
        changed.load_state_dict(state)
    for options, named in (
        ({"seed": 6}, "the seed"),
        ({"sequence_length": 80}, "data.sequence_length"),
        ({"packing": True}, "data.packing"),
        ({"supervise": "all"}, "the tokenised training rows"),
    ):
        with pytest.raises(UserError, match=named):
            make(path, tokenizer, **options).load_state_dict(state)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_resume_goes_on_where_a_run_stopped(path: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    def fit(max_steps: int, ckpt: str | None = None, save_at: tuple[int, ...] = ()) -> tuple[Recorder, Any]:
        data, module = make(path, tokenizer, packing=True, sequence_length=200, micro_batch_size=2), Recorder()
        trainer_for(data, tmp_path, max_steps, save_at).fit(module, datamodule=data, ckpt_path=ckpt)
        return module, data

    whole, data = fit(8, save_at=(3,))
    assert [sample for _, batch in whole.seen for sample in batch] == list(range(32))
    assert data.passes(32) > 2
    resumed, data = fit(8, ckpt=str(tmp_path / "3.ckpt"))
    assert resumed.seen == whole.seen[6:]
    assert torch.equal(resumed.weight, whole.weight)
    assert data.samples_consumed == 32


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_run_validates_where_there_are_rows(path: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    for fraction in (0.0, 0.3):
        data, module = make(path, tokenizer, validation_fraction=fraction), Recorder()
        options = {"limit_val_batches": None, "val_check_interval": 2}
        trainer_for(data, tmp_path, 2, **options).fit(module, datamodule=data)
        items = data.items("validation")
        assert module.validated == sum(sum(items.supervised(row)) for row in range(len(items)))
        assert (module.validated > 0) == (fraction > 0)
