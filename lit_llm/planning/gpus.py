"""GPUs that plans are made for: how fast they multiply and how much they hold."""

from __future__ import annotations

import re
from typing import NamedTuple

from lit_llm.config import UserError


class Gpu(NamedTuple):
    """A kind of GPU."""

    peak_flops: float
    """Dense bf16 matrix peak in FLOP/s (sparse figures are twice these); float32's where `bfloat16` is False."""
    memory_gib: float
    """GiB that torch reports; less than on the label, which counts in GB and leaves out error correction."""
    tdp_watts: float | None = None
    """Most power that the board may draw for long; None where it is not known."""
    bfloat16: bool = True
    """Whether it has units for bfloat16, which it emulates otherwise."""


# Peaks and powers from the vendors' datasheets; by the name that CUDA gives.
GPUS = {
    "NVIDIA B200": Gpu(2250e12, 178.4, 1000),
    "NVIDIA H200": Gpu(989e12, 139.8, 700),
    "NVIDIA H100 PCIe": Gpu(756e12, 79.1, 350),
    "NVIDIA H100 NVL": Gpu(835e12, 93.1, 400),
    "NVIDIA H100": Gpu(989e12, 79.1, 700),
    "NVIDIA A100": Gpu(312e12, 79.1, 400),
    "NVIDIA A100-SXM4-40GB": Gpu(312e12, 39.4, 400),
    "NVIDIA A100-PCIE-40GB": Gpu(312e12, 39.4, 250),
    "NVIDIA L40S": Gpu(362e12, 44.4, 350),
    "NVIDIA L4": Gpu(121e12, 22.0, 72),
    "NVIDIA A10G": Gpu(70e12, 22.1, 300),
    "NVIDIA GeForce RTX 4090": Gpu(165e12, 23.6, 450),
    "NVIDIA GeForce RTX 3090": Gpu(71e12, 23.7, 350),
    "Tesla V100": Gpu(15.7e12, 15.8, 300, bfloat16=False),
    "Tesla V100-SXM2-32GB": Gpu(15.7e12, 31.7, 300, bfloat16=False),
    "Tesla T4": Gpu(8.1e12, 14.6, 70, bfloat16=False),
}
PEAK_FLOPS = {name: gpu.peak_flops for name, gpu in GPUS.items()}
_VENDOR = re.compile(r"^(NVIDIA GeForce RTX|NVIDIA|Tesla) ", re.IGNORECASE)


def matching_gpu(device_name: str) -> str | None:
    """Find the key of `GPUS` for a device's full name, such as "NVIDIA H100 80GB HBM3"; None where there is none."""
    # the longest matching name: "NVIDIA H100 PCIe" before "NVIDIA H100"; whole words, as an L40 is not an L4
    matching = [known for known in GPUS if re.match(rf"{re.escape(known)}\b", device_name, re.IGNORECASE)]
    return max(matching, key=len) if matching else None


def find_gpu(name: str) -> tuple[str, Gpu]:
    """Find the GPU that a person means by "H100", "h100 pcie", "4090" or a device's full name, and its full name.

    Raises:
        UserError: it is not in the table; the message lists those that are.
    """
    short = {_VENDOR.sub("", known).lower(): known for known in GPUS}
    found = short.get(_VENDOR.sub("", name.strip()).lower()) or matching_gpu(name.strip())
    if found is None:
        known = ", ".join(sorted(_VENDOR.sub("", full) for full in GPUS))
        raise UserError(f"gpu {name!r} is not in the table; it knows {known}")
    return found, GPUS[found]
