"""What a finished run knows of itself besides its curves: data with digests, checkpoints, device and time."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_llm.data.conversations.data_module import RowsDataModule
from lit_llm.data.pretraining.data_module import TokenDataModule
from lit_llm.training.checkpoint import CheckpointPolicy


@dataclass(frozen=True)
class DataFacts:
    """One split of the data."""

    split: str
    """The name of the split, as "train"."""
    where: str
    """The folder or files that hold it."""
    amount: str
    """How much it is, in words."""
    digest: str
    """Digest of its content."""
    source: str = ""
    """Where its text came from, as hf:NAME, with commas between several."""


@dataclass(frozen=True)
class MixFacts:
    """What a run has read of one corpus of a mix."""

    corpus: str
    """Its name."""
    samples: int
    """Samples of it."""
    share: float
    """Share of all samples."""
    epochs: float
    """How often it has been read."""


@dataclass
class RunFacts:
    """What is said of a run at its end."""

    seconds: float = 0.0
    """Length of the run; all starts of a resumed run count."""
    device: str = ""
    """What it ran on, in words."""
    best_step: int | None = None
    """Step of the checkpoint with the lowest val/loss; None where none was saved after a validation, or it is gone."""
    best_loss: float | None = None
    """Its val/loss."""
    data: list[DataFacts] = field(default_factory=list)
    """The data."""
    mix: list[MixFacts] = field(default_factory=list)
    """What was read of each corpus, where several were mixed."""


def run_facts(trainer: L.Trainer, data: Any, seconds: float) -> RunFacts:
    """Collect the facts of a run whose training has ended.

    Args:
        trainer: that of the run, with its `CheckpointPolicy`.
        data: its data module.
        seconds: how long it took.
    """
    policy = trainer.checkpoint_callback
    has_best = isinstance(policy, CheckpointPolicy) and policy.best is not None
    best = (policy.best_step, policy.best_loss) if has_best else (None, None)
    device = device_in_words(trainer.strategy.root_device)
    if trainer.world_size > 1:
        device = f"{trainer.world_size} ranks, each on {device}"
    return RunFacts(seconds, device, *best, list(_data_facts(data)), list(_mix_facts(data)))


def device_in_words(device: torch.device) -> str:
    """Name a GPU, or the processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _mix_facts(data: Any) -> Iterator[MixFacts]:
    if isinstance(data, TokenDataModule) and len(data.config.names) > 1 and data.samples_consumed:
        read = data.samples_consumed
        for name, count, epochs in zip(data.config.names, data.counts(read), data.epochs(read), strict=True):
            yield MixFacts(name, count, count / read, epochs)


def _data_facts(data: Any) -> Iterator[DataFacts]:
    if isinstance(data, TokenDataModule):
        for split, sources in data.splits.items():
            for source in sources:
                manifest = source.manifest
                amount = f"{manifest.tokens:,} tokens of {manifest.documents:,} documents"
                origin = str(manifest.corpus.get("path", ""))
                yield DataFacts(split, str(source.folder), amount, manifest.digest, origin)
    elif isinstance(data, RowsDataModule):
        own = data.config.validation_paths
        for split in ("train", "validation"):
            rows = len(data.items(split).places)
            if rows:
                paths = own if split == "validation" and own else data.config.paths
                where = ", ".join(paths)
                yield DataFacts(split, where, f"{rows:,} rows", data.digest(split), where)
