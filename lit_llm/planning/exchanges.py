"""What each device exchanges with others in an optimizer step, and how often.

What ranks that share products or windows exchange comes from the rehearsal of a micro-batch, as they exchange it inside
the decoder. What FSDP2 and Muon exchange is reckoned from what they gather, reduce and share out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import torch

from lit_llm.config import ModelConfig, PretrainConfig, from_plain
from lit_llm.model import Decoder
from lit_llm.planning.memory import (
    Checkpointing,
    Device,
    Placement,
    model_of_rank,
    reduces_every_micro_batch,
    rehearsed,
    sizes_of,
)

_REDUCED_WIDTH = 4  # gradients are reduced as float32
# by operation: what it is for, and how often a ring of n ranks sends (n - 1) / n of the tensor
_SHARED = {
    "all_reduce": ("tensor parallel, sums", 2.0),
    "all_gather_into_tensor": ("tensor parallel, gathered tokens", 1.0),
    "reduce_scatter_tensor": ("tensor parallel, sums cut by tokens", 1.0),
    "all_to_all_single": ("context parallel, tokens for heads", 1.0),
}


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange."""

    what: str
    """What is exchanged, and why."""
    ranks: int
    """How many ranks take part."""
    calls: int
    """How often in an optimizer step."""
    tensors: int
    """Bytes of the whole tensors that are gathered, reduced or shared out in a step."""
    sent: float
    """Bytes that one rank sends for it."""


def exchanges_of(
    config: PretrainConfig, placement: Placement, checkpointing: Checkpointing, device: Device = "accelerator"
) -> list[Exchange]:
    """List what a rank exchanges in an optimizer step under FSDP2; what it is for the logits' sake is left out.

    Args:
        config: the recipe; `config.model.vocab_size` must be set.
        placement: of kind "fsdp".
        checkpointing: what a block keeps; what it computes again it exchanges again.
        device: whose kernels are meant.
    """
    found = [*_of_shards(config, placement), *_of_muon(config, placement, device)]
    seen = rehearsed(config, placement, checkpointing, device).exchanges
    for kind, (what, times) in _SHARED.items():
        ranks = placement.context_parallel if kind == "all_to_all_single" else placement.tensor_parallel
        calls, size = (seen[kind, key] * placement.accumulation for key in ("calls", "bytes"))
        if calls:
            found.append(Exchange(what, ranks, calls, size, times * size * (ranks - 1) / ranks))
    return found


def _of_shards(config: PretrainConfig, placement: Placement) -> list[Exchange]:
    """List the gathering of weights and the reduction of gradients, of the blocks one by one and of the rest."""
    trainer, shares, micro_batches = config.trainer, placement.shares, placement.accumulation
    outer, blocks = _padded(model_of_rank(config, placement), shares)
    layers = config.model.num_layers
    passes = 2 if trainer.reshard_after_forward else 1
    width = 4 if trainer.precision == "32-true" else 2
    reductions = micro_batches if reduces_every_micro_batch(config, placement) else 1
    found = []
    if shares > 1:
        away = (shares - 1) / shares
        gathered = micro_batches * (passes * blocks + outer) * width
        calls = micro_batches * (passes * layers + 1)
        found.append(Exchange("weights gathered", shares, calls, gathered, gathered * away))
        reduced = reductions * (blocks + outer) * _REDUCED_WIDTH
        found.append(Exchange("gradients reduced", shares, reductions * (layers + 1), reduced, reduced * away))
    if placement.replicas > 1:
        copies, part = placement.replicas, (blocks + outer) // shares * _REDUCED_WIDTH
        sent = 2 * part * (copies - 1) / copies
        found.append(Exchange("gradients between copies", copies, layers + 1, part, sent))
    return found


@lru_cache(maxsize=1024)
def _padded(model: str, shares: int) -> tuple[int, int]:
    """Count the numbers outside and inside the blocks, with what fills each parameter's rows up to equal shards."""
    with torch.device("meta"):
        decoder = Decoder(from_plain(ModelConfig, json.loads(model)))

    def numbers(module: torch.nn.Module) -> int:
        return sum(-(-p.size(0) // shares) * shares * (p.numel() // p.size(0)) for p in module.parameters())

    blocks = numbers(decoder.blocks)
    return numbers(decoder) - blocks, blocks


def _of_muon(config: PretrainConfig, placement: Placement, device: Device) -> list[Exchange]:
    """List how matrices come to the ranks that orthogonalise them, and go back; on average of the ranks."""
    ranks = placement.shares * placement.replicas * placement.tensor_parallel
    if config.optimizer.name != "muon" or placement.shares * placement.tensor_parallel == 1:
        return []
    width = 2 if config.optimizer.newton_schulz_dtype(device) == "bfloat16" else 4
    part = sizes_of(model_of_rank(config, placement)).muon // placement.shares * width
    size = part + part // placement.replicas  # one copy sends, and all copies get the result
    return [Exchange("Muon's matrices, to who works on them and back", ranks, 2, size, size * (ranks - 1) / ranks)]
