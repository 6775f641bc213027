"""Sharded weights that are gathered once for many forward passes, as those that write texts token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lit_llm.distributed.ranks import gather

SHARE_OF_FREE_MEMORY = 0.5
"""Weights that would take more of a GPU's free memory are gathered for each token, as in training."""


@contextmanager
def gathered_once(model: nn.Module, reshard_after_forward: bool = True) -> Iterator[None]:
    """Keep the weights that forward passes inside the block gather, where there is room on every rank.

    Every rank must enter, and leave. A model that is not sharded is left alone.

    Args:
        model: of `lit_llm.model.parallel.arrange`.
        reshard_after_forward: whether its blocks let go of their weights after a forward pass in training.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not parts or not all(gather(_fits(model))):
        yield
        return
    blocks = [part for part in parts if part is not model]
    try:
        for block in blocks:
            block.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(reshard_after_forward, recurse=False)
        for part in parts:
            part.reshard()


def _fits(model: nn.Module) -> bool:
    device = next(model.parameters()).device
    if device.type != "cuda":
        return True
    whole = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return whole < SHARE_OF_FREE_MEMORY * (torch.cuda.mem_get_info(device)[0] + unused)
