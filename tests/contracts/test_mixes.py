"""Invariants 1 and 2 for mixes of corpora, and what a run says of each corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun
from ranks import train_on_ranks
from test_bad_input import refused
from test_resume import Crash, assert_same_run, curves, final_state

from lit_llm.config import DataConfig, PretrainConfig, UserError
from lit_llm.data.pretraining.data_module import TokenDataModule
from lit_llm.modules import PretrainingModule
from lit_llm.stages.pretrain import pretrain
from lit_llm.tokenizer import Tokenizer

Corpora = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def corpora(shards: Path, short_documents: Path) -> Corpora:
    return {"code": {"path": str(shards), "weight": 0.6}, "rows": {"path": str(short_documents), "weight": 0.4}}


LATE = [{"start": 0.5, "weights": {"code": 0.2, "rows": 0.8}}]


def mixed_run(make_run: MakeRun, name: str, corpora: Corpora, **groups: Any) -> PretrainConfig:
    data = {
        "paths": [],
        "mix": {"corpora": corpora, "phases": groups.pop("phases", LATE)},
        "batch_size": 10,
        "validation_windows": 20,
        **groups.pop("data", {}),
    }
    return make_run(name, data=data, model={"dropout": 0.1}, **groups)


def last(config: PretrainConfig, name: str) -> float:
    return curves(config)[name][-1][1]


def test_a_crashed_run_goes_on_bit_identically_across_a_phase(make_run: MakeRun, corpora: Corpora) -> None:
    straight = mixed_run(make_run, "straight", corpora)
    pretrain(straight)
    shares = [value for _, value in curves(straight)["data/share/rows"]]
    assert shares == pytest.approx([0.4] * 3 + [0.8] * 3)
    assert last(straight, "data/epochs/rows") > 0
    for name, batch in (("before", 4), ("after", 6)):  # both go on from the checkpoint of an even step
        with pytest.raises(RuntimeError, match="power"):
            pretrain(mixed_run(make_run, name, corpora), callbacks=[Crash(batch)])
        resumed = mixed_run(make_run, name, corpora)
        pretrain(replace(resumed, ckpt_path="last"))
        assert_same_run(straight, resumed)
    report = (straight.folder / "report.md").read_text()
    assert "## Mix" in report and "| rows | 36 | 60.00% |" in report
    assert "<h2>Mix</h2>" in (straight.folder / "report.html").read_text()


def test_validation_of_each_corpus_is_that_of_the_corpus_alone(make_run: MakeRun, corpora: Corpora) -> None:
    one = mixed_run(make_run, "one", corpora, trainer={"max_steps": 2, "val_every_n_steps": 2}, phases=[])
    pretrain(one)
    tokenizer = Tokenizer.load(Path(corpora["code"]["path"]) / "tokenizer")
    module = PretrainingModule(one, torch.tensor(tokenizer.byte_lengths())).eval()
    module.model.load_state_dict({**module.model.state_dict(), **final_weights(one)})
    sums: dict[str, tuple[float, float, float]] = {}
    mixed = TokenDataModule(one.data, tokenizer, one.seed, 2).make_evaluation_loader("validation", 0, 1)
    read = [
        (source, row)
        for batch in mixed
        for source, row in zip(batch["source_ids"].tolist(), batch["sample_ids"], strict=True)
    ]
    for number, (name, corpus) in enumerate(corpora.items()):
        alone = TokenDataModule(DataConfig(paths=[corpus["path"]], sequence_length=32), tokenizer, 0)
        dataset = alone.evaluation_dataset("validation", 0, 1)
        first = mixed.dataset._first[number]
        batch = dataset.__getitems__([int(row - first) for source, row in read if source == number])
        with torch.no_grad():
            loss, tokens = module.token_loss(batch, training=False)
        sums[name] = float(loss), int(tokens), float(module.bytes_of(batch["targets"]))
        assert last(one, f"val/loss/{name}") == pytest.approx(sums[name][0] / sums[name][1], rel=1e-5)
        bits = sums[name][0] / sums[name][2] / torch.log(torch.tensor(2.0)).item()
        assert last(one, f"val/bits_per_byte/{name}") == pytest.approx(bits, rel=1e-5)
    loss, tokens, _ = (sum(each) for each in zip(*sums.values(), strict=True))
    assert last(one, "val/loss") == pytest.approx(loss / tokens, rel=1e-5)
    assert sums["rows"][1] != sums["code"][1]


@pytest.mark.slow
def test_two_ranks_add_up_the_same_sums(make_run: MakeRun, corpora: Corpora, free_port: int) -> None:
    two = mixed_run(make_run, "two", corpora, trainer={"max_steps": 2, "val_every_n_steps": 2, "devices": 2}, phases=[])
    two = replace(two, model=replace(two.model, dropout=0.0))
    same = replace(two, run_name="same", trainer=replace(two.trainer, devices=1))
    train_on_ranks(two, 2, free_port)
    pretrain(same)
    for name, points in curves(same).items():
        if name.startswith(("val/loss", "val/bits_per_byte", "data/")):
            assert [value for _, value in curves(two)[name]] == pytest.approx([value for _, value in points], rel=1e-4)
    assert len([name for name in curves(two) if name.startswith("val/loss/")]) == 2


def final_weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    """The weights of the decoder in the last checkpoint."""
    state = final_state(config)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def test_a_changed_mix_needs_resume_changed_and_holds_from_there(
    make_run: MakeRun, corpora: Corpora, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"max_steps": 4, "val_every_n_steps": None, "save_every_n_steps": 2, "keep_last_checkpoints": 9}
    constant = {"schedule": {"name": "constant", "warmup_steps": 0}, "trainer": few}
    first = mixed_run(make_run, "run", corpora, phases=[], **constant)
    pretrain(replace(first, trainer=replace(first.trainer, max_steps=2)))
    other = {**corpora, "rows": {**corpora["rows"], "weight": 2.4}}
    changed = replace(mixed_run(make_run, "run", other, phases=[], **constant), ckpt_path="last")
    refused(lambda: pretrain(changed), "data.mix.corpora.rows.weight (from 0.4 to 2.4)", "--resume_changed true")
    pretrain(replace(changed, resume_changed=True))
    errors = capsys.readouterr().err
    assert "changed: the mix (from code 60%, rows 40% to code 20%, rows 80%)" in errors
    assert "mix       code 60%, rows 40%; from step 2 on code 20%, rows 80%" in errors
    assert [value for _, value in curves(first)["data/share/rows"]] == pytest.approx([0.4, 0.4, 0.8, 0.8])
    # it goes on once more without being asked again
    pretrain(replace(changed, trainer=replace(changed.trainer, max_steps=5)))
    assert [value for _, value in curves(first)["data/share/rows"]][-1] == pytest.approx(0.8)
    # so does a phase that a longer run would have begun later, and one that has not begun is free to move
    pretrain(mixed_run(make_run, "phased", corpora, **constant))
    longer = {**constant, "trainer": {**few, "max_steps": 12}}
    moved = replace(mixed_run(make_run, "phased", corpora, **longer), ckpt_path="last")
    refused(lambda: pretrain(moved), "the mix (from code 60%, rows 40%; from step 2 on code 20%, rows 80% to code 60%")


def test_a_mix_and_paths_are_one_or_the_other(make_run: MakeRun, corpora: Corpora, shards: Path) -> None:
    with pytest.raises(UserError, match=r"data.paths and data.mix.corpora are given; use one of the two"):
        mixed_run(make_run, "run", corpora, data={"paths": [str(shards)]})
    mixed = mixed_run(make_run, "run", corpora)
    moved = mixed.data.moved_to(["a", "b"])
    assert (mixed.data.names, moved.folders, moved.paths) == (["code", "rows"], ["a", "b"], [])
    with pytest.raises(UserError, match=r"data.paths has 1 folders for the 2 of data.mix.corpora"):
        mixed.data.moved_to(["a"])
