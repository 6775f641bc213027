"""Which dtype arithmetic runs in, under autocast and without it."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def _autocast_is_on(device_type: str) -> bool:
    # the meta device, where operations are counted, has no autocast at all
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product on `x` would run in: autocast's where it is on, else that of `x`."""
    if _autocast_is_on(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """A block in which operations keep the dtype of their inputs."""
    if _autocast_is_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
