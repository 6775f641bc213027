"""What a run leaves open: chosen once the model and the data are known, said in a line, and saved with the run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from lit_llm.config import RunConfig
from lit_llm.config.notices import is_first_process
from lit_llm.model.arithmetic import multiplies_bfloat16
from lit_llm.planning import count_parameters
from lit_llm.training.checkpoint_files import saved_checkpoints
from lit_llm.training.strategies import is_on_gpu

_OPEN = (
    ("data", "sequence_length"),
    ("optimizer", "learning_rate"),
    ("optimizer", "muon_learning_rate"),
    ("schedule", "warmup_steps"),
)
"""Options that are null until a stage knows its model and its data, by group."""
_SETTLED = {
    ("trainer", "precision"): ("32-true", "bf16-mixed"),
    ("optimizer", "muon_ns_dtype"): ("float32", "bfloat16"),
}
"""Options that are "auto" until a stage knows its device, by group, and what becomes of them."""


def choose_rest(config: RunConfig) -> None:
    """Fill in the precision, rates and warm-up that are left open; `config.model` and max_steps have to be known."""
    device = torch.device("cuda" if is_on_gpu(config.trainer) else "cpu")
    config.settle_precision(multiplies_bfloat16(device))
    tell(config.fill_rates(count_parameters(config.model)))


def tell(lines: Iterable[str | None]) -> None:
    """Print what was chosen on stderr, on the first rank alone."""
    if is_first_process():
        for line in filter(None, lines):
            print(line, file=sys.stderr)


def keep_earlier_choices(config: RunConfig) -> None:
    """Where a run goes on, take what is open from its config.yaml: a longer run keeps the rates that it began with.

    A file that cannot be read is left alone; the checkpoint's own configuration is compared later in any case. One of a
    start that left no checkpoint is of no consequence: the next start begins anew, maybe with another model.

    Raises:
        UserError: the file holds a value that the option cannot have.
    """
    if config.ckpt_path is None:
        return
    folder = config.folder
    if config.ckpt_path not in ("last", "last_or_begin"):
        folder = Path(config.ckpt_path).absolute().parent.parent
    elif not saved_checkpoints(folder / "checkpoints"):
        return
    try:
        saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return
    for group, name in (*_OPEN, *_SETTLED):
        ours, theirs = getattr(config, group), saved.get(group) if isinstance(saved, dict) else None
        value = theirs.get(name) if isinstance(theirs, dict) else None
        given, settled = getattr(ours, name), _SETTLED.get((group, name), ())
        if (given is None and isinstance(value, int | float)) or (given == "auto" and value in settled):
            setattr(config, group, replace(ours, **{name: value}))
