"""Runs side by side."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import MakeRun

from lit_llm.cli.commands import run_command
from lit_llm.config import CompareConfig, UserError
from lit_llm.stages.compare import compare
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.step_lines import read_step_lines


def test_two_runs(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"max_steps": 2, "val_every_n_steps": 1}
    one = make_run("one", trainer=few)
    other = make_run("[b]other", trainer=few, optimizer={"learning_rate": 1e-3}, data={"batch_size": 8})
    results = [pretrain(config) for config in (one, other)]
    capsys.readouterr()
    output = tmp_path / "pages" / "compare.html"
    run_command("compare", [str(one.folder), str(other.folder), "--output", str(output)])
    shown = capsys.readouterr().out
    found = compare(CompareConfig([str(one.folder), str(other.folder)], str(output)))
    assert found.names == ["one", "[b]other"]
    assert found.options == [
        ["data.batch_size", "4", "8"],
        ["optimizer.learning_rate", "0.003", "0.001"],
    ]
    ends = {row[0]: row[1:] for row in found.ends}
    assert ends["steps"] == ["2", "2"] and ends["tokens"] == ["256", "512"]
    assert ends["val/loss"] == [f"{result.metrics['val/loss']:.4f}" for result in results]
    points = [(line["val/loss"], line["step"]) for line in read_step_lines(one.folder / "metrics.jsonl")]
    assert ends["best val/loss"][0] == "{:.4f} at step {}".format(*min(points))
    for cell in ("[b]other", "optimizer.learning_rate", "0.001", ends["val/loss"][1], f"page  {output}"):
        assert cell in shown
    page = output.read_text()
    titles = re.findall(r"<svg[^>]*>\n<title>(.*?)</title>", page)
    # the runs read different numbers of tokens in a step
    assert titles[:4] == ["train/loss", "val/loss", "val/loss over tokens", "val/loss over seconds"]
    loss = re.search(r"<svg[^>]*>\n<title>val/loss</title>.*?</svg>", page, re.DOTALL)[0]
    assert re.findall(r"<title>(.*?)</title></path>", loss) == ["one", "[b]other"]
    assert loss.count("<circle") == 4 and "<script" not in page and "https://" not in page


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, config: str, lines: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(config)
        (folder / "metrics.jsonl").write_text(lines)
        return str(folder)

    good = run("good", yaml.safe_dump({"seed": 1}), '{"step": 1, "val/loss": 2.5}\n')
    for runs, message in {
        (): "two run folders or more",
        (good,): "two run folders or more",
        (good, f"{good}/."): "given twice",
        (good, str(tmp_path / "none")): "none is no run folder",
        (good, run("broken", "a: [", "")): "is not YAML",
        (good, run("text", "one", "")): "holds no options",
        (good, run("silent", "seed: 1", "")): "has no curves in metrics.jsonl",
    }.items():
        with pytest.raises(UserError, match=message):
            compare(CompareConfig(list(runs), str(tmp_path / "compare.html")))
    with pytest.raises(SystemExit):
        run_command("compare", [good])
    assert capsys.readouterr().err.startswith("error: give two run folders or more")
    assert not (tmp_path / "compare.html").exists()
    # a line by another hand
    odd = run("odd", yaml.safe_dump({"seed": 2}), '{"step": 1, "val/loss": "<b>", "tokens": true}\n')
    found = compare(CompareConfig([good, odd], str(tmp_path / "compare.html")))
    assert ["val/loss", "2.5000", "-"] in found.ends and found.options == [["seed", "1", "2"]]


def test_without_runs_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command("compare", [], program="lit-llm compare")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: lit-llm compare checkpoints/one checkpoints/other; ")
