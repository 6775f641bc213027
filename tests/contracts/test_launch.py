"""The launch examples: torchrun starts dead workers again, a preempted SLURM job puts itself back in the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, MakeRun
from test_resume import assert_same_run, wait_for

from lit_llm.config import PretrainConfig, to_plain
from lit_llm.stages.pretrain import pretrain

pytestmark = pytest.mark.slow
LAUNCH = ROOT / "experiments" / "launch"


def start(script: str, config: PretrainConfig, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    recipe = Path(config.output_root) / f"{config.run_name}.yaml"
    recipe.write_text(yaml.safe_dump(to_plain(config)))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER", "RANK"))}
    return subprocess.Popen(
        ["bash", str(LAUNCH / script), "--config", str(recipe), *arguments],
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def workers(parent: int) -> list[int]:
    """Processes that `parent` has started."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent:
            children.append(int(stat.parent.name))
    return sorted(children)


def options(max_steps: int) -> dict[str, Any]:
    return {
        "model": {"dropout": 0.1},
        "data": {"batch_size": 8},
        "trainer": {"max_steps": max_steps, "save_every_n_steps": 2, "val_every_n_steps": 10},
    }


def when_saved(config: PretrainConfig) -> Callable[[], Any]:
    return lambda: list((config.folder / "checkpoints").glob("step_*.ckpt"))


def test_torchrun_starts_dead_workers_again(make_run: MakeRun) -> None:
    fields = options(60)
    fields["trainer"] |= {"strategy": "fsdp", "devices": 2}
    straight, killed = make_run("straight", **fields), make_run("killed", **fields)
    process = start("torchrun.sh", straight, RANKS="2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()

    process = start("torchrun.sh", killed, RANKS="2", RESTARTS="1")
    wait_for(when_saved(killed), process)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert errors.count(b"GLOBAL_RANK: 0") == 2  # started twice
    assert_same_run(straight, killed)


def test_a_preempted_slurm_job_queues_itself_again(make_run: MakeRun, tmp_path: Path) -> None:
    """SLURM itself is not here: `srun` runs the command, `scontrol` notes that it was called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    notes = tmp_path / "scontrol.txt"
    for name, body in (("srun", f'echo $$ > {tmp_path}/pid; exec "$@"'), ("scontrol", f'echo "$@" >> {notes}')):
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "17",
        "SLURM_NNODES": "1",
    }
    fields = options(60)
    straight, preempted = make_run("straight", **fields), make_run("preempted", **fields)
    pretrain(straight)
    process = start("slurm.sbatch", preempted, **environment)
    wait_for(when_saved(preempted), process)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors.decode()
    assert notes.read_text() == "requeue 17\n"

    time.sleep(0.1)
    process = start("slurm.sbatch", preempted, **environment)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert notes.read_text() == "requeue 17\n"
    assert_same_run(straight, preempted)
