"""What a run leaves open: chosen once the model and the data are known, said in a line, and saved with the run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

from lit_llm.config import RunConfig
from lit_llm.config.notices import is_first_process
from lit_llm.planning import count_parameters


def choose_rates(config: RunConfig) -> None:
    """Fill in rates and warm-up that are null; `config.model` and trainer.max_steps have to be known."""
    tell(config.fill_rates(count_parameters(config.model)))


def tell(lines: Iterable[str | None]) -> None:
    """Print what was chosen on stderr, on the first rank alone."""
    if is_first_process():
        for line in filter(None, lines):
            print(line, file=sys.stderr)


def keep_earlier_choices(config: RunConfig) -> None:
    """Where a run goes on, take what is null from its config.yaml: a longer run keeps the rates that it began with.

    What cannot be read is left alone; the checkpoint's own configuration is compared later in any case.
    """
    if config.ckpt_path is None:
        return
    folder = config.folder
    if config.ckpt_path not in ("last", "last_or_begin"):
        folder = Path(config.ckpt_path).absolute().parents[1]
    try:
        saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        choices = {
            (group, name): saved[group][name]
            for group, name in (
                ("optimizer", "learning_rate"),
                ("optimizer", "muon_learning_rate"),
                ("schedule", "warmup_steps"),
            )
        }
    except (OSError, ValueError, yaml.YAMLError, RecursionError, TypeError, KeyError):
        return
    for (group, name), value in choices.items():
        if getattr(getattr(config, group), name) is None and isinstance(value, int | float):
            setattr(getattr(config, group), name, value)
