"""The runs of a grid in this process, or several at a time in processes of their own, each with its share."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lit_llm.config import NonFiniteStep, PretrainConfig, UserError
from lit_llm.config.files import write_json

POINT_FILE = "point.json"
"""What a finished run of the grid leaves in its folder for the fit."""


@dataclass(frozen=True)
class Task:
    """A run of the grid, and what its point.json says besides what comes of it."""

    run: PretrainConfig
    """The run; its folder is in runs/ of the grid."""
    facts: dict[str, Any]
    """Of the point: budget, sizes, tokens."""

    @property
    def file(self) -> Path:
        """The point.json, which is there once the run is finished."""
        return self.run.folder / POINT_FILE

    @property
    def log(self) -> Path:
        """What the run says."""
        return Path(self.run.output_root).parent / "logs" / f"{self.run.run_name}.txt"


def train_all(tasks: Sequence[Task], number: int, done: Callable[[Task, dict[str, Any]], None]) -> None:
    """Train what is not finished yet; a run that was stopped goes on from its checkpoint.

    Args:
        tasks: the runs, each alone in its folder.
        number: runs at a time; 1 is this process itself.
        done: is called with each task that has been done, and its point.

    Raises:
        UserError: a run failed for another reason than a loss that is not finite, was stopped, or a process was killed.
    """
    if number == 1:
        for task in tasks:
            done(task, train(task))
        return
    _Pool(number).run(tasks, done)


def train(task: Task) -> dict[str, Any]:
    """Train one run and write its point; returns that.

    Raises:
        UserError: see `train_all`.
    """
    import torch

    from lit_llm.stages.pretrain import pretrain
    from lit_llm.training.curves import METRICS_FILE
    from lit_llm.training.step_lines import read_step_lines
    from lit_llm.training.strategies import is_on_gpu

    run = task.run
    task.log.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with task.log.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        try:
            pretrain(run)
        except NonFiniteStep as error:
            found = {"loss": None, "why": " ".join(str(error).split())}
    if not found:
        lines = read_step_lines(run.folder / METRICS_FILE)
        last = next((line for line in reversed(lines) if "val/loss" in line), {})
        if last.get("step") != run.trainer.max_steps:
            raise UserError(f"{run.folder} ended without a validation at step {run.trainer.max_steps}; see {task.log}")
        found = {
            "loss": last["val/loss"],
            "bits_per_byte": last.get("val/bits_per_byte"),
            "seconds": lines[-1]["seconds"],
            "threads": None if is_on_gpu(run.trainer) else torch.get_num_threads(),
        }
        if found["loss"] is None:  # as metrics.jsonl has it
            found = {"loss": None, "why": "its loss on the validation split is not finite"}
    point = {**task.facts, **found}
    write_json(task.file, point)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # which only resume it
    return point


class _Pool:
    """Processes that train one run after another, each on its share of the machine, and that end with this one."""

    def __init__(self, number: int) -> None:
        import torch

        gpus = _visible_gpus()
        if gpus and number > len(gpus):
            raise UserError(f"num_workers is {number}, and this machine has {len(gpus)} GPUs; give at most so many")
        threads = max(1, torch.get_num_threads() // number)
        context = multiprocessing.get_context("spawn")
        watched, self._lifeline = context.Pipe(duplex=False)
        self._processes, self._ends = [], []
        for index in range(number):
            ours, theirs = context.Pipe()
            share = (gpus[index] if gpus else None, threads)
            process = context.Process(target=_work, args=(theirs, watched, *share), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._ends.append(ours)
        watched.close()

    def run(self, tasks: Sequence[Task], done: Callable[[Task, dict[str, Any]], None]) -> None:
        """See `train_all`."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self._share_out(deque(tasks), done)
        finally:
            for process in self._processes:  # a run that is stopped so saves its state first
                process.terminate()
            for end in self._ends:  # and waits for no other
                end.close()
            for process in self._processes:
                process.join()
            self._lifeline.close()
            signal.signal(signal.SIGTERM, before)

    def _share_out(self, waiting: deque[Task], done: Callable[[Task, dict[str, Any]], None]) -> None:
        busy: dict[Any, Task] = {}
        idle = list(self._ends)
        while waiting or busy:
            while waiting and idle:
                end = idle.pop()
                busy[end] = waiting.popleft()
                end.send(busy[end])
            for end in wait(list(busy)):
                try:
                    found = end.recv()  # type: ignore[union-attr]
                except EOFError:
                    raise UserError(
                        f"the process that trained {busy[end].run.run_name} was killed, as the system does when memory "
                        "runs out; what is finished is kept: the same command goes on, with a smaller num_workers"
                    ) from None
                if isinstance(found, Exception):
                    raise found
                done(busy.pop(end), found)
                idle.append(end)  # type: ignore[arg-type]


def _visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them; none where there is no CUDA."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _work(end: Connection, lifeline: Connection, gpu: str | None, threads: int) -> None:
    """Train what comes through `end` until it is closed."""
    os.setpgrp()  # Ctrl-C reaches the first process, which stops this one once
    threading.Thread(target=_stop_with, args=(lifeline,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            task = end.recv()
        except EOFError:
            return
        try:
            found: Any = train(task)
        except Exception as error:
            found = error
        with contextlib.suppress(OSError):
            end.send(found)


def _stop_with(lifeline: Connection) -> None:
    """Stop this process as a request to stop would when the first process has ended, be it killed."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
