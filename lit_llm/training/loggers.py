"""The loggers that a run asks for, which show it under its name and stage."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment

from lit_llm.config import RunConfig, UserError
from lit_llm.training.curves import Curves, CurvesTable, MetricsFile


def check_loggers(config: RunConfig) -> None:
    """Refuse a logger that is not installed.

    Raises:
        UserError: names it, and what installs it.
    """
    if "wandb" in config.trainer.loggers and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "trainer.loggers has wandb, which is not installed: pip install 'lit-llm[wandb]', or leave it out"
        )


def build_loggers(config: RunConfig, first_step: int | None, tokens_at: Callable[[int], int | None]) -> list[Logger]:
    """Make the loggers that `trainer.loggers` names, and the one that writes metrics.jsonl.

    Args:
        config: the run.
        first_step: step that the run goes on from; curves of later steps are taken back, as it writes them again.
            None keeps them.
        tokens_at: see `MetricsFile`.
    """
    folder = config.folder
    loggers: list[Logger] = []
    for kind in config.trainer.loggers:
        if kind == "tensorboard":
            purge_step = None if first_step is None else first_step + 1
            # TensorBoard calls a run by its folders: RUN/tensorboard/STAGE
            loggers.append(Curves(folder, name="tensorboard", version=stage_of(config), purge_step=purge_step))
        elif kind == "csv":
            loggers.append(CurvesTable(folder, first_step))
        else:
            loggers.append(_Wandb(display_name(config), folder))
    return [*loggers, MetricsFile(folder, first_step, tokens_at)]


def close_loggers(loggers: Sequence[Logger]) -> None:
    """End the run at Weights & Biases, which would otherwise take the next one in this process for the same."""
    for logger in loggers:
        if isinstance(logger, _Wandb) and logger._experiment is not None:
            logger._experiment.finish()


def stage_of(config: RunConfig) -> str:
    """Return the name of a run's stage, as "pretrain"."""
    return type(config).__name__.removesuffix("Config").lower()


def display_name(config: RunConfig) -> str:
    """Make the name that a run and its model have outside the run folder: run name and stage, the stage once."""
    stage = stage_of(config)
    name = re.sub(r"[^\w.\-]+", "-", config.run_name).strip("-") or "run"
    return name if stage in re.split(r"[^a-z]+", name.lower()) else f"{name}-{stage}"


class _Wandb(WandbLogger):
    """Lightning's logger for Weights & Biases; a resumed run goes on there with the run that it began.

    Args:
        name: what the run is called.
        folder: the run folder; what is kept here lies in its folder wandb.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name=name, save_dir=folder, project="lit_llm", id=_earlier_id(folder / "wandb"))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run at Weights & Biases.

        Raises:
            UserError: it cannot be begun, as without an account.
        """
        if self._experiment is not None:
            return self._experiment
        from wandb.errors import Error

        try:
            return super().experiment
        except Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"wandb cannot begin the run ({reason}); log in with the command wandb login, set WANDB_MODE=offline, "
                "or leave wandb out of trainer.loggers"
            ) from error

    def log_hyperparams(self, params: Any) -> None:
        """Give the run its configuration; a resumed run may have changed some of it."""
        experiment = self.experiment
        if hasattr(experiment, "config"):
            experiment.config.update(params, allow_val_change=True)


def _earlier_id(folder: Path) -> str | None:
    """Find the id of the newest run in a folder of Weights & Biases; None if it holds no run."""
    runs = sorted(path.name for path in folder.glob("*run-*-*") if path.is_dir() and not path.is_symlink())
    newest = max(runs, key=lambda name: name.partition("run-")[2], default=None)
    return None if newest is None else newest.rpartition("-")[2]
