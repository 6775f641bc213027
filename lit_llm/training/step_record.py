"""The file that a refused or spiking step leaves, replay/step_*.json: enough to compute the step again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config import UserError, from_plain, to_plain
from lit_llm.config.files import write_json
from lit_llm.config.json_text import parse_json


@dataclass
class Sample:
    """A sample and the place of its text."""

    index: int
    """Sample index; with the seed it is all that the order of the data depends on."""
    file: str
    """Shard that its first token is in."""
    offset: int
    """That token's place in the shard."""


@dataclass
class MicroBatch:
    """The samples that one rank read at once, and their loss."""

    rank: int
    """The rank."""
    sample_ids: list[int]
    """Its samples, by index."""
    loss_sum: float
    """Loss summed over the supervised tokens, in nats."""
    tokens: int
    """Supervised tokens."""


@dataclass
class StepRecord:
    """One optimizer step, with all that is needed to compute it again."""

    step: int
    """Its number, from 1."""
    loss: float
    """Mean over the supervised tokens of all ranks, in nats."""
    gradient_norm: float
    """2-norm of the whole gradient, before clipping."""
    spike_score: float | None
    """Standard deviations above the steps before; None for a step that was refused because it was not finite."""
    updated: bool
    """Whether the weights were updated all the same."""
    checkpoint: str | None
    """Checkpoint with the weights that the step started from, relative to the run folder; None: the initial ones."""
    seed: int
    """Seed of the run."""
    first_sample: int
    """Lowest sample index in the step."""
    num_samples: int
    """Samples in the step."""
    samples: list[Sample]
    """Where they are, by index."""
    world_size: int
    """Ranks."""
    accumulation: int
    """Micro-batches of a rank in a step."""
    micro_batches: list[MicroBatch]
    """All of them, by rank and then in order. Tensor-parallel ranks have the same ones."""
    random_states: list[dict[str, str]]
    """State of each rank's generators at the start of the step, in base64: it decides dropout."""
    device: str
    """Kind of device: "cpu" or "cuda"."""
    torch_version: str
    """Version of torch."""
    fingerprint: dict[str, Any]
    """What decides which sample is which; see `TokenDataModule.fingerprint`."""
    config: dict[str, Any]
    """Configuration of the run."""

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all. JSON has no infinity and no NaN: they are written as text.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        write_json(path, _text_for_non_finite(to_plain(self)))

    @classmethod
    def load(cls, path: Path) -> StepRecord:
        """Read a record that `save` wrote.

        Raises:
            UserError: there is no such file, or it is not a replay file.
        """
        try:
            values = parse_json(path.read_bytes())
            for name, kind in (("samples", Sample), ("micro_batches", MicroBatch)):
                values[name] = [from_plain(kind, each) for each in values[name]]
            record = from_plain(cls, values)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; replay files are in RUN/replay") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a replay file of this version ({error})") from error
        record.loss, record.gradient_norm = float(record.loss), float(record.gradient_norm)
        for part in record.micro_batches:
            part.loss_sum = float(part.loss_sum)
        return record


def _text_for_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _text_for_non_finite(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [_text_for_non_finite(inside) for inside in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
