"""The tasks of a recipe on the executors of datatrove: on this machine, or on a cluster with SLURM.

An executor is all that a second machine needs: every task leaves its result in files under a name of its own, so that
it does not matter who does it, or how often. Of the two engines that offer themselves datatrove is the lighter one: its
tasks are jobs that SLURM knows, and no more runs than these. Ray (a wheel of 79 MB, 202 MB installed, against 17 MB)
wants a head node and a daemon on every machine for as long as the work lasts, and a scheduler below SLURM's; its
objects and its shuffle are of no use to tasks that exchange files. Who has Ray finds an executor for it in datatrove.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config import ClusterConfig, UserError
from lit_llm.config.extras import optional_module
from lit_llm.data.corpus.recipes.workers import Advance, LocalWorkers

_MOST_TASKS = 1000
_SECONDS_BETWEEN_LOOKS = 5.0


@dataclass
class _Ranks:
    """What one rank of a pipeline of datatrove does: its stride of the items.

    Attributes:
        function: Takes an item.
        items: All items.
        processes: How many items a rank does at a time.
        is_quiet: Whether datatrove's log of the rank stays away.
    """

    function: Callable[[Any], None]
    items: Sequence[Any]
    processes: int
    is_quiet: bool

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.is_quiet:
            _log().disable("datatrove")

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        with LocalWorkers(self.processes) as workers:
            workers.run(self.function, self.items[rank::world_size])


def _log() -> Any:
    from loguru import logger  # which datatrove logs with

    return logger


class ClusterWorkers:
    """Executors of datatrove, one for each step's work.

    Args:
        config: Which of them, and how.
        number: How many tasks are done at a time; on SLURM, None leaves that to SLURM.
        folder: For what datatrove writes; every machine must see it under this path.

    Raises:
        UserError: datatrove is not installed, or there is no SLURM here.
    """

    def __init__(self, config: ClusterConfig, number: int | None, folder: Path) -> None:
        optional_module("datatrove", "executor datatrove", "data-cluster")
        if config.partition is None and config.cpus_per_task > 1:
            raise UserError("cluster.cpus_per_task is for SLURM; set cluster.partition, or num_workers instead")
        if config.partition is not None and shutil.which("sbatch") is None:
            raise UserError("cluster.partition is given, but there is no sbatch here; start this on a node with SLURM")
        self._config, self._most, self._folder = config, number, folder.resolve()
        self.number = number or _MOST_TASKS
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, function: Callable[[Any], None], items: Sequence[Any], advance: Advance | None = None) -> None:
        """See `Workers`.

        Raises:
            UserError: a job has ended before its work was done.
        """
        if not items:
            return
        # SLURM is asked for no more tasks than the longest array that it takes, mostly 1,001.
        ranks = min(len(items), self._config.tasks or _MOST_TASKS)
        work = _Ranks(function, items, self._config.cpus_per_task, self._config.partition is None)
        if self._config.partition is None:
            self._run_here(work, ranks)
        else:
            self._run_on_slurm(work, ranks)
        shutil.rmtree(self._folder, ignore_errors=True)
        for index in range(len(items) if advance else 0):
            advance(index)  # type: ignore[misc]

    def _run_here(self, work: _Ranks, ranks: int) -> None:
        from datatrove.executor import LocalPipelineExecutor

        _log().disable("datatrove")
        try:
            LocalPipelineExecutor([work], ranks, min(ranks, self.number), str(self._folder)).run()
        finally:
            _log().enable("datatrove")

    def _run_on_slurm(self, work: _Ranks, ranks: int) -> None:
        from datatrove.executor import SlurmPipelineExecutor

        config = self._config
        executor = SlurmPipelineExecutor(
            [work],
            ranks,
            config.time,
            config.partition,
            cpus_per_task=config.cpus_per_task,
            mem_per_cpu_gb=config.mem_per_cpu_gib,
            workers=self._most or -1,
            job_name="lit_llm_clean_data",
            qos=None,
            env_command=config.env_command,
            sbatch_args=dict(config.sbatch_args),
            max_array_size=ranks,
            logging_dir=str(self._folder),
        )
        try:
            executor.run()
        except subprocess.CalledProcessError as error:
            raise UserError(f"sbatch has refused the work of a step (status {error.returncode}); see above") from None
        while incomplete := executor.get_incomplete_ranks():
            if not _is_queued(executor.job_id) and (incomplete := executor.get_incomplete_ranks()):
                raise UserError(
                    f"SLURM job {executor.job_id} has ended, and {len(incomplete)} of its {ranks} tasks are not done; "
                    f"see {self._folder / 'slurm_logs'}; what is finished is kept: run the same command again"
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _is_queued(job: str) -> bool:
    """Whether SLURM still has something of a job to do."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", str(job)], capture_output=True, text=True)
    return asked.returncode == 0 and bool(asked.stdout.strip())
