"""The grid of small models: each run has its own schedule, what is finished is kept, and the fit says what they do."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import MakeRun

from lit_llm.cli import run_command
from lit_llm.cli.plan_scaling import scaling_lines
from lit_llm.config import PlanConfig, PretrainConfig, ScalingConfig, UserError, to_plain
from lit_llm.evaluation.scaling_report import NOTHING_FITTED
from lit_llm.planning.scaling_fit import ScalingFit, fit_points, read_fit
from lit_llm.planning.scaling_law import ScalingLaw
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.scaling import _save, lay_out, scaling, task_of
from lit_llm.stages.scaling_advice import advise_hours
from lit_llm.stages.scaling_workers import Task, train
from lit_llm.training.checkpoint import Interrupted
from lit_llm.training.interrupt import GracefulStop

# three sizes under two budgets, of 50 steps and more
BUDGETS, SIZES = [3.1e7, 6.2e7], [1772.0, 3864.0, 6276.0]


@pytest.fixture
def recipe(make_run: MakeRun) -> PretrainConfig:
    run = make_run(
        model={"hidden_size": 16, "num_heads": 4, "num_layers": 1, "intermediate_size": 32},
        data={"sequence_length": 8, "batch_size": 2, "validation_windows": 4},
        optimizer={"learning_rate": None},
        schedule={"warmup_steps": None},
        trainer={"log_every_n_steps": 50},
    )
    return replace(run, samples=replace(run.samples, prompts=[]))


def tasks_of(config: ScalingConfig, run: PretrainConfig) -> list[Task]:
    grid = lay_out(config, run)
    return [task_of(grid, point) for point in grid.points]


def test_a_grid_is_trained_fitted_and_kept(
    recipe: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grid"
    config = ScalingConfig(output=str(folder), budgets=BUDGETS, sizes=SIZES)
    told: list[str] = []
    _, fit = scaling(config, recipe, told.append)
    assert fit is not None and len(fit.points) == 6 == len(told)
    assert re.search(r"^1/6 3\.1e\+07 operations, [\d,]+ parameters, [\d,]+ tokens: loss \d\.\d{4}; about", told[0])
    for point in fit.points:
        run = folder / "runs" / point.name
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert (
            lines[-1]["step"]
            == point.steps
            == yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"]
        )
        assert lines[-1]["val/loss"] == point.loss and lines[-1]["val/bits_per_byte"] == point.bits_per_byte
        assert point.warmup_steps == max(1, round(0.02 * point.steps)) and point.steps >= 50
        # its rate has come down to a tenth at its own end
        rate = next(value for name, value in lines[-1].items() if name.startswith("learning_rate/"))
        assert rate < 0.15 * point.learning_rate
        assert not (run / "checkpoints").exists() and (run / "model").is_dir()
    assert fit.law is not None and len(fit.isoflop.parabolas) == 2
    # the plan of the grid is read back, nothing is trained, and the numbers are the same
    told.clear()
    _, again = scaling(ScalingConfig(output=str(folder)), None, told.append)
    assert told == ["6 of 6 runs are finished already"] and again is not None and again.points == fit.points
    kept = read_fit(folder)
    assert kept.law == fit.law and kept.isoflop == fit.isoflop and kept.points == fit.points
    # another size adds to it
    told.clear()
    _, wider = scaling(ScalingConfig(output=str(folder), budgets=BUDGETS[1:], sizes=[9e3]), recipe, told.append)
    assert len(told) == 1 and wider is not None and len(wider.points) == 7
    _others_are_refused(recipe, folder)
    _the_command(folder, capsys)


def _others_are_refused(recipe: PretrainConfig, folder: Path) -> None:
    """What would make other losses is named; what would not is taken."""
    config = ScalingConfig(output=str(folder))
    other = replace(recipe, optimizer=replace(recipe.optimizer, weight_decay=0.2), seed=5)
    with pytest.raises(UserError, match=r"another recipe: optimizer.weight_decay \(from 0.1 to 0.2\); give the same"):
        lay_out(config, other)
    fewer = replace(recipe, data=replace(recipe.data, validation_windows=2))
    with pytest.raises(UserError, match=r"another recipe: data\.validation_windows"):
        lay_out(config, fewer)
    assert lay_out(config, replace(recipe, trainer=replace(recipe.trainer, log_every_n_steps=7))).budgets == BUDGETS[1:]
    saved = yaml.safe_load((folder / "grid.yaml").read_text())
    (folder / "grid.yaml").write_text(yaml.safe_dump({**saved, "digests": ["x"]}))
    with pytest.raises(UserError, match=r"the content of data\.paths has changed"):
        lay_out(config, None)
    (folder / "grid.yaml").write_text("recipe: 3")
    with pytest.raises(UserError, match=r"grid.yaml is damaged"):
        lay_out(config, None)
    (folder / "grid.yaml").write_text(yaml.safe_dump(saved))


def test_a_later_start_has_the_options_of_the_folder(recipe: PretrainConfig, tmp_path: Path) -> None:
    """However many starts lie between, and whatever they have asked for."""
    folder = tmp_path / "grid"
    alone = ScalingConfig(output=str(folder))

    def points(config: ScalingConfig, run: PretrainConfig | None = None) -> list[tuple[float, int, int]]:
        grid = lay_out(config, run)
        folder.mkdir(exist_ok=True)
        _save(grid)
        return [(point.budget, point.member.index, point.seed) for point in grid.points]

    first = points(
        replace(alone, budgets=[2e8, 4e8], sizes=SIZES[:2], seeds=[3, 4], parameters="non_embedding"), recipe
    )
    assert len(first) == 8 and {seed for *_, seed in first} == {3, 4}
    assert points(alone) == points(alone) == first
    assert lay_out(alone, None).family.counted == "non_embedding"
    # another budget has the same models, and points or tokens_per_parameter take the place of sizes
    wider = points(replace(alone, budgets=[8e8]))
    assert wider == [(8e8, index, seed) for _, index, seed in first[:4]]
    around = points(replace(alone, points=3, tokens_per_parameter=2.0, seeds=[3]))
    assert len(around) == 3 and around != points(replace(alone, tokens_per_parameter=4.0))
    assert points(alone) == points(replace(alone, points=3))
    # budgets of a time are not measured again for the same time, unless others have been given since
    saved = yaml.safe_load((folder / "grid.yaml").read_text())
    (folder / "grid.yaml").write_text(yaml.safe_dump({**saved, "minutes": 1e-3}))
    points(alone)
    assert lay_out(replace(alone, minutes=1e-3), recipe).budgets == [8e8]
    points(replace(alone, budgets=[2e8]))
    with pytest.raises(UserError, match="minutes are too short for a grid"):
        lay_out(replace(alone, minutes=1e-3), recipe)
    (folder / "grid.yaml").write_text(yaml.safe_dump({**saved, "points": 2}))
    with pytest.raises(UserError, match=r"grid.yaml is damaged"):
        lay_out(alone, None)


def _the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report, the advice as a recipe, and the plan that reads the fit."""
    run_command("scaling", ["--output", str(folder), "--hours", "0.001"])
    printed = capsys.readouterr().out
    assert "best N grows with compute" in printed and f"report  {folder}/scaling.html" in printed
    page, text = (folder / "scaling.html").read_text(), (folder / "scaling.md").read_text()
    assert page.count("<svg") == 4 and "src=" not in page and "<script" not in page
    assert "## What to train\n\nIn 0.001 hours on the machine of the grid" in text and "| best |" in text
    advised = re.search(r"([\d,]+) steps\.$", text, re.MULTILINE)
    run = yaml.safe_load((folder / "pretrain.yaml").read_text())
    assert advised is not None and run["trainer"]["max_steps"] == int(advised[1].replace(",", ""))
    fit = read_fit(folder)
    options = "--model.preset llama-10m --model.hidden_size 16 --model.num_layers 1 --model.num_heads 4 "
    options += "--model.intermediate_size 32 --model.max_position_embeddings 32 --model.vocab_size 400 "
    options += f"--data.sequence_length 8 --data.batch_size 2 --trainer.max_steps 100 --scaling {folder} --gpu T4"
    run_command("plan", options.split())
    planned = capsys.readouterr().out
    assert fit.law is not None
    loss, ends = fit.law.predict(fit.family.n(4), 1600.0)
    expected = re.search(r"after 1,600 tokens: ([\d.]+) nats per token(?: \(95% interval ([\d.]+) to)?", planned)
    assert expected is not None and float(expected[1]) == pytest.approx(loss, abs=1e-4)
    assert ends is None or float(expected[2]) == pytest.approx(ends[0], abs=1e-4)
    assert "best of the same" in planned and "extrapolation" not in planned and "the grid had" not in planned
    run_command("plan", [*options.replace("steps 100", "steps 9000").split(), "--data.batch_size", "4"])
    planned = capsys.readouterr().out
    assert re.search(r"note: that is an extrapolation: .* are [\d.]+ times the largest run", planned)
    assert "the grid had data.batch_size 2; its law is not that of this recipe" in planned


