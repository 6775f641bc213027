"""Which dtype arithmetic runs in, under autocast and without it."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def _autocast_is_on(device_type: str) -> bool:
    # the meta device, where operations are counted, has no autocast at all; torch.amp.is_autocast_available would say
    # so, but the compiler follows it from torch 2.12 on only
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product on `x` would run in: autocast's where it is on, else that of `x`."""
    if _autocast_is_on(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if its type is a narrower one, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# asked once, as the compiler does not follow the question
_CPU_MULTIPLIES_BFLOAT16 = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16; one without them emulates it, and float32 is faster there."""
    if device.type == "cpu":
        return _CPU_MULTIPLIES_BFLOAT16
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """A block in which operations keep the dtype of their inputs."""
    if _autocast_is_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
