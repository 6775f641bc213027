"""How shards become batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_llm.config.errors import UserError
from lit_llm.config.mix import MixConfig, names_of_paths
from lit_llm.config.remote import RemoteConfig

LONGEST_DEFAULT = 1024
"""The sequence length that is taken where none is given and the model could read more."""


@dataclass
class BatchConfig:
    """Batches and loaders, of every stage."""

    sequence_length: int | None = None
    """Most tokens that the model reads in one row; null: 1024, or the model's context where that is shorter."""
    batch_size: int = 8
    """Rows in one optimizer step, over all devices and accumulated micro-batches."""
    micro_batch_size: int | None = None
    """Rows that one device holds at once; the rest of the batch is accumulated. Null: no accumulation."""
    validation_batch_size: int | None = None
    """Rows per device in validation; null: as in training."""
    num_workers: int = 0
    """Loader processes; 0 reads in the training process, which is the fastest for shards of this machine."""
    prefetch_factor: int = 4
    """Batches that each loader process keeps ready."""
    pin_memory: bool | None = None
    """Page-locked batches for faster copies; null: on for CUDA."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "prefetch_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("sequence_length", "micro_batch_size", "validation_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; it must be at least 1, or null")
        if self.num_workers < 0:
            raise UserError(f"data.num_workers is {self.num_workers}; it must be at least 0")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"data.batch_size {self.batch_size} does not divide by data.micro_batch_size {self.micro_batch_size}"
            )

    @property
    def length(self) -> int:
        """`sequence_length` once it is known.

        Raises:
            UserError: it is still null, and the model that it follows from was not asked.
        """
        if self.sequence_length is None:
            raise UserError("data.sequence_length is null until the model is known; give it a number")
        return self.sequence_length

    def fit_length(self, context: int, of: str) -> str | None:
        """Give a `sequence_length` that is null its default, and refuse one that the model cannot read.

        Args:
            context: most tokens that the model reads.
            of: what says so, for the message.

        Returns:
            A line about the choice; None where there was none to make.

        Raises:
            UserError: the length is more than the context.
        """
        if self.sequence_length is None:
            self.sequence_length = min(LONGEST_DEFAULT, context)
            why = f"of the {context} that the model reads" if context > LONGEST_DEFAULT else "all that the model reads"
            return f"sequence length {self.sequence_length}: {why}; --data.sequence_length sets another"
        if self.sequence_length > context:
            raise UserError(f"data.sequence_length {self.sequence_length} is more than {of}")
        return None


@dataclass
class DataConfig(BatchConfig):
    """Windows of token shards: which, in what mix, and how they are batched."""

    paths: list[str] = field(default_factory=list)
    """Folders written by prepare_data, or their URLs (s3://, gs://, hf://, http://, ...); several are mixed."""
    weights: list[float] | None = None
    """Share of the samples from each path (any positive numbers); null weighs by tokens."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Named corpora with weights, limits and phases, in place of paths and weights."""
    mask_documents: bool = False
    """Keep attention and positions inside each document of a window."""
    validation_windows: int | None = None
    """Read only this many validation windows, evenly spread over all corpora, so that each weighs by its tokens in
    val/loss; null reads the whole split."""
    verify: bool = True
    """Check the sha256 of every shard when the run starts; blocks of remote shards are always checked as they come."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How shards behind a URL are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_windows is not None and self.validation_windows < 1:
            raise UserError(f"data.validation_windows is {self.validation_windows}; it must be at least 1, or null")
        if self.weights is not None:
            if len(self.weights) != len(self.paths):
                raise UserError(f"data.weights has {len(self.weights)} numbers for {len(self.paths)} data.paths")
            if min(self.weights, default=1.0) <= 0:
                raise UserError("data.weights must all be above 0; leave a path out instead")
        if self.mix.corpora and (self.paths or self.weights):
            name = "paths" if self.paths else "weights"
            raise UserError(f"data.{name} and data.mix.corpora are given; use one of the two (--data.{name} null)")

    @staticmethod
    def folders_in(values: Any) -> list[str]:
        """`folders` of the options that a file has of a run's data, be they of a pretraining run or another."""
        corpora = (values.get("mix") or {}).get("corpora") or {}
        return [corpus["path"] for corpus in corpora.values()] or values.get("paths") or []

    @property
    def folders(self) -> list[str]:
        """The folders of shards: `paths`, or those of the mix."""
        return [corpus.path for corpus in self.mix.corpora.values()] or self.paths

    @property
    def names(self) -> list[str]:
        """What each of `folders` is called in curves: its name in the mix, or one made from its path."""
        return list(self.mix.corpora) or names_of_paths(self.paths)

    def moved_to(self, folders: Sequence[str]) -> DataConfig:
        """The same with other `folders`, in the same order; without any, the same."""
        if not folders or not self.mix.corpora:
            return replace(self, paths=list(folders) or self.paths)
        if len(folders) != len(self.mix.corpora):
            raise UserError(
                f"data.paths has {len(folders)} folders for the {len(self.mix.corpora)} of data.mix.corpora"
            )
        corpora = zip(self.mix.corpora.items(), folders, strict=True)
        moved = {name: replace(corpus, path=folder) for (name, corpus), folder in corpora}
        return replace(self, mix=replace(self.mix, corpora=moved))
