"""GPUs by the names that people and CUDA give them."""

from __future__ import annotations

import pytest

from lit_llm.config import UserError
from lit_llm.planning import GPUS, PEAK_FLOPS, find_gpu


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
