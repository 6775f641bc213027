"""Where curves go, and that those which cannot be written are missed, and nothing else."""

from __future__ import annotations

import csv
import json
import math
import struct
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from conftest import MakeRun
from run_files import TIMED, all_curves, event_folder, largest_file, tensorboard_events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.metadata import (
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

from lit_llm.config import PretrainConfig, TrainerConfig, UserError, flatten, to_plain
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.curves import Curves, CurvesTable, MetricsFile
from lit_llm.training.loggers import display_name
from lit_llm.training.step_lines import StepLines, read_step_lines


def log(logger: Any, steps: range) -> None:
    for step in steps:
        logger.log_metrics({"loss": 1.0 / (1 + step), "rate": 0.1}, step)


def test_an_event_file_that_grows_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Curves(tmp_path, name="", version="tensorboard")
    log(logger, range(3))
    logger.save()
    with largest_file(2_000) as limit:
        limit()
        log(logger, range(3, 100))
        logger.save()
        log(logger, range(100, 200))
        logger.finalize("success")
    errors = capsys.readouterr().err
    where = f"{tmp_path / 'tensorboard'}: File too large"
    assert errors == f"warning: cannot write the curves in {where}; the run goes on without them\n"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == list(range(len(steps))) and 3 <= len(steps) < 100


def test_no_event_file_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Curves(tmp_path, name="", version="tensorboard", purge_step=3)
    with largest_file(0) as limit:
        limit()
        logger.log_hyperparams({"rate": 0.1})
        log(logger, range(3))
        logger.experiment.add_text("samples/1", "text", 3)
        logger.save()
        logger.finalize("success")
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "the run goes on without them" in errors


@pytest.mark.parametrize("size", [0, 1_000])
@pytest.mark.parametrize("kind", [MetricsFile, CurvesTable])
def test_a_table_that_grows_no_more(kind: type, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = kind(tmp_path, 0, lambda step: 7) if kind is MetricsFile else kind(tmp_path, 0)
    with largest_file(size) as limit:
        limit()
        log(logger, range(1, 100))
        logger.save()
        logger.finalize("success")
    errors = capsys.readouterr().err
    path = tmp_path / ("metrics.jsonl" if kind is MetricsFile else "csv/metrics.csv")
    assert errors.count("\n") == 1 and f"in {path}: File too large; the run goes on without them" in errors
    if kind is MetricsFile:
        lines = read_step_lines(path)
        assert [line["step"] for line in lines] == list(range(1, 1 + len(lines)))
        assert (len(lines) > 5) == (size > 0)
        assert not path.exists() or path.read_text().count("\n") == len(lines)  # no half line


def test_lines_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    lines = StepLines(path, 0, "the metrics")
    lines.write(1, {"loss": 2.0})
    lines.write(1, {"rate": 0.5, "loss": 3.25})
    lines.write(2, {"loss": math.nan, "text": "é\n\u2028\u2029\x85"})
    assert path.read_text().split("\n") == [
        '{"step": 1, "loss": 3.25, "rate": 0.5}',
        '{"step": 2, "loss": null, "text": "é\\n\u2028\u2029\x85"}',
        "",
    ]
    assert read_step_lines(path)[1]["text"] == "é\n\u2028\u2029\x85"
    # the newest line becomes a longer one, and then a shorter one
    lines.write(2, {"loss": 1.0 / 3, "text": ""})
    assert read_step_lines(path)[1:] == [{"step": 2, "loss": 1.0 / 3, "text": ""}]
    assert path.read_text().count("\n") == 2
    on = StepLines(path, 1, "the metrics")
    assert path.read_text().count("\n") == 2  # nothing is taken back before there is something to write
    on.write(1, {"more": 1})
    on.write(4, {})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 3.25, "rate": 0.5, "more": 1},
        {"step": 4},
    ]
    # what a power cut or another hand left is passed over; a step that goes back counts from there
    with path.open("a") as file:
        file.write('[]\n{"step": 5}\n{"step": 6}\n{"step": 5, "again": true}\n{"step": 7, "lo')
    assert [line["step"] for line in read_step_lines(path)] == [1, 4, 5]
    assert read_step_lines(path)[-1] == {"step": 5, "again": True}
    assert read_step_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("cut", ["3,1", ",,\n", "3,1\n", "3,1,3,1.5,7\n", "3,1,3,1"])
