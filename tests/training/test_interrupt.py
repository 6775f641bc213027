"""SIGINT and SIGTERM end a run at a step boundary, with a checkpoint that goes on exactly."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

import lightning as L
import pytest
from conftest import MakeRun
from run_files import assert_equal_weights, checkpoints

from lit_llm.cli import main
from lit_llm.config import PretrainConfig, UserError
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint import Interrupted, Preempted
from lit_llm.training.interrupt import SIGNALS


class Send(L.Callback):
    """Sends signals to this process at the start of a micro-batch."""

    def __init__(self, micro_batch: int, *signals: signal.Signals) -> None:
        self.micro_batch = micro_batch
        self.signals = signals

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.micro_batch:
            for number in self.signals:
                os.kill(os.getpid(), number)


OPTIONS: dict[str, Any] = {
    "model": {"dropout": 0.1},
    "data": {"micro_batch_size": 1},
    "trainer": {"max_steps": 6, "val_every_n_steps": 3, "save_every_n_steps": None},
}


@pytest.fixture
def handlers() -> Any:
    """The handlers must be after a run what they were before."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


# of four micro-batches in a step: the second of step 4, the last of step 2, and the first of step 3, which validates
@pytest.mark.parametrize(
    ("number", "micro_batch", "step"), [(signal.SIGTERM, 13, 4), (signal.SIGINT, 7, 2), (signal.SIGTERM, 8, 3)]
)
def test_the_step_is_finished_and_the_run_goes_on_exactly(
    number: signal.Signals, micro_batch: int, step: int, make_run: MakeRun, handlers: None
) -> None:
    straight = make_run("straight", **OPTIONS)
    pretrain(straight)
    with pytest.raises(Interrupted, match=f"stopped after step {step}; go on from there with --ckpt_path last"):
        pretrain(make_run("stopped", **OPTIONS), callbacks=[Send(micro_batch, number)])
    resumed = make_run("stopped", **OPTIONS, ckpt_path="last")
    assert list(checkpoints(resumed)) == [step]
    pretrain(resumed)
    assert_equal_weights(straight, resumed)


def test_a_second_signal_stops_at_once(make_run: MakeRun, handlers: None) -> None:
    config = make_run(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, callbacks=[Send(5, signal.SIGINT, signal.SIGINT)])
    assert not checkpoints(config)


def test_the_handlers_come_back_after_a_whole_run(make_run: MakeRun, handlers: None) -> None:
    pretrain(make_run(trainer={"max_steps": 2}))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 1)])
def test_the_exit_status_tells_a_job_script_to_queue_the_job_again(
    number: signal.Signals, status: int, make_run: MakeRun, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the checkpoint is written in the background: the process ends when it is on the disk."""
    trainer = {**OPTIONS["trainer"], "async_checkpoints": True}
    config = make_run(**{**OPTIONS, "trainer": trainer})
    with pytest.raises(SystemExit) as stopped:
        main(PretrainConfig, lambda _: pretrain(config, callbacks=[Send(5, number)]), [])
    assert stopped.value.code == status
    assert list(checkpoints(config)) == [2]
    assert capsys.readouterr().err.endswith("error: stopped after step 2; go on from there with --ckpt_path last\n")
    assert issubclass(Preempted, Interrupted)


class SmallDisk(Send):
    """Sends a signal, and lets this process write no large file from then on."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch_idx == self.micro_batch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("background", [False, True])
def test_a_run_that_could_not_save_does_not_say_that_it_stopped(
    background: bool, make_run: MakeRun, handlers: None
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = {**OPTIONS["trainer"], "async_checkpoints": background}
    config = make_run(**{**OPTIONS, "trainer": trainer})
    try:
        with pytest.raises(UserError, match=r"cannot write .*step_00000002.ckpt: File too large") as error:
            pretrain(config, callbacks=[SmallDisk(5, signal.SIGTERM)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(error.value, Interrupted)
    assert list((config.folder / "checkpoints").iterdir()) == []
