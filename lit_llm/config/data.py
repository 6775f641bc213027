"""How shards become batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.errors import UserError


@dataclass
class BatchConfig:
    """Batches and loaders, of every stage."""

    sequence_length: int = 1024
    """Most tokens that the model reads in one row."""
    batch_size: int = 8
    """Rows in one optimizer step, over all devices and accumulated micro-batches."""
    micro_batch_size: int | None = None
    """Rows that one device holds at once; the rest of the batch is accumulated. Null: no accumulation."""
    validation_batch_size: int | None = None
    """Rows per device in validation; null: as in training."""
    num_workers: int = 0
    """Loader processes; 0 reads in the training process, which is the fastest for memory-mapped shards."""
    prefetch_factor: int = 4
    """Batches that each loader process keeps ready."""
    pin_memory: bool | None = None
    """Page-locked batches for faster copies; null: on for CUDA."""

    def __post_init__(self) -> None:
        for name in ("sequence_length", "batch_size", "prefetch_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("micro_batch_size", "validation_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; it must be at least 1, or null")
        if self.num_workers < 0:
            raise UserError(f"data.num_workers is {self.num_workers}; it must be at least 0")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"data.batch_size {self.batch_size} does not divide by data.micro_batch_size {self.micro_batch_size}"
            )


@dataclass
class DataConfig(BatchConfig):
    """Windows of token shards: which, in what mix, and how they are batched."""

    paths: list[str] = field(default_factory=list)
    """Folders written by prepare_data; several are mixed."""
    weights: list[float] | None = None
    """Share of the samples from each path (any positive numbers); null weighs by tokens."""
    mask_documents: bool = False
    """Keep attention and positions inside each document of a window."""
    validation_windows: int | None = None
    """Read only this many validation windows, evenly spread; null reads the whole split."""
    verify: bool = True
    """Check the sha256 of every shard when the run starts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_windows is not None and self.validation_windows < 1:
            raise UserError(f"data.validation_windows is {self.validation_windows}; it must be at least 1, or null")
        if self.weights is not None:
            if len(self.weights) != len(self.paths):
                raise UserError(f"data.weights has {len(self.weights)} numbers for {len(self.paths)} data.paths")
            if min(self.weights, default=1.0) <= 0:
                raise UserError("data.weights must all be above 0; leave a path out instead")
