"""The optimizer of a run, from its configuration."""

from __future__ import annotations

import torch
from torch import nn

from lit_llm.config import OptimizerConfig, UserError
from lit_llm.optimization.adamw import LocalAdamW
from lit_llm.optimization.groups import parameter_groups
from lit_llm.optimization.muon import MuonAdamW

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Device types for which torch has a fused AdamW."""


def build_optimizer(model: nn.Module, config: OptimizerConfig, compiled: bool = False) -> torch.optim.Optimizer:
    """Build `LocalAdamW` or `MuonAdamW` over the groups of `parameter_groups`, at the peak learning rates.

    Build it when the parameters are on the device that trains them.

    Args:
        model: whose parameters are optimized.
        config: how.
        compiled: see `MuonAdamW`; AdamW is one fused kernel in any case.

    Raises:
        UserError: see `parameter_groups`; or config.fused is true where torch has no fused AdamW.
    """
    groups = parameter_groups(model, config)
    fused = _fused(groups, config.fused)
    betas = (config.beta1, config.beta2)
    if config.name == "adamw":
        return LocalAdamW(groups, lr=groups[0]["lr"], betas=betas, eps=config.eps, fused=fused)
    return MuonAdamW(
        groups,
        betas=betas,
        eps=config.eps,
        fused=fused,
        momentum=config.muon_momentum,
        momentum_start=config.muon_momentum_start,
        momentum_warmup_steps=config.muon_momentum_warmup_steps,
        ns_steps=config.muon_ns_steps,
        ns_dtype=getattr(torch, config.newton_schulz_dtype(groups[0]["params"][0].device.type)),
        compiled=compiled,
    )


def _fused(groups: list[dict], wanted: bool | None) -> bool:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    missing = sorted(devices - set(FUSED_DEVICES))
    if wanted and missing:
        raise UserError(
            f"optimizer.fused is true, but torch has no fused AdamW on {', '.join(missing)}; set it to null"
        )
    return not missing if wanted is None else wanted
