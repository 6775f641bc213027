"""The sweep over learning rates: the same start for each, a suggestion, a page, and nothing else left behind."""

from __future__ import annotations

import copy
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MakeRun
from stage_runs import make_stage

from lit_llm.cli import run_command
from lit_llm.config import UserError, default_learning_rate, to_plain
from lit_llm.stages.find_rate import RateSweep, RateTrial, _Losses, find_rate, verdict
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.sft import sft


def test_trials_start_alike_and_leave_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    ends = {"max_tokens": 500 * 4 * 32, "max_time": 1e-9, "early_stopping_patience": 1}  # those of the whole run
    run = make_run(trainer={"max_steps": 300, **ends}, schedule={"warmup_steps": 100})
    told: list[RateTrial] = []
    sweep = find_rate(run, [1e30, 1e-2, 1e-5], steps=5, tell=told.append)
    assert told == sweep.trials and [trial.rate for trial in told] == [1e-5, 1e-2, 1e30]
    low, middle, high = sweep.trials
    assert low.losses[0] == middle.losses[0] == high.losses[0]  # the same weights on the same batch
    assert len(low.losses) == 5 and middle.score < low.score < high.score == math.inf
    assert not high.finite and high.validation_loss is None
    assert sweep.suggestion == 1e-2 and not sweep.at_the_edge
    assert list(tmp_path.iterdir()) == []
    # and the run itself is as it was: it has not been given a length or a rate
    assert (run.trainer.max_steps, run.schedule.warmup_steps, run.run_name) == (300, 100, "run")
    # one of 5 steps is its warm-up, as 100 of 500 are: the losses are those of such a run
    short = make_run(
        trainer={"max_steps": 5, "val_every_n_steps": None, "save_every_n_steps": None},
        schedule={"warmup_steps": 1},
        optimizer={"learning_rate": 1e-2},
    )
    result = pretrain(short)
    assert result is not None
    assert (middle.losses[-1], middle.validation_loss) == (result.metrics["train/loss"], result.metrics["val/loss"])


def test_rates_are_around_the_default_of_the_stage(tmp_path: Path) -> None:
    run = make_stage("dpo", tmp_path, optimizer={"learning_rate": None}, data={"validation_fraction": 0.0})
    sweep = find_rate(run, steps=4)
    default = default_learning_rate("dpo", sweep.parameters)
    assert sweep.default == default
    assert [trial.rate for trial in sweep.trials] == pytest.approx(
        [default * f for f in (0.1, 0.3, 1, 3, 10)], rel=0.05
    )
    assert all(trial.losses[0] == pytest.approx(math.log(2)) for trial in sweep.trials)
    last = sweep.trials[-1]
    assert last.validation_loss is None and last.score == last.losses[-1]  # a quarter of four


@pytest.mark.parametrize(
    ("stage", "groups", "warmup"),
    [
        # windows as long as the model reads; the run itself would choose a warm-up of 8 of 400 steps
        ("pretrain", {"data": {"sequence_length": None}, "trainer": {"max_steps": 400}}, 1),
        ("pretrain", {"trainer": {"max_steps": 400}, "schedule": {"warmup_steps": 200}}, 2),
        # 60 rows are packed into 32, so that 2 epochs are 8 steps; trainer.max_steps has no say
        ("sft", {"epochs": 2.0, "data": {"validation_fraction": 0.0}, "schedule": {"warmup_steps": 6}}, 3),
    ],
)
def test_the_warm_up_is_the_share_that_it_is_of_the_run(
    stage: str, groups: dict[str, Any], warmup: int, make_run: MakeRun, tmp_path: Path
) -> None:
    groups = {"schedule": {"warmup_steps": None}, **groups}
    run = make_run(**groups) if stage == "pretrain" else make_stage(stage, tmp_path, **groups)
    asked = copy.deepcopy(run)
    (trial,) = find_rate(run, [1e-2], steps=4).trials
    assert run == asked
    groups.pop("epochs", None)
    groups["schedule"] = {"warmup_steps": warmup}
    groups["trainer"] = {"max_steps": 4, "val_every_n_steps": None, "save_every_n_steps": None, "log_every_n_steps": 1}
    groups["optimizer"] = {"learning_rate": 1e-2}
    short = make_run(**groups) if stage == "pretrain" else make_stage(stage, tmp_path, **groups)
    result = pretrain(short) if stage == "pretrain" else sft(short)
    assert result is not None and trial.losses[-1] == result.metrics["train/loss"]