def test_a_table_whose_last_row_is_cut_goes_on(cut: str, tmp_path: Path) -> None:
    path = tmp_path / "csv" / "metrics.csv"
    path.parent.mkdir()
    path.write_text("loss,rate,step\n2.5,0.5,1\n1.5,,2\n" + cut)
    for first_step, kept in ((None, "2.5,0.5,1 1.5,,2"), (1, "2.5,0.5,1")):
        logger = CurvesTable(tmp_path, first_step)
        logger.log_metrics({"loss": 1.25}, 3)
        logger.finalize("success")
        assert path.read_text().split("\n", 1)[1].split() == [*kept.split(), "1.25,,3"]


def test_a_table_without_a_whole_line_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "csv" / "metrics.csv"
    path.parent.mkdir()
    path.write_text("loss,ra")
    logger = CurvesTable(tmp_path, 2)
    logger.log_metrics({"loss": 1.25}, 3)
    logger.finalize("success")
    assert path.read_text().split() == ["loss,step", "1.25,3"]


class Crash(L.Callback):
    """A run dies at its n-th micro-batch."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.left -= 1
        if not self.left:
            raise RuntimeError("the power is gone")


def untimed(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in {*TIMED, "seconds"}}
        for line in read_step_lines(path)
    ]


def test_every_logger_goes_on_with_a_crashed_run(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = {"loggers": ["csv", "tensorboard"]}
    straight, config = make_run("straight", trainer=trainer), make_run("team/run", trainer=trainer)
    pretrain(straight)
    with pytest.raises(RuntimeError, match="power"):
        pretrain(config, callbacks=[Crash(6)])
    lines = untimed(config.folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]  # the checkpoint is of step 4
    seconds = [line["seconds"] for line in read_step_lines(config.folder / "metrics.jsonl")]
    resumed = make_run("team/run", trainer=trainer, ckpt_path="last")
    result = pretrain(resumed)
    lines = untimed(config.folder / "metrics.jsonl")
    assert lines == untimed(straight.folder / "metrics.jsonl")
    assert [line["tokens"] for line in lines] == [4 * 32 * step for step in range(1, 7)]
    for name, points in all_curves(straight).items():
        if name not in TIMED:
            ours = [(line["step"], line[name]) for line in lines if name in line]
            assert ours == [(step, pytest.approx(value, rel=1e-6)) for step, value in points], name
    times = [line["seconds"] for line in read_step_lines(config.folder / "metrics.jsonl")]
    assert times[:4] == seconds[:4] and times == sorted(times) and result.facts.seconds >= times[-1]
    # samples, too
    texts = [(line["step"], line["samples"]) for line in read_step_lines(config.folder / "samples.jsonl")]
    assert texts == [(line["step"], line["samples"]) for line in read_step_lines(straight.folder / "samples.jsonl")]
    assert [step for step, _ in texts] == [3, 6] and texts[-1][1] == result.samples

    def rows(run: Any) -> list[dict[str, str]]:
        found = csv.DictReader((run.folder / "csv" / "metrics.csv").read_text().splitlines())
        return [{name: row[name] for name in row if name not in {*TIMED, "seconds"}} for row in found]

    assert rows(resumed) == rows(straight)
    losses = {int(row["step"]): float(row["train/loss"]) for row in rows(resumed) if row["train/loss"]}
    assert losses == {line["step"]: line["train/loss"] for line in lines}
    assert "warning" not in capsys.readouterr().err


def test_what_tensorboard_is_told_of_a_run(make_run: MakeRun) -> None:
    config = make_run("team/first")
    pretrain(config)
    assert event_folder(config).name == "pretrain"
    events = tensorboard_events(config)
    content = events.SummaryMetadata("custom_scalars__config__") and events.Tensors("custom_scalars__config__")[-1]
    layout = layout_pb2.Layout.FromString(content.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert next(iter(charts)) == "loss" and charts["loss"] == ["^val/loss$", "^train/loss$"]
    assert {"perplexity", "bits_per_byte"} < charts.keys()
    start = parse_session_start_info_plugin_data(events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    told = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    options = flatten(to_plain(config))
    once = {"ckpt_path", "overwrite", "replay", "resume_changed"}
    assert told.keys() == options.keys() - once
    assert told["optimizer.learning_rate"] == 3e-3 and told["model.norm"] == config.model.norm
    assert told["data.paths"] == str(config.data.paths)
    assert told["model.tie_word_embeddings"] == "true" and told["data.micro_batch_size"] == "null"
    assert events.SummaryMetadata(SESSION_END_INFO_TAG)


@pytest.mark.parametrize(
    ("run_name", "shown"),
    [
        ("pretrain", "pretrain"),
        ("my-pretrain", "my-pretrain"),
        ("pretrain_2", "pretrain_2"),
        ("pretraining", "pretraining-pretrain"),
        ("team/first run", "team-first-run-pretrain"),
        ("...//", "...-pretrain"),
    ],
)
def test_names_say_the_stage_once(run_name: str, shown: str) -> None:
    assert display_name(PretrainConfig(run_name=run_name)) == shown


def test_loggers(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"max_steps": 1, "val_every_n_steps": None}
    none = make_run("none", trainer={**few, "loggers": []}, schedule={"warmup_steps": 0})
    pretrain(none)
    names = {path.name for path in none.folder.iterdir()}
    assert "metrics.jsonl" in names and not {"tensorboard", "csv", "wandb"} & names
    for wrong in (["tensorbord"], ["csv", "csv"]):
        with pytest.raises(UserError, match="a list of tensorboard, csv and wandb, each once"):
            TrainerConfig(loggers=wrong)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb, which is not installed: pip install 'lit-llm\[wandb\]'"):
        pretrain(make_run("wandb", trainer={**few, "loggers": ["wandb"]}, schedule={"warmup_steps": 0}))


@pytest.mark.slow  # it starts processes of its own
def test_wandb_without_a_network(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = {"loggers": ["wandb"]}
    config = make_run(trainer=trainer)
    with pytest.raises(RuntimeError, match="power"):
        pretrain(config, callbacks=[Crash(4)])
    pretrain(make_run(trainer=trainer, ckpt_path="last"))
    runs = [path for path in (config.folder / "wandb").glob("offline-run-*") if path.is_dir()]
    assert len({path.name.rpartition("-")[2] for path in runs}) == 1  # one run there, with two starts
    points: dict[int, float] = {}
    for path in runs:
        points |= wandb_losses(next(path.glob("*.wandb")))
    lines = read_step_lines(config.folder / "metrics.jsonl")
    assert points == {line["step"]: line["train/loss"] for line in lines}


def wandb_losses(path: Path) -> dict[int, float]:
    """The training losses in a file of an offline run, by step: a log of LevelDB's form whose records are messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, message, losses = path.read_bytes(), 7, b"", {}
    while place + 7 <= len(content):
        length, kind = struct.unpack_from("<4xHB", content, place)
        if kind == 0:  # the rest of a block of 32 KiB is empty
            place += 32768 - place % 32768
            continue
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (2, 3):  # the message goes on in the next record
            continue
        items = Record.FromString(message).history.item
        values = {item.key or "/".join(item.nested_key): item.value_json for item in items}
        if "train/loss" in values:
            losses[int(values["trainer/global_step"])] = float(values["train/loss"])
        message = b""
    return losses
