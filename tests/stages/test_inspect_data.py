"""Looking at windows: those of a step are what the step was computed on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from conftest import MakeRun

from lit_llm.cli.commands import run_command
from lit_llm.config import CorpusConfig, InspectConfig, PrepareConfig, UserError
from lit_llm.stages.inspect_data import inspect_data
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.tokenizer import Tokenizer


class Watch(L.Callback):
    """Notes what each step has read, by sample."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[int, list[int]]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = zip(batch["sample_ids"].tolist(), batch["tokens"].tolist(), strict=True)
        self.steps.setdefault(trainer.global_step, {}).update(rows)


def test_a_step_is_followed_through_every_change_of_its_run(
    make_run: MakeRun, shards: Path, short_documents: Path, tmp_path: Path
) -> None:
    copies = [shutil.copytree(folder, tmp_path / name) for folder, name in ((shards, "a"), (short_documents, "b"))]
    corpora = {name: {"path": str(path), "weight": 0.5} for name, path in zip(("code", "rows"), copies, strict=True)}
    data = {"paths": [], "mix": {"corpora": corpora, "phases": [{"start": 4, "weights": {"code": 0.1, "rows": 0.9}}]}}
    trainer = {"max_steps": 10, "val_every_n_steps": None, "save_every_n_steps": 1, "keep_last_checkpoints": 9}
    options: dict[str, Any] = {"schedule": {"name": "constant", "warmup_steps": 0}, "trainer": trainer}
    first = make_run(data=data, **options)
    watch = Watch()
    pretrain(replace(first, trainer=replace(first.trainer, max_steps=6)), [watch])
    # it goes on with another batch size, and then with other weights and phases
    again = {"ckpt_path": "last", "resume_changed": True}
    second = make_run(data={**data, "batch_size": 6}, **{**options, "trainer": {**trainer, "max_steps": 8}}, **again)
    pretrain(second, [watch])
    data["mix"] = {"corpora": {**corpora, "rows": {**corpora["rows"], "weight": 2.0}}}
    pretrain(make_run(data=data, **options, **again), [watch])
    assert [len(watch.steps[step]) for step in range(1, 11)] == [4] * 6 + [6] * 2 + [4] * 2
    for step, rows in watch.steps.items():
        found = inspect_data(InspectConfig(run=str(first.folder), step=step)).windows
        read = [window.source.read_windows([window.start], window.tokens)[0].tolist() for window in found]
        assert read == [rows[sample] for sample in sorted(rows)]
        assert [window.name.partition(":")[0] for window in found] == [f"sample {sample}" for sample in sorted(rows)]
    (one,) = inspect_data(InspectConfig(run=str(first.folder), step=7, row=2)).windows
    third = inspect_data(InspectConfig(run=str(first.folder), step=7)).windows[2]
    assert (one.name, one.place) == (third.name, third.place)
    for options, message in (
        ({"step": 11}, r"has no step 11: its steps are 1 to 10"),
        ({"step": 1, "row": 4}, r"row 4 of a batch of 4; rows are 0 to 3"),
    ):
        with pytest.raises(UserError, match=message):
            inspect_data(InspectConfig(run=str(first.folder), **options))
    # other shards in the same place are told apart
    shutil.rmtree(copies[0])
    shutil.copytree(short_documents, copies[0])
    with pytest.raises(UserError, match=r"does not hold what .* was trained on any more"):
        inspect_data(InspectConfig(run=str(first.folder), step=1))


def test_what_is_printed(shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    window = ["--data", str(shards), "--split", "validation", "--window", "1", "--length", "50"]
    run_command("inspect_data", [*window, "--characters", "20"])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == f"{shards / 'validation'}, 50 tokens each"
    assert lines[2].startswith("window 1 of ")
    assert lines[3] == f"  {shards / 'validation' / 'shard_00000.npy'}, token 50"
    (found,) = inspect_data(InspectConfig(data=str(shards), split="validation", window=1, length=50)).windows
    (part, *_), tokenizer = found.documents(), Tokenizer.load(shards / "tokenizer")
    assert part.origin is not None and part.origin.id.endswith(".py")
    assert lines[4] == f"  tokens 0 to {part.tokens - 1}: {part.origin.id} (a part of it)"
    shown = [line.removeprefix("    | ") for line in lines if line.startswith("    | ")]
    assert "\n".join(shown).startswith(found.text(part, tokenizer)[:20])
    assert "more characters; --characters null shows them" in printed
    config = make_run(trainer={"max_steps": 2, "val_every_n_steps": None})
    pretrain(config)
    capsys.readouterr()
    run_command("inspect_data", ["--run", str(config.folder), "--step", "1"])
    printed = capsys.readouterr().out
    assert [line.partition(",")[0] for line in printed.splitlines() if line.startswith("row ")] == [
        f"row {row}" for row in range(4)
    ]


def test_a_step_that_a_run_has_not_done_is_told_from_one_that_it_has(make_run: MakeRun) -> None:
    class Crash(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *more: Any) -> None:
            if trainer.global_step == 3:
                raise OSError

    trainer = {"val_every_n_steps": None, "save_every_n_steps": 3, "log_every_n_steps": 2}
    config = make_run(trainer={"max_steps": 900, **trainer})
    with pytest.raises(OSError):
        pretrain(config, [Crash()])
    folder = str(config.folder)
    # the curves reach step 2, and the checkpoints step 3
    ahead = " (its curves and checkpoints end at step 3; this is what it would be computed on)"
    for step, said in ((2, ""), (3, ""), (4, ahead), (900, ahead)):
        title = inspect_data(InspectConfig(run=folder, step=step)).title
        assert title == f"{folder}, step {step}{said}: 4 rows of 32 tokens"
    (config.folder / "metrics.jsonl").write_text('{"step": 4}\n')
    assert "its curves" not in inspect_data(InspectConfig(run=folder, step=4)).title


def test_no_order_to_the_terminal_comes_from_a_document(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a\x1b[2Jb"}) + "\n")
    corpus = CorpusConfig(path=str(tmp_path / "rows.jsonl"), validation_fraction=0.0)
    prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(tmp_path / "shards")))
    capsys.readouterr()
    run_command("inspect_data", ["--data", str(tmp_path / "shards"), "--window", "0"])
    printed = capsys.readouterr().out
    assert "    | a\u241b[2Jb\n" in printed and "\x1b" not in printed


def test_what_is_refused(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([], "give data with window, or run with step"),
        (["--data", str(shards)], "data is given without window"),
        (["--run", "x", "--row", "1"], "run is given without step"),
        (["--data", "x", "--run", "y"], "data and run are given; one of the two"),
        (["--run", "x", "--step", "1", "--window", "2"], "window belongs to data, and run is given"),
        (["--data", "x", "--window", "1", "--row", "2"], "row belongs to run, and data is given"),
        (["--data", "x", "--window", "-1"], "window is -1; it must be at least 0"),
        (["--data", str(shards), "--window", "99999"], "has no window 99,999 of"),
        (["--data", str(shards), "--window", "1", "--split", "test"], "has no test split; give another --split"),
        (["--data", str(tmp_path), "--window", "1"], "there are no shards at"),
        (["--run", str(tmp_path), "--step", "1"], "is no run folder: it has no config.yaml"),
    ):
        with pytest.raises(SystemExit):
            run_command("inspect_data", words)
        assert message in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("stage: sft\n")
    with pytest.raises(UserError, match=r"is no pretraining run of this version"):
        inspect_data(InspectConfig(run=str(tmp_path), step=1))