def test_a_run_that_was_stopped_goes_on(recipe: PretrainConfig, tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *more: Any) -> None:
            if trainer.global_step == 20:
                os.kill(os.getpid(), signal.SIGTERM)

    whole, stopped = (
        tasks_of(ScalingConfig(output=str(tmp_path / name), budgets=BUDGETS[:1], sizes=SIZES[:1]), recipe)[0]
        for name in ("whole", "stopped")
    )
    with pytest.raises(Interrupted):
        pretrain(stopped.run, callbacks=[Stop()])
    assert not stopped.file.exists()
    found = train(stopped)
    assert found["loss"] == train(whole)["loss"] and json.loads(stopped.file.read_text()) == found
    assert "resumed at step 20" in stopped.log.read_text()
    assert found["threads"] == torch.get_num_threads()


def test_a_run_that_diverges_is_left_out(
    recipe: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=1e30))
    config = ScalingConfig(output=str(tmp_path / "grid"), budgets=BUDGETS[:1], sizes=SIZES[:1])
    with pytest.raises(UserError, match="holds no finished run"):
        scaling(config, wild)
    assert "is left out: " in capsys.readouterr().err


def test_a_run_whose_last_step_is_one_too_many_is_left_out(recipe: PretrainConfig, tmp_path: Path) -> None:
    """The steps are finite, and the weights after the last of them are not of use."""
    wild = replace(
        recipe,
        optimizer=replace(recipe.optimizer, learning_rate=1e12),
        schedule=replace(recipe.schedule, warmup_steps=0),
    )
    (task,) = tasks_of(ScalingConfig(output=str(tmp_path / "grid"), budgets=BUDGETS[:1], sizes=SIZES[:1]), wild)
    one_step = replace(task, run=replace(task.run, trainer=replace(task.run.trainer, max_steps=1)))
    found = train(one_step)
    assert (found["loss"], found["why"]) == (None, "its loss on the validation split is not finite")
    assert json.loads(task.file.read_text()) == found


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "say how large the grid is: --minutes 20, or --budgets"),
        ({"budgets": [1e3], "sizes": [1772.0]}, "no run of the grid is left; left out of 1e.03 operations"),
        ({"minutes": 1e-3}, "minutes are too short for a grid"),
    ],
)
def test_what_is_no_grid(options: dict[str, Any], complaint: str, recipe: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        scaling(ScalingConfig(output=str(tmp_path / "grid"), **options), recipe)
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--output", "nowhere"], "there is no grid in nowhere yet: give the options of a pretraining run after --"),
        (["--budgets", "[1e9]", "--minutes", "2"], "budgets and minutes are given"),
        (["--budgets", "[1e9, 1e9]"], "budgets is .*; it must be a list of different numbers above 0"),
        (["--gpu", "T4"], "gpu has no effect without hours"),
        (["--hours", "1", "--num_gpus", "2"], "num_gpus and mfu have no effect without gpu"),
        (["--hours", "1", "--gpu", "H1000"], "gpu 'H1000' is not in the table"),
        (["--points", "2"], "points is 2"),
        (["--output", "x", "--", "--init_from", "y"], "a law is fitted to models that start from random weights"),
    ],
)
def test_one_line_for_what_is_wrong(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_command("scaling", words)
    error = capsys.readouterr().err
    assert re.search(complaint, error) and error.count("\n") == 1


def grid_of_losses(law: ScalingLaw, recipe: PretrainConfig, config: ScalingConfig) -> ScalingFit:
    """The fit of a grid whose losses are a law's."""
    from lit_llm.config import from_plain, to_plain
    from lit_llm.planning.scaling_fit import Point

    grid = lay_out(config, recipe)
    points = []
    for task in tasks_of(config, recipe):
        n, d = task.facts["total"], task.facts["tokens"]
        found = {"loss": law.loss(n, d), "bits_per_byte": 0.5 * law.loss(n, d), "seconds": task.facts["flops"] / 1e8}
        points.append(from_plain(Point, {**task.facts, **found}))
    return fit_points(points, to_plain(grid.run), "total")


def test_the_advice_is_the_law_s_best_for_the_time(recipe: PretrainConfig, tmp_path: Path) -> None:
    law = ScalingLaw(1.8, 50.0, 300.0, 0.4, 0.4)
    config = ScalingConfig(output=str(tmp_path), budgets=[5e7, 2e8], sizes=[1772.0, 3864.0, 6276.0, 9008.0])
    fit = grid_of_losses(law, recipe, config)
    assert fit.law is not None and fit.law.law.irreducible == pytest.approx(1.8, rel=1e-3)
    assert fit.bits_per_nat == pytest.approx(0.5)
    advice = fit.advise_seconds(4.0)  # at 1e8 operations a second, on this machine
    assert advice is not None and advice.flops == pytest.approx(4e8, rel=0.01)
    losses = {
        index: law.loss(fit.family.n(index), 4e8 / fit.family.member(index).flops_per_token) for index in range(1, 9)
    }
    assert advice.member.index == min(losses, key=losses.__getitem__)
    assert advice.loss == pytest.approx(losses[advice.member.index], rel=1e-3)
    _a_share_of_the_threads_is_said(fit, config)
    assert fit.extrapolation(1.9e9) is None
    assert "12" in str(fit.extrapolation(2.4e9)) and "10 times" not in str(fit.extrapolation(2.4e9))
    _nothing_is_made_of_a_grid_that_shows_nothing(fit, config, tmp_path)
    one = fit_points([point for point in fit.points if point.budget == 2e8], fit.recipe, "total")
    assert one.law is None and one.lines[0].startswith("no law: ")


def _a_share_of_the_threads_is_said(fit: ScalingFit, config: ScalingConfig) -> None:
    """The runs of several at a time are slower than one that has the processor to itself."""
    threads = torch.get_num_threads()
    hours = replace(config, hours=4 / 3600)
    for had, said in (
        (None, "runs, 4e+08"),
        (1, "runs (some had 1 of 2 threads, and a run with all"),
        (2, "runs, 4e+08"),
    ):
        torch.set_num_threads(2)
        try:
            advice = advise_hours(replace(fit, points=[replace(point, threads=had) for point in fit.points]), hours)
        finally:
            torch.set_num_threads(threads)
        assert advice is not None and f"the machine of the grid, at the speed of its {said}" in advice.text


def _nothing_is_made_of_a_grid_that_shows_nothing(fit: ScalingFit, config: ScalingConfig, folder: Path) -> None:
    """Two runs: neither a law, nor a parabola, and no word of how far a plan is beyond them."""
    few = fit_points(fit.points[:2], fit.recipe, "total")
    assert few.law is None and not few.isoflop.parabolas
    (folder / "scaling.json").write_text(json.dumps(few.as_plain()))
    plan = PlanConfig(scaling=str(folder), model=replace(fit.model))
    plan.trainer.max_steps, plan.data.sequence_length = 10**6, 8
    (line,) = scaling_lines(plan)
    assert line == f"scaling: {folder} says nothing of this run: its grid has {NOTHING_FITTED}"


def test_ctrl_c_ends_a_grid_as_it_ends_other_commands(
    recipe: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of its only run, with one worker; the run saves itself, and goes on from there."""
    words = ["--output", str(tmp_path / "grid"), "--budgets", json.dumps(BUDGETS[:1]), "--sizes", json.dumps(SIZES[:1])]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_plain(recipe)))
    words += ["--run", str(tmp_path / "recipe.yaml")]
    boundary, stops = GracefulStop.on_train_batch_end, [20]

    def interrupted(self: GracefulStop, trainer: L.Trainer, *more: Any) -> None:
        if trainer.global_step in stops:
            stops.clear()
            os.kill(os.getpid(), signal.SIGINT)
        boundary(self, trainer, *more)

    monkeypatch.setattr(GracefulStop, "on_train_batch_end", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run_command("scaling", words)
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: stopped; what is finished is kept, and the same command goes on"
    )
    run_command("scaling", words)
    printed = capsys.readouterr()
    assert f"the finished runs (1) show {NOTHING_FITTED}: more sizes or budgets may" in printed.out
    assert "best N" not in printed.out
    (log,) = (tmp_path / "grid" / "logs").iterdir()
    assert "resumed at step 20" in log.read_text()


@pytest.mark.slow
def test_minutes_choose_budgets_and_a_dry_run_leaves_nothing(recipe: PretrainConfig, tmp_path: Path) -> None:
    grid, fit = scaling(ScalingConfig(output=str(tmp_path / "grid"), minutes=0.5, dry_run=True), recipe)
    assert fit is None and not (tmp_path / "grid").exists()
    assert len(grid.budgets) == 3 and grid.budgets[2] / grid.budgets[0] == pytest.approx(9, rel=0.1)
    assert 5 < sum(map(grid.seconds, grid.points)) < 31


@pytest.mark.slow
def test_several_at_a_time(recipe: PretrainConfig, tmp_path: Path) -> None:
    """Processes of their own give the same losses, also where Ctrl-C has stopped one in the middle of its run."""

    def stop(line: str) -> None:
        if line.startswith("1/2 "):
            raise KeyboardInterrupt

    budgets = [BUDGETS[0], 5 * BUDGETS[0]]
    config = ScalingConfig(output=str(tmp_path / "two"), budgets=budgets, sizes=SIZES[:1], num_workers=2)
    with pytest.raises(KeyboardInterrupt, match="what is finished is kept, and the same command goes on"):
        scaling(config, recipe, stop)
    _, two = scaling(config, recipe)
    _, one = scaling(replace(config, output=str(tmp_path / "one"), num_workers=1), recipe)
    assert one is not None and two is not None
    assert [point.loss for point in one.points] == [point.loss for point in two.points]
