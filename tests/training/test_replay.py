"""A recorded step computed again: the same numbers, and the sample and the layer at fault."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import ROOT, MakeRun
from run_files import all_curves, checkpoints

from lit_llm.cli import main
from lit_llm.config import PretrainConfig, UserError, to_plain
from lit_llm.stages.pretrain import build_pretraining, pretrain
from lit_llm.training.replay import ReplayReport, part_of, print_report, recorded_run, replay_step
from lit_llm.training.step_record import StepRecord

# any step above the mean of those before is written down
NOTICED = {"spike_window": 4, "spike_sigmas": 1e-6, "save_every_n_steps": 1, "keep_last_checkpoints": 9}


def replayed(file: Path, **options: Any) -> ReplayReport:
    record, config = recorded_run(PretrainConfig(replay=str(file), **options))
    return replay_step(record, config, *build_pretraining(config))


def noticed(config: PretrainConfig) -> list[Path]:
    """The replay files that a run has left."""
    files = sorted((config.folder / "replay").glob("*.json"))
    assert files
    return files


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        {"data": {"micro_batch_size": 2}, "model": {"dropout": 0.2}},
        {
            "trainer": {"precision": "bf16-mixed", "activation_checkpointing": "full"},
            "data": {"mask_documents": True},
            "z_loss": 1e-4,
        },
        {"trainer": {"strategy": "fsdp", "sharded_checkpoints": True, "max_steps": 4}, "model": {"dropout": 0.2}},
    ],
    ids=["dropout", "bf16", "sharded"],
)
def test_the_recorded_loss_comes_out_again_bit_for_bit(options: dict[str, Any], make_run: MakeRun) -> None:
    config = make_run("run", **{**options, "trainer": {**NOTICED, **options.get("trainer", {})}})
    pretrain(config)
    before = contents(config.folder)
    losses = dict(all_curves(config)["train/loss"])
    for file in noticed(config)[:2]:
        report = replayed(file)
        record = report.record
        assert report.reproduced and report.same_weights and report.loss == record.loss
        assert report.loss == pytest.approx(losses[record.step], rel=1e-6)
        assert report.gradient_norm == pytest.approx(record.gradient_norm, rel=1e-5)
        assert report.first_bad_module is None and report.bad_weights == []
        assert math.hypot(*report.part_norms.values()) == pytest.approx(report.gradient_norm)
        assert {each.index for each in report.samples} == {each.index for each in record.samples}
        assert sum(each.tokens for each in report.samples) == sum(part.tokens for part in record.micro_batches)
    assert contents(config.folder) == before


def test_another_random_state_is_another_loss(make_run: MakeRun) -> None:
    config = make_run("run", trainer=NOTICED, model={"dropout": 0.2})
    pretrain(config)
    first, second = noticed(config)[:2]
    values = json.loads(first.read_text())
    values["random_states"] = json.loads(second.read_text())["random_states"]
    first.write_text(json.dumps(values))
    report = replayed(first)
    assert not report.reproduced and report.loss == pytest.approx(report.record.loss, rel=0.1)


def test_a_left_out_step_may_start_from_its_own_checkpoint(make_run: MakeRun) -> None:
    """Its weights are those of the step before."""
    config = make_run("run", trainer={**NOTICED, "spike_action": "skip"})
    pretrain(config)
    file = noticed(config)[0]
    step = StepRecord.load(file).step
    shutil.rmtree(config.folder / "checkpoints" / f"step_{step - 1:08d}.ckpt", ignore_errors=True)
    (config.folder / "checkpoints" / f"step_{step - 1:08d}.ckpt").unlink(missing_ok=True)
    report = replayed(file)
    assert report.checkpoint == checkpoints(config)[step].resolve() and report.reproduced


class Poison(L.Callback):
    """Makes the embedding of the tokens that one sample of step 3 alone has infinite."""

    def __init__(self) -> None:
        self.sample = -1
        self.token = -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx != 2:
            return
        rows = [set(row.tolist()) for row in batch["tokens"]]
        for index, row in enumerate(rows):
            own = row - set().union(*(other for number, other in enumerate(rows) if number != index))
            if own:
                self.sample, self.token = int(batch["sample_ids"][index]), min(own)
                with torch.no_grad():
                    pl_module.model.embedding.weight[self.token] = math.inf
                return


def test_the_sample_and_the_layer_at_fault_are_named(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_run("bad", trainer={"save_every_n_steps": None}, model={"tie_word_embeddings": False})
    poison = Poison()
    with pytest.raises(UserError, match="step 3 is not finite") as error:
        pretrain(config, callbacks=[poison])
    (file,) = noticed(config)
    assert f"--replay {file}" in str(error.value)
    capsys.readouterr()
    main(PretrainConfig, pretrain, ["--replay", str(file)])  # and does not exit with an error
    out = capsys.readouterr().out
    report = replayed(file)
    assert report.checkpoint == (config.folder / "checkpoints" / "step_00000002.ckpt").resolve()
    assert report.first_bad_module == "embedding" and report.bad_weights == ["embedding.weight"]
    assert report.largest_weight == ("embedding.weight", math.inf)
    assert [each.index for each in report.samples if not math.isfinite(each.loss)] == [poison.sample]
    assert report.samples[0].index == poison.sample and report.reproduced
    assert not math.isfinite(report.part_norms["block 0"])
    for part in (
        "first not finite embedding",
        "step_00000002.ckpt (not finite: embedding.weight)",
        f"worst sample: {poison.sample}",
        "nan",
    ):
        assert part in out
    # the excerpt is the text of that sample, and the place is where it stands
    dataset = build_pretraining(config)[1].train_dataset
    assert poison.token in dataset[poison.sample]["tokens"].tolist()
    assert report.excerpt == build_pretraining(config)[2].decode(dataset[poison.sample]["tokens"].tolist())[:400]
    assert report.place.startswith(next(each.file for each in report.record.samples if each.index == poison.sample))
    assert report.excerpt.splitlines()[0] in out
    print_report(replace(report, excerpt="a\x1b[2Jb"))
    assert "a\u241b[2Jb" in capsys.readouterr().out


def test_the_document_is_counted(make_run: MakeRun) -> None:
    config = make_run("run", trainer=NOTICED)
    pretrain(config)
    report = replayed(noticed(config)[0])
    dataset = build_pretraining(config)[1].train_dataset
    worst = next(each for each in report.record.samples if each.index == report.samples[0].index)
    before = dataset.sources[0].read(0, worst.offset)  # the tiny corpus is one shard
    assert len(dataset.sources[0].files) == 1
    assert f"token {worst.offset}, in document {(before == dataset.eot_id).sum()} of" in report.place


def test_what_replay_refuses(make_run: MakeRun, short_documents: Path) -> None:
    config = make_run("run", trainer={**NOTICED, "keep_last_checkpoints": 1, "keep_best_checkpoint": False})
    pretrain(config)
    file = noticed(config)[0]
    record = StepRecord.load(file)

    def refused(*parts: str, **options: Any) -> None:
        with pytest.raises(UserError) as error:
            replayed(file, **options)
        assert "\n" not in str(error.value) and all(part in str(error.value) for part in parts), str(error.value)

    kept = config.folder / "checkpoints" / "step_00000006.ckpt"
    refused(f"the weights that step {record.step} started from are not kept", f"--ckpt_path {kept.resolve()}")
    refused("there is no checkpoint nowhere.ckpt", ckpt_path="nowhere.ckpt")
    refused("z_loss is 0.5, but the run that is replayed had 0.0", z_loss=0.5)
    data = type(config.data)(paths=[str(short_documents)])
    refused(f"{short_documents} is not the data of the recorded run", ckpt_path=str(kept), data=data)
    report = replayed(file, ckpt_path=str(kept))
    assert not report.same_weights and not report.reproduced
    assert report.loss == pytest.approx(record.loss, abs=1.0)
    # options that the recorded run had are taken for what they are: the same command again
    assert (
        replayed(file, ckpt_path=str(kept), seed=config.seed, data=config.data, model=config.model).loss == report.loss
    )


@pytest.mark.slow
def test_the_micro_batches_of_two_ranks(make_run: MakeRun, tmp_path: Path, free_port: int) -> None:
    """Each rank has its own samples and its own dropout; one process computes them one after another."""
    trainer = {**NOTICED, "devices": 2, "max_steps": 4, "val_every_n_steps": None}
    config = make_run("two", trainer=trainer, data={"micro_batch_size": 1}, model={"dropout": 0.2})
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(to_plain(config)))
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "pretrain.py"), "--config", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    report = replayed(noticed(config)[0])
    record = report.record
    assert record.world_size == 2 and record.accumulation == 2
    assert [part.rank for part in record.micro_batches] == [0, 0, 1, 1]
    first = record.first_sample
    assert [part.sample_ids for part in record.micro_batches] == [[first], [first + 2], [first + 1], [first + 3]]
    assert report.reproduced
    assert report.loss == pytest.approx(record.loss, rel=1e-12)
    assert report.gradient_norm == pytest.approx(record.gradient_norm, rel=1e-5)
    assert sorted((each.rank, each.micro_batch) for each in report.samples) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_parts_of_the_decoder() -> None:
    names = ("blocks.11.attention.q_proj.weight", "embedding.weight", "final_norm.weight", "head.weight")
    assert [part_of(name) for name in names] == ["block 11", "embedding", "final norm", "head"]
