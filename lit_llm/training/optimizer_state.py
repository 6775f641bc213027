"""Optimizer state by parameter name: what a checkpoint holds, whichever strategy wrote it and whichever reads it.

torch numbers parameters in the order of the optimizer's groups, which other tools cannot know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_llm.config import UserError


def group_names(module: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """List the names of the parameters of each group; a tied parameter has the first of its names."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def optimizer_state_by_name(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Give `optimizer.state_dict()` with parameter names for numbers; its tensors are the optimizer's own."""
    return name_parameters(optimizer.state_dict(), group_names(module, optimizer))


def name_parameters(state: dict[str, Any], groups: list[list[str]]) -> dict[str, Any]:
    """Replace the numbers of a torch state_dict by names; `groups` has the names of each group in order."""
    names = [name for group in groups for name in group]
    return {
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [
            {**group, "params": list(members)} for group, members in zip(state["param_groups"], groups, strict=True)
        ],
    }


def number_parameters(state: dict[str, Any], groups: list[list[str]]) -> dict[str, Any]:
    """Replace names by numbers: the inverse of `name_parameters`.

    Raises:
        UserError: the state is of an optimizer with other groups.
    """
    saved = [set(group["params"]) for group in state["param_groups"]]
    if saved != [set(group) for group in groups]:
        raise UserError(
            "the checkpoint's optimizer has other parameter groups than this run's; put optimizer.name and the "
            "optimizer's options back, or start a new run from the weights with init_from"
        )
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    return {
        "state": {numbers[name]: values for name, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in members]}
            for group, members in zip(state["param_groups"], groups, strict=True)
        ],
    }


def load_optimizer_state_by_name(
    module: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    place: Callable[[Tensor, nn.Parameter], Tensor] | None = None,
) -> None:
    """Load a state that is kept by name into `optimizer`.

    Args:
        module: has the optimizer's parameters.
        optimizer: its groups must hold the same names as the saved ones.
        state: "state" and "param_groups", as `optimizer_state_by_name` makes.
        place: lays a tensor of the state of a parameter out as that needs it; None: they are laid out already.

    Raises:
        UserError: the state is of an optimizer with other groups.
    """
    numbered = number_parameters(state, group_names(module, optimizer))
    if place is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbered["state"] = {
            number: {
                key: place(value, parameters[number]) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }
            for number, values in numbered["state"].items()
        }
    optimizer.load_state_dict(numbered)


class NamedOptimizerState(L.Callback):
    """Names the parameters in the optimizer states of strategies that leave them to Lightning: one device, and DDP.

    Lightning reads a checkpoint before it makes the optimizers, so the numbers, which depend on their groups, are put
    back when training starts; Lightning restores the optimizers right after that.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replace numbers by names."""
        if trainer.strategy.lightning_restore_optimizer:
            checkpoint["optimizer_states"] = [
                name_parameters(state, group_names(pl_module, optimizer))
                for state, optimizer in zip(checkpoint["optimizer_states"], trainer.optimizers, strict=True)
            ]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hold on to the checkpoint that Lightning is restoring."""
        if trainer.strategy.lightning_restore_optimizer:
            self._loaded = checkpoint

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace names by numbers.

        Raises:
            UserError: the state is of an optimizer with other groups.
        """
        checkpoint, self._loaded = self._loaded, None
        if checkpoint is not None:
            checkpoint["optimizer_states"] = [
                number_parameters(state, group_names(pl_module, optimizer))
                for state, optimizer in zip(checkpoint["optimizer_states"], trainer.optimizers, strict=True)
            ]
