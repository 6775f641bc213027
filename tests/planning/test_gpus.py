"""GPUs by the names that people and CUDA give them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_llm.config import UserError
from lit_llm.planning import GPUS, PEAK_FLOPS, find_gpu, machine


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("H100", "NVIDIA H100"),
        ("h100 pcie", "NVIDIA H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
        ("t4", "Tesla T4"),
    ],
)
def test_a_gpu_by_name(said: str, meant: str) -> None:
    name, gpu = find_gpu(said)
    assert name == meant
    assert gpu == GPUS[meant]
    assert gpu.peak_flops == PEAK_FLOPS[meant]


@pytest.mark.parametrize("name", ["H1000", "L40", "", "TPU v5"])
def test_an_unknown_gpu_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=r"H100, .*L40S.*T4"):
        find_gpu(name)


def test_the_memory_of_a_container_is_what_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", (str(tmp_path / "gone"), str(limit)))
    limit.write_text("max\n")
    whole = machine.memory_gib()
    limit.write_text("536870912\n")
    assert machine.memory_gib() == 0.5 < whole


def test_the_speed_of_this_machine_is_measured() -> None:
    assert 1e8 < machine.measured_flops("cpu", torch.float32) < 1e15
