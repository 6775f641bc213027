"""The state of a run at its last step boundary, for a checkpoint that is saved later than that."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import lightning as L

from lit_llm.distributed.ranks import gather
from lit_llm.training.resume import ExactResume, random_state


@dataclass
class StepBoundary:
    """The part of a run that changes before the next update: counters, position in the data, random states.

    Weights, optimizer and schedule are not in it: they change with the update alone.
    """

    step: int
    """Optimizer steps done."""
    entries: dict[str, Any]
    """Parts of a checkpoint, by key."""
    fit_loop: dict[str, Any]
    """Lightning's counters; those of its other loops stand still in training."""
    callbacks: dict[str, Any]
    """States of callbacks, by key."""
    random: dict[str, Any]
    """This rank's random states."""

    @classmethod
    def take(cls, trainer: L.Trainer, leave_out: L.Callback) -> StepBoundary:
        """Note the present boundary; this talks to no other rank.

        Args:
            trainer: in a hook in which a checkpoint could be saved.
            leave_out: a callback whose state goes into a checkpoint as it is when that is saved.
        """
        entries = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            entries[type(data).__qualname__] = data.state_dict()
        # the states of ExactResume are gathered, which is done only when they are needed
        others = [c for c in trainer.callbacks if c is not leave_out and not isinstance(c, ExactResume)]
        states = {callback.state_key: copy.deepcopy(callback.state_dict()) for callback in others}
        return cls(
            step=trainer.global_step,
            entries=entries,
            fit_loop=trainer.fit_loop.state_dict(),
            callbacks={key: state for key, state in states.items() if state},
            random=random_state(),
        )

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Turn a checkpoint of the same weights and optimizer into one of this boundary. Every rank must call."""
        checkpoint.update(self.entries)
        checkpoint["loops"]["fit_loop"] = self.fit_loop
        checkpoint["callbacks"].update(self.callbacks)
        checkpoint["callbacks"]["ExactResume"] = {"ranks": gather(self.random)}
