"""Which parameter gets which optimizer and which weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from lit_llm.config import OptimizerConfig, UserError

SMALLEST_MUON_SIDE = 16
"""Orthogonalising says little about a matrix of a few rows, such as a gate per head: below this, AdamW takes it."""


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `model`, each exactly once, as optimizer groups.

    - "muon" (only where config.name is "muon"): weights of the `nn.Linear` modules inside a `nn.ModuleList` called
      `blocks`, both sides at least 16; with weight decay.
    - "adamw_decay": every other parameter of two or more dimensions that is not an `nn.Embedding` weight, an untied
      output head included.
    - "adamw_no_decay": embeddings (and so a head tied to one), norms, biases and scalars.

    Frozen parameters and empty groups are left out. A rate that is null is that of pretraining a model of this size;
    the stages fill their own in.

    Returns:
        dicts with "params", "name", "kind" ("adamw" or "muon"), "lr" and "weight_decay".

    Raises:
        UserError: nothing is trainable; or config.name is "muon" and there is no hidden matrix.
    """
    config = config.with_rates("pretrain", sum(parameter.numel() for parameter in model.parameters()))
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # by module and not by dimensions: FSDP1 leaves flat pieces of the matrices
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    hidden = _hidden_matrices(model) - embeddings if config.name == "muon" else set()
    members: dict[str, list[nn.Parameter]] = {"muon": [], "adamw_decay": [], "adamw_no_decay": []}
    # `parameters()` gives a shared parameter once, and each goes to one list: no duplicates, nothing missing.
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in hidden:
            members["muon"].append(parameter)
        elif (parameter.ndim >= 2 or id(parameter) in linear) and id(parameter) not in embeddings:
            members["adamw_decay"].append(parameter)
        else:
            members["adamw_no_decay"].append(parameter)

    if not any(members.values()):
        raise UserError("the model has no trainable parameter; unfreeze some before building the optimizer")
    if config.name == "muon" and not members["muon"]:
        raise UserError(
            "optimizer.name is muon, but the model has no trainable hidden matrix of at least "
            f"{SMALLEST_MUON_SIDE} x {SMALLEST_MUON_SIDE}; use optimizer.name adamw"
        )
    settings = {
        "muon": {"kind": "muon", "lr": config.muon_learning_rate, "weight_decay": config.weight_decay},
        "adamw_decay": {"kind": "adamw", "lr": config.learning_rate, "weight_decay": config.weight_decay},
        "adamw_no_decay": {"kind": "adamw", "lr": config.learning_rate, "weight_decay": 0.0},
    }
    return [{"params": params, "name": name, **settings[name]} for name, params in members.items() if params]


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Ids of the linear weights inside `blocks` that are large enough for Muon."""
    return {
        id(module.weight)
        for name, blocks in model.named_modules()
        if name.rpartition(".")[2] == "blocks" and isinstance(blocks, nn.ModuleList)
        for module in blocks.modules()
        if isinstance(module, nn.Linear) and min(module.weight.shape) >= SMALLEST_MUON_SIDE
    }
