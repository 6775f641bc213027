"""How much memory a prefix cache is given where nobody says."""

from __future__ import annotations

import torch

from lit_llm.generation import PrefixCache
from lit_llm.model import Decoder
from lit_llm.planning.machine import memory_gib

# Of the machine's memory, or of what is free on the device.
_SHARE = 1 / 8


def make_prefix_cache(model: Decoder, mib: int | None, useful_tokens: int) -> PrefixCache | None:
    """Return a prefix cache for the engines of a model, or None for none.

    Args:
        model: the decoder, on its device.
        mib: memory in MiB; 0: none; None: an eighth of the machine's memory or of what is free on the GPU, but no more
            than pages of `useful_tokens` take.
        useful_tokens: more than so many are not worth memory.

    Raises:
        UserError: `mib` has no room for a page, or cannot be had.
    """
    if mib is not None:
        return PrefixCache(model, mib) if mib else None
    least, useful = PrefixCache.mib_for(model, 1), PrefixCache.mib_for(model, useful_tokens)
    default = min(_SHARE * _memory_mib(model.embedding.weight.device), useful)
    return PrefixCache(model, default) if default >= least else None


def _memory_mib(device: torch.device) -> float:
    """Memory of the machine, or what is free on a GPU, in MiB."""
    return torch.cuda.mem_get_info(device)[0] / 2**20 if device.type == "cuda" else 1024 * memory_gib()
