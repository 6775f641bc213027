"""Which windows of shards to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_llm.config.errors import UserError


@dataclass
class InspectConfig:
    """Show the text of a window of shards, or of the batch of a run's step, and where each document in it came from."""

    data: str | None = None
    """Folder written by prepare_data; give `window`, too."""
    split: Literal["train", "validation", "test"] | None = None
    """Split of `data`; null: train."""
    window: int | None = None
    """Number of the window of `data`, from 0, which are cut one after another from the beginning of the split."""
    length: int | None = None
    """Tokens of a window of `data`; null: 1024, or all where the split is shorter."""
    run: str | None = None
    """Folder of a pretraining run; give `step`, too."""
    step: int | None = None
    """Optimizer step of `run`, from 1, as in its curves; the windows are those that it was computed on, or would be
    where the run has not come so far, which is then said."""
    row: int | None = None
    """Show only this row of the step's batch, from 0, with its text; null lists all rows."""
    characters: int | None = 600
    """Most characters that are shown of a document; null shows all."""

    def __post_init__(self) -> None:
        if self.data is not None and self.run is not None:
            raise UserError("data and run are given; one of the two says what to look at")
        of_other = {"data": ("step", "row"), "run": ("split", "window", "length")}
        for given, other in (("data", "run"), ("run", "data")):
            for field in of_other[given]:
                if getattr(self, given) is not None and getattr(self, field) is not None:
                    raise UserError(f"{field} belongs to {other}, and {given} is given; leave it out")
        for field, least in (("window", 0), ("row", 0), ("length", 1), ("step", 1), ("characters", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise UserError(f"{field} is {value}; it must be at least {least}")

    def require_place(self) -> None:
        """Refuse options that do not say what to look at.

        Raises:
            UserError: there is neither data with window nor run with step.
        """
        if self.data is None and self.run is None:
            raise UserError("give data with window, or run with step, to say what to look at")
        given, needed = ("data", "window") if self.run is None else ("run", "step")
        if getattr(self, needed) is None:
            raise UserError(f"{given} is given without {needed}, which says what to look at there")
