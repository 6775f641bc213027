"""Activation checkpointing: what a block keeps for its gradient, and what it computes again.

Counted on a block whose forward pass takes F floating-point operations, "full" computes everything again but its last
matrix product (nothing needs that one's result), "selective" computes no matrix product and no attention again.

Source: Chen et al. 2016; Korthikanti et al. 2022 (selective).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import lit_llm.model.blocked_attention
import lit_llm.model.piecewise  # noqa: F401  (makes its operations known)
from lit_llm.config import TrainerConfig

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
KEPT_OPERATIONS = [
    *(getattr(torch.ops.aten, name).default for name in (*_PRODUCTS, *_ATTENTION)),
    *([torch.ops.mkldnn._linear_pointwise.default] if hasattr(torch.ops.mkldnn, "_linear_pointwise") else []),
    torch.ops.lit_llm.piecewise_attention.default,
    torch.ops.higher_order.flex_attention,
    torch.ops.lit_llm.blocked_attention.default,
]
"""Operations whose results "selective" keeps: the expensive ones."""


def block_choices(config: TrainerConfig, num_layers: int) -> list[str]:
    """What each block does: "none", "full" or "selective"."""
    choice = config.activation_checkpointing
    if choice != "every_n":
        return [choice] * num_layers
    return ["none" if layer % config.checkpoint_every_n_blocks else "full" for layer in range(num_layers)]


def run_checkpointed(choice: str, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """`function(*args)`, keeping for its gradient what `choice` says."""
    if choice == "none" or not torch.is_grad_enabled():
        return function(*args)
    options: dict[str, Any] = {}
    if choice == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT_OPERATIONS)
    return checkpoint(function, *args, use_reentrant=False, **options)