def test_muon_moves_along(make_run: MakeRun) -> None:
    """Only Muon's rate makes a difference after one step of warm-up where AdamW's is as good as none."""
    run = make_run(optimizer={"name": "muon", "learning_rate": 1e-9, "muon_learning_rate": 1e-3})
    low, high = find_rate(run, [1e-9, 3e-8], steps=4).trials
    assert low.losses[0] == high.losses[0] and abs(low.losses[-1] - high.losses[-1]) > 1e-3


def test_the_lowest_of_those_as_good_is_suggested() -> None:
    trials = [
        RateTrial(rate, [3.0], loss, True) for rate, loss in ((1e-4, 2.5), (3e-4, 2.01), (1e-3, 2.0), (3e-3, 2.3))
    ]
    sweep = RateSweep("sft", 10**6, 1e-3, trials)
    assert (sweep.best.rate, sweep.suggestion) == (1e-3, 3e-4)
    assert "learning_rate 0.0003, within 1% of the best (0.001)" in verdict(sweep)
    assert "--rates can go further" in verdict(RateSweep("sft", 10**6, 1e-3, trials[:3]))
    both = verdict(RateSweep("pretrain", 10**6, 1e-3, trials, muon_default=0.02))
    assert "--optimizer.learning_rate 0.0003 --optimizer.muon_learning_rate 0.006, within" in both
    lost = RateSweep("sft", 10**6, 1e-3, [RateTrial(1.0, [], None, False)])
    with pytest.raises(UserError, match="no loss stayed finite"):
        assert lost.suggestion


def test_reinforcement_learning_has_no_loss_to_compare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not for ppo"):
        find_rate(make_stage("ppo", tmp_path))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_stage("sft", tmp_path / "made")
    before = set(tmp_path.rglob("*"))
    words = ["--stage", "sft", "--steps", "4", "--rates", "[1e-3, 1e-2]", "--output", "out/rates.html", "--"]
    stage = [
        "--init_from",
        str(run.init_from),
        "--data.paths",
        f"[{run.data.paths[0]}]",
        "--trainer.accelerator",
        "cpu",
    ]
    run_command("find_rate", [*words, *stage])
    printed = capsys.readouterr()
    assert re.search(r"\| 0\.01 .*suggested", printed.out) and "picture  out/rates.html" in printed.out
    page = (tmp_path / "out" / "rates.html").read_text()
    assert page.count("<svg") == 2 and "0.001" in page and "suggested: --optimizer.learning_rate 0.01" in page
    assert "http-equiv" not in page and "src=" not in page
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "out", tmp_path / "out" / "rates.html"}
    # a page that cannot be written does not take the numbers along
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(SystemExit):
        run_command("find_rate", [*words[:-2], "taken.html", "--", *stage])
    printed = capsys.readouterr()
    assert "suggested: --optimizer.learning_rate 0.01" in printed.out and "picture" not in printed.out
    assert re.search("error: .*taken.html", printed.err.splitlines()[-1])
    with pytest.raises(SystemExit):
        run_command("find_rate", [*words, "--init_frm", "x"])
    assert "there is no option init_frm; the nearest is init_from" in capsys.readouterr().err


def test_ctrl_c_ends_a_trial_as_it_ends_other_commands(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(to_plain(make_run())))

    def interrupted(self: _Losses, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_Losses, "on_train_batch_end", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stopped:
            run_command("find_rate", ["--run", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "rates.html")])
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has no more of it
    assert stopped.value.code == 130 and not (tmp_path / "rates.html").exists()
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"


def test_an_option_of_the_run_before_the_two_dashes_is_told_where_it_stands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run_command("find_rate", ["--stage", "sft", "--init_from", "checkpoints/pretrain"])
    assert capsys.readouterr().err.rstrip().endswith("; an option of the stage's run stands after a lone --")
