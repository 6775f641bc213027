"""A LightningDataModule whose whole state is the number of samples consumed."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from lit_llm.config import BatchConfig, UserError
from lit_llm.data.loading.loader import ConsumedBatchSampler, TimedDataLoader, micro_batch_shape
from lit_llm.distributed.ranks import data_parallel_rank
from lit_llm.objectives import IGNORE_INDEX


class ResumableDataModule(LightningDataModule):
    """Batches of a `SampleStream`, from any sample on; neither ranks nor workers decide which samples make up a step.

    Use it under a Trainer with use_distributed_sampler=False, max_steps set, and accumulate_grad_batches from the
    method of that name. A callback must call `advance` after every micro-batch, which is what makes a run resumable.

    Args:
        config: how samples are batched.
        seed: keys the order of the samples.

    Attributes:
        samples_consumed: samples that the optimizer steps so far have read, over all ranks.
        reordered: where the samples before the point that a run goes on from would be others here, how they were mixed
            and how they would be, in words; else None. The order of the samples after it is that of this run.
    """

    causes: ClassVar[dict[str, str]] = {"seed": "the seed"}
    """What decides the order of the samples: keys of `fingerprint`, and their names in an error."""

    def __init__(self, config: BatchConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.samples_consumed = 0
        self.reordered: tuple[str, str] | None = None
        self.train_loader: TimedDataLoader | None = None

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look for the supervised tokens while a batch is on the host: a GPU would have to be waited for."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return with_places(batch) if on_gpu and "targets" in batch else batch

    @property
    @abstractmethod
    def train_dataset(self) -> Any:
        """The `SampleStream` of training samples."""

    @property
    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Everything that the samples and their order depend on: a value for each key of `causes`."""

    @abstractmethod
    def has_split(self, split: str) -> bool:
        """Whether there is a "validation" or "test" split."""

    @abstractmethod
    def evaluation_dataset(self, split: str, rank: int, world_size: int) -> Dataset:
        """One rank's part of "validation" or "test".

        All ranks have the same number of samples: those that would have fewer end with filler, over which no loss is
        taken.
        """

    @abstractmethod
    def passes(self, samples: int) -> float:
        """How often the first `samples` samples go through the data."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """How much data there is, and where it is from, in a line for a reader."""

    @property
    @abstractmethod
    def tokens_per_sample(self) -> float:
        """Tokens of a sample that the model reads, on average over the training data."""

    # The hooks of Lightning.

    def train_dataloader(self) -> TimedDataLoader:
        """The batches of this rank from where the run stands to its end."""
        trainer = self.trainer
        if trainer.max_steps < 0:
            raise UserError("a run has no last epoch; set trainer.max_steps")
        # The fit loop adds the micro-batches before a resume to what it has fetched from this loader and ends the
        # epoch when that reaches the length. One more than the run can use keeps it from ever ending one: max_steps
        # alone ends the run, and a checkpoint of the last step can go on under a larger max_steps.
        fetched_before = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        num_steps = trainer.max_steps - trainer.global_step
        sampler = self.train_sampler(*data_parallel_rank(trainer), num_steps)
        self.train_loader = self.make_train_loader(sampler, reported_length=fetched_before + len(sampler) + 1)
        return self.train_loader

    def val_dataloader(self) -> TimedDataLoader | list[TimedDataLoader]:
        """This rank's part of the validation split; an empty list where there is none."""
        if not self.has_split("validation"):
            return []
        return self.make_evaluation_loader("validation", *data_parallel_rank(self.trainer))

    def test_dataloader(self) -> TimedDataLoader:
        """This rank's part of the test split."""
        return self.make_evaluation_loader("test", *data_parallel_rank(self.trainer))

    def state_dict(self) -> dict[str, Any]:
        """The samples consumed, and what their order depends on."""
        return {"samples_consumed": self.samples_consumed, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state. Outside of training it does nothing: any checkpoint may be evaluated on any data.

        Raises:
            UserError: the order of the samples would not be that of the saved run.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        saved, ours = state["fingerprint"], self.fingerprint
        changed = [
            f"{text} (from {saved.get(name)} to {ours[name]})"
            for name, text in self.causes.items()
            if saved.get(name) != ours[name]
        ]
        if changed:
            raise UserError(
                f"the checkpoint cannot go on with this data: {', '.join(changed)} changed; put it back, or start a "
                "new run with init_from"
            )
        self.samples_consumed = state["samples_consumed"]

    # What the stages and modules use.

    def adopt(self, fingerprint: dict[str, Any]) -> None:
        """Takes what of the order another run's `fingerprint` says and the options of this one do not; mostly nothing.

        What still differs afterwards is other data.
        """

    def mix_lines(self, steps: int) -> list[str]:
        """What is mixed in a run of so many steps, in which shares, in lines for a reader; none where nothing is."""
        return []

    def mix_curves(self, first_step: int, last_step: int) -> dict[str, float]:
        """Curves of what is mixed, for the steps after the first `first_step` up to `last_step`; none: nothing is."""
        return {}

    def advance(self, num_samples: int) -> None:
        """Counts samples as consumed: micro_batch_size x world_size after each micro-batch."""
        self.samples_consumed += num_samples

    def micro_batch_size(self, world_size: int) -> int:
        """Samples that one rank holds at once.

        Raises:
            UserError: the batch size does not divide by the ranks and micro-batches.
        """
        return micro_batch_shape(self.config.batch_size, self.config.micro_batch_size, world_size)[0]

    def accumulate_grad_batches(self, world_size: int) -> int:
        """Micro-batches in one optimizer step.

        Raises:
            UserError: the batch size does not divide by the ranks and micro-batches.
        """
        return micro_batch_shape(self.config.batch_size, self.config.micro_batch_size, world_size)[1]

    def train_sampler(self, rank: int, world_size: int, num_steps: int) -> ConsumedBatchSampler:
        """The sample indices of `num_steps` optimizer steps from where the data module stands."""
        config = self.config
        return ConsumedBatchSampler(
            self.samples_consumed, config.batch_size, config.micro_batch_size, rank, world_size, num_steps
        )

    def make_train_loader(self, sampler: ConsumedBatchSampler, reported_length: int | None = None) -> TimedDataLoader:
        """A loader of training batches; see `TimedDataLoader`."""
        return TimedDataLoader(self.train_dataset, reported_length, batch_sampler=sampler, **self._loader_options())

    def make_evaluation_loader(self, split: str, rank: int, world_size: int) -> TimedDataLoader:
        """A loader of `evaluation_dataset`."""
        batch_size = self.config.validation_batch_size or self.micro_batch_size(world_size)
        dataset = self.evaluation_dataset(split, rank, world_size)
        return TimedDataLoader(dataset, batch_size=batch_size, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        config = self.config
        pin_memory = torch.cuda.is_available() if config.pin_memory is None else config.pin_memory
        options: dict[str, Any] = {"num_workers": config.num_workers, "pin_memory": pin_memory}
        if config.num_workers:
            options["prefetch_factor"] = config.prefetch_factor
        return options


def with_places(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the places of the supervised tokens, `supervised` [s], among those of `targets` [b * t]."""
    places = (batch["targets"].flatten() != IGNORE_INDEX).nonzero().squeeze(1)
    return {**batch, "supervised": places.pin_memory() if torch.cuda.is_available() else places}
