"""A trace of a few steps, which changes nothing."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from run_files import all_curves, assert_equal_weights

from lit_llm.config import PretrainConfig
from lit_llm.stages.pretrain import pretrain


def trace(config: PretrainConfig) -> list[dict[str, Any]]:
    with gzip.open(config.folder / "profile" / "rank_0.pt.trace.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


def steps(events: list[dict[str, Any]]) -> list[int]:
    """Numbers of the traced steps, from 0 at the start of the process."""
    names = (re.fullmatch(r"ProfilerStep#(\d+)", event.get("name", "")) for event in events)
    return sorted({int(name[1]) for name in names if name})


def count(events: list[dict[str, Any]], name: str) -> int:
    return sum(event.get("name") == name for event in events)


def short(make_run: MakeRun, name: str, micro_batch_size: int | None = None, **trainer: Any) -> PretrainConfig:
    """A run of one layer, as a trace grows with all that is computed."""
    return make_run(
        name,
        trainer={"val_every_n_steps": None, **trainer},
        data={"micro_batch_size": micro_batch_size},
        model={"dropout": 0.1, "num_layers": 1},
    )


def test_steps_are_traced_after_the_first_few_and_nothing_else_changes(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, profiled = short(make_run, "plain", 2), short(make_run, "profiled", 2, profile_steps=2)
    pretrain(plain)
    assert not (plain.folder / "profile").exists()
    capsys.readouterr()
    pretrain(profiled)
    assert_equal_weights(plain, profiled)
    assert all_curves(plain)["train/loss"] == all_curves(profiled)["train/loss"]
    events = trace(profiled)
    assert steps(events) == [3, 4]
    # two micro-batches of one block in each step
    kernels = ("aten::scaled_dot_product_attention", "lit_llm::blocked_attention")
    assert sum(count(events, name) for name in kernels) == 2 * 2
    assert count(events, "Optimizer.step#LocalAdamW.step") == 2
    table = (profiled.folder / "profile" / "summary.txt").read_text()
    rows = table.split("\n")[3:13]
    shares = [float(re.search(r"([\d.]+)%", row)[1]) for row in rows]  # type: ignore[index]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and shares[0] > 0
    assert f"profile of 2 steps in {profiled.folder / 'profile'}" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "traced"), [(3, [1, 2, 3]), (9, [0, 1, 2, 3])])
def test_a_run_too_short_to_warm_up_is_traced_all_the_same(
    asked: int,
    traced: list[int],
    make_run: MakeRun,
    recwarn: pytest.WarningsRecorder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = short(make_run, "run", max_steps=4, profile_steps=asked)
    pretrain(config)
    assert steps(trace(config)) == traced
    assert f"profile of {len(traced)} steps" in capsys.readouterr().err
    assert not [warning for warning in recwarn if "profil" in str(warning.message).lower()]


@pytest.mark.parametrize(
    ("patience_steps", "said"), [(1, "no profile: the run ended before"), (3, "profile of 3 steps")]
)
def test_a_run_that_ends_early_leaves_what_was_traced(
    patience_steps: int, said: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {"early_stopping_patience": 1, "val_every_n_steps": patience_steps, "max_steps": 99, "profile_steps": 50}
    config = make_run(trainer=ends, model={"num_layers": 1}, optimizer={"learning_rate": 1e-12})
    pretrain(config)  # ends at the second validation
    assert said in capsys.readouterr().err
    assert not torch.autograd._profiler_enabled()
    assert (config.folder / "profile").exists() == (patience_steps == 3)


def test_a_resumed_run_is_traced_where_it_goes_on(make_run: MakeRun) -> None:
    pretrain(short(make_run, "run", max_steps=2))
    config = short(make_run, "run", max_steps=8, profile_steps=1)
    config.ckpt_path = "last"
    pretrain(config)
    assert steps(trace(config)) == [3]


class Fail(L.Callback):
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 4:
            raise ZeroDivisionError


def test_a_failed_run_leaves_no_profiler_running(make_run: MakeRun) -> None:
    config = short(make_run, "failed", profile_steps=3)
    with pytest.raises(ZeroDivisionError):
        pretrain(config, callbacks=[Fail()])
    assert not torch.autograd._profiler_enabled()
    assert not (config.folder / "profile").exists()
    again = short(make_run, "again", profile_steps=1)
    pretrain(again)
    assert steps(trace(again)) == [3]


@pytest.mark.gpu
def test_memory_on_cuda(make_run: MakeRun) -> None:
    config = make_run("gpu", trainer={"accelerator": "gpu", "profile_steps": 2})
    pretrain(config)
    assert any(event.get("cat") == "kernel" for event in trace(config))
    with Path(config.folder / "profile" / "memory_rank_0.pickle").open("rb") as file:
        snapshot = pickle.load(file)
    assert snapshot["segments"] and any(snapshot["device_traces"])
