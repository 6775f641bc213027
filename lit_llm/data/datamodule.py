"""The LightningDataModule of token shards, whose whole state is the number of samples consumed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule

from lit_llm.config import DataConfig, UserError
from lit_llm.data.loader import ConsumedBatchSampler, TimedDataLoader, data_parallel_rank, micro_batch_shape
from lit_llm.data.progress import byte_progress
from lit_llm.data.shards import ShardedTokens
from lit_llm.data.windows import EvaluationWindows, WindowDataset

if TYPE_CHECKING:
    from lit_llm.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")

_CHANGES = {
    "train_tokens": "the number of training tokens",
    "train_digests": "the content of the training shards",
    "weights": "data.weights",
    "sequence_length": "data.sequence_length",
    "seed": "the seed",
}


class TokenDataModule(LightningDataModule):
    """Batches of windows from folders of shards; `WindowDataset` says what a batch holds.

    Use it under a Trainer with use_distributed_sampler=False, max_steps set, and accumulate_grad_batches from the
    method of that name. A callback must call `advance` after every micro-batch, which is what makes a run resumable.

    Args:
        config: options.
        tokenizer: must be the one that the shards were encoded with; None: the shards need only agree with each other.
        seed: keys the order of the samples.

    Attributes:
        samples_consumed: samples that the optimizer steps so far have read, over all ranks.

    Raises:
        UserError: any method: shards are missing, damaged, of another tokenizer, or too small.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None, seed: int) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.seed = seed
        self.samples_consumed = 0
        self.train_loader: TimedDataLoader | None = None

    # The hooks of Lightning.

    def prepare_data(self) -> None:
        """Checks the digest of every shard. Lightning calls it on one process of each machine; the others wait."""
        if not self.config.verify:
            return
        sources = [source for sources in self.splits.values() for source in sources]
        total = sum(path.stat().st_size for source in sources for path in source.files)
        with byte_progress("checking shards", total) as advance:
            for source in sources:
                source.verify(on_bytes=advance)

    def setup(self, stage: str) -> None:
        """Opens the shards, so that what is wrong with them is said before anything is built."""
        if stage == "fit":
            _ = self.train_dataset
        if stage == "test" and not self.splits["test"]:
            raise UserError(
                f"{', '.join(self.config.paths)} has no test split; prepare the data with corpus.test_fraction above 0"
            )

    def train_dataloader(self) -> TimedDataLoader:
        """What is left of the run for this rank."""
        trainer = self.trainer
        if trainer.max_steps < 0:
            raise UserError("a run over shards has no last epoch; set trainer.max_steps")
        # The fit loop adds the micro-batches before a resume to what it has fetched from this loader and ends the
        # epoch when that reaches the length. One more than the run can use keeps it from ever ending one: max_steps
        # alone ends the run, and a checkpoint of the last step can go on under a larger max_steps.
        fetched_before = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        num_steps = trainer.max_steps - trainer.global_step
        sampler = self.train_sampler(*data_parallel_rank(trainer), num_steps)
        self.train_loader = self.make_train_loader(sampler, reported_length=fetched_before + len(sampler) + 1)
        return self.train_loader

    def val_dataloader(self) -> TimedDataLoader | list[TimedDataLoader]:
        """This rank's windows of the validation split; an empty list where no path has one."""
        if not self.splits["validation"]:
            return []
        return self.make_evaluation_loader("validation", *data_parallel_rank(self.trainer))

    def test_dataloader(self) -> TimedDataLoader:
        """This rank's windows of the test split."""
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
            for name, text in _CHANGES.items()
            if saved.get(name) != ours[name]
        ]
        if changed:
            raise UserError(
                f"the checkpoint cannot go on with this data: {', '.join(changed)} changed; put it back, or start a "
                "new run with init_from"
            )
        self.samples_consumed = state["samples_consumed"]

    # What the rest of the code asks for.

    def advance(self, num_samples: int) -> None:
        """Counts samples as consumed: micro_batch_size x world_size after each micro-batch."""
        self.samples_consumed += num_samples

    def micro_batch_size(self, world_size: int) -> int:
        """Windows that one rank holds at once.

        Raises:
            UserError: the batch does not divide.
        """
        return micro_batch_shape(self.config.batch_size, self.config.micro_batch_size, world_size)[0]

    def accumulate_grad_batches(self, world_size: int) -> int:
        """Micro-batches in one optimizer step.

        Raises:
            UserError: the batch does not divide.
        """
        return micro_batch_shape(self.config.batch_size, self.config.micro_batch_size, world_size)[1]

    @cached_property
    def splits(self) -> dict[str, list[ShardedTokens]]:
        """The token arrays of each split, one for each path that has the split; every path has "train"."""
        if not self.config.paths:
            raise UserError("data.paths is empty; give it folders written by experiments/prepare_data.py")
        splits: dict[str, list[ShardedTokens]] = {split: [] for split in SPLITS}
        for path in map(Path, self.config.paths):
            for split in SPLITS:
                if split == "train" or (path / split).is_dir():
                    splits[split].append(ShardedTokens(path / split))
        self._check_tokenizers([source for sources in splits.values() for source in sources])
        return splits

    @property
    def vocab_size(self) -> int:
        """Every token is below this."""
        return self.splits["train"][0].manifest.vocab_size

    @property
    def weights(self) -> list[float]:
        """Share of the samples from each path: data.weights, or its tokens."""
        return list(self.config.weights or [len(source) for source in self.splits["train"]])

    @cached_property
    def train_dataset(self) -> WindowDataset:
        """The endless stream of training windows, by sample index."""
        return WindowDataset(
            self.splits["train"],
            self.weights,
            self.config.sequence_length,
            self.seed,
            self.splits["train"][0].manifest.eot_id,
            self.config.mask_documents,
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides which sample is which."""
        sources = self.splits["train"]
        total = sum(self.weights)
        return {
            "train_tokens": [len(source) for source in sources],
            "train_digests": [source.manifest.digest for source in sources],
            "weights": [weight / total for weight in self.weights],
            "sequence_length": self.config.sequence_length,
            "seed": self.seed,
        }

    def epochs(self, samples: int) -> list[float]:
        """How often the first `samples` samples go through each path."""
        order = self.train_dataset.order
        shares = order.quotas / order.block_size
        return [samples * share / count for share, count in zip(shares.tolist(), order.num_windows, strict=True)]

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of source text for each token of a split, which turns nats per token into bits per byte."""
        sources = self.splits[split]
        return sum(source.manifest.bytes for source in sources) / sum(len(source) for source in sources)

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
        """A loader of one rank's windows of "validation" or "test"; `EvaluationWindows` says which.

        data.validation_windows limits the validation split only: a test reads everything.
        """
        config = self.config
        manifest = self.splits["train"][0].manifest
        dataset = EvaluationWindows(
            self.splits[split],
            config.sequence_length,
            manifest.eot_id,
            manifest.eot_id if manifest.pad_id is None else manifest.pad_id,
            config.mask_documents,
            config.validation_windows if split == "validation" else None,
            rank,
            world_size,
        )
        batch_size = config.validation_batch_size or self.micro_batch_size(world_size)
        return TimedDataLoader(dataset, batch_size=batch_size, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        config = self.config
        pin_memory = torch.cuda.is_available() if config.pin_memory is None else config.pin_memory
        options: dict[str, Any] = {"num_workers": config.num_workers, "pin_memory": pin_memory}
        if config.num_workers:
            options["prefetch_factor"] = config.prefetch_factor
        return options

    def _check_tokenizers(self, sources: list[ShardedTokens]) -> None:
        first = sources[0]
        for source in sources:
            if self.tokenizer is not None:
                source.check_tokenizer(self.tokenizer)
            if source.manifest.tokenizer_digest != first.manifest.tokenizer_digest:
                raise UserError(
                    f"{source.folder} and {first.folder} were encoded with different tokenizers; prepare one of them "
                    "again with the tokenizer of the other"
                )
