"""Invariants 2 and 3 end to end: two ranks train the model of one process, which goes on from their checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, MakeRun
from run_files import event_folder
from test_resume import curves, final_state

from lit_llm.config import PretrainConfig, to_plain
from lit_llm.stages.pretrain import pretrain

CURVES = ("train/loss", "train/gradient_norm", "learning_rate/adamw_decay", "val/loss", "val/bits_per_byte")
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def start(config: PretrainConfig, **environment: str) -> subprocess.Popen[str]:
    """The script, in a process of its own."""
    recipe = Path(config.output_root) / f"{config.run_name}.yaml"
    recipe.write_text(yaml.safe_dump(to_plain(config)))
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "pretrain.py"), "--config", str(recipe)],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def by_torchrun(config: PretrainConfig, port: int) -> None:
    """Two ranks as torchrun starts them."""
    ranks = [
        start(
            config,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="test",
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], [errors for _, errors in outputs]


def by_lightning(config: PretrainConfig, port: int) -> None:
    """The plain command: Lightning starts the second rank itself."""
    process = start(config, MASTER_PORT=str(port))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def assert_same(one: PretrainConfig, other: PretrainConfig) -> None:
    ours, theirs = final_state(one), final_state(other)
    assert ours["TokenDataModule"]["samples_consumed"] == theirs["TokenDataModule"]["samples_consumed"] == 6 * 8
    for name, tensor in ours["state_dict"].items():
        torch.testing.assert_close(tensor, theirs["state_dict"][name], atol=1e-5, rtol=0.0, msg=name)
    points, others = curves(one), curves(other)
    for name in CURVES:
        assert [step for step, _ in points[name]] == [step for step, _ in others[name]], name
        values, wanted = ([value for _, value in found[name]] for found in (points, others))
        assert values == pytest.approx(wanted, abs=1e-5, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("launch", [by_torchrun, by_lightning])
def test_two_ranks_are_one_process(
    launch: Callable[[PretrainConfig, int], None], make_run: MakeRun, short_documents: Path, free_port: int
) -> None:
    """Rows with ragged supervision, two micro-batches in each step, and a number of windows that does not divide."""
    options: dict[str, Any] = {
        # a rate at which Adam does not blow up the rounding of a sum in another order
        "optimizer": {"learning_rate": 3e-4, "eps": 1e-6},
        "model": {"tie_word_embeddings": False},
    }
    data = {"paths": [str(short_documents)], "mask_documents": True, "batch_size": 8, "validation_windows": 7}
    alone = make_run("alone", data={**data, "micro_batch_size": 4}, **options)
    together = make_run("together", data={**data, "micro_batch_size": 2}, trainer={"devices": 2}, **options)
    pretrain(alone)
    launch(together, free_port)
    assert_same(together, alone)
    # rank 0 alone writes
    assert (together.folder / "model" / "model.safetensors").is_file()
    writers = {path.name.split(".")[-2] for path in event_folder(together).glob("events*")}
    assert len(writers) == 1  # process ids; the test split has a file of its own

    resumed = make_run(
        "resumed",
        data={**data, "micro_batch_size": 8},
        ckpt_path=str(together.folder / "checkpoints" / "step_00000004.ckpt"),
        **options,
    )
    pretrain(resumed)
    ours, theirs = final_state(resumed), final_state(alone)
    for name, tensor in ours["state_dict"].items():
        torch.testing.assert_close(tensor, theirs["state_dict"][name], atol=1e-5, rtol=0.0, msg=name)
