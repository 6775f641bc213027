"""How far apart two ways of computing the same numbers may be: derived from the arithmetic, not from one machine.

float32 has 24 bits. A gradient is a chain of some dozen sums of up to some hundred products each; taken in another
order (other ranks, threads, micro-batches, vector widths) it differs by a few 2^-24 of what is added up, which is
1e-7 to 2e-6 of its norm, and more of one that nearly cancels. What is asked for is ten times that. A mistake in what
is computed (a row left out, a wrong count, a stale part) shows in the second or third digit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SUM_ERROR = 2e-5
"""Share of a tensor's norm by which float32 sums in another order may differ."""
CANCELLED = 2e-7
"""The same as a share of the norm of all tensors together, for those that nearly cancel."""


def total_norm(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean norm of all of them as one vector."""
    return float(torch.stack([each.detach().double().norm() for each in tensors.values()]).norm())


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Gradients of the same loss, summed up in another order."""
    assert found.keys() == expected.keys()
    whole = total_norm(expected)
    assert whole > 1e-3
    for name, value in expected.items():
        allowed = SUM_ERROR * float(value.norm()) + CANCELLED * whole
        assert float((found[name] - value).norm()) <= allowed, name
