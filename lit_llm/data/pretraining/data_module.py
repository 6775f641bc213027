"""The LightningDataModule of token shards."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from lit_llm.config import DataConfig, UserError
from lit_llm.data.corpus.remote_shards import open_split
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.loading.data_module import ResumableDataModule
from lit_llm.data.loading.loader import ConsumedBatchSampler, TimedDataLoader
from lit_llm.data.pretraining.read_ahead import read_ahead
from lit_llm.data.pretraining.windows import EvaluationWindows, WindowDataset
from lit_llm.data.progress import byte_progress

if TYPE_CHECKING:
    from lit_llm.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")


class TokenDataModule(ResumableDataModule):
    """Batches of windows from folders of shards; `WindowDataset` says what a batch holds.

    Args:
        config: options.
        tokenizer: must be the one that the shards were encoded with; None: the shards need only agree with each other.
        seed: keys the order of the samples.

    Raises:
        UserError: shards are missing, damaged, of another tokenizer, or too small; any method may raise it, as they are
            opened when they are first asked for.
    """

    causes: ClassVar[dict[str, str]] = {
        "train_tokens": "the number of training tokens",
        "train_digests": "the content of the training shards",
        "weights": "data.weights",
        "sequence_length": "data.sequence_length",
        "windows": "how an epoch is cut into windows",
        "seed": "the seed",
    }
    config: DataConfig

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None, seed: int) -> None:
        super().__init__(config, seed)
        self.tokenizer = tokenizer

    # The hooks of Lightning.

    def prepare_data(self) -> None:
        """Checks the digest of every shard. Lightning calls it on one process of each machine; the others wait."""
        if not self.config.verify:
            return
        sources = [source for sources in self.splits.values() for source in sources]
        total = sum(source.bytes_to_verify for source in sources)
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

    # What the stages and modules use.

    def has_split(self, split: str) -> bool:
        """Whether a path has the split."""
        return bool(self.splits[split])

    @cached_property
    def splits(self) -> dict[str, list[ShardedTokens]]:
        """The token arrays of each split, one for each path that has the split; every path has "train"."""
        if not self.config.paths:
            raise UserError("data.paths is empty; give it folders written by experiments/prepare_data.py")
        splits: dict[str, list[ShardedTokens]] = {split: [] for split in SPLITS}
        for path in self.config.paths:
            for split in SPLITS:
                source = open_split(path, split, self.config.remote)
                if source is not None:
                    splits[split].append(source)
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
            self.config.length,
            self.seed,
            self.splits["train"][0].manifest.eot_id,
            self.config.mask_documents,
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that the samples and their order depend on."""
        sources = self.splits["train"]
        total = sum(self.weights)
        return {
            "train_tokens": [len(source) for source in sources],
            "train_digests": [source.manifest.digest for source in sources],
            "weights": [weight / total for weight in self.weights],
            "sequence_length": self.config.length,
            "windows": "ring",  # checkpoints of other cuts do not go on as if nothing had changed
            "seed": self.seed,
        }

    def epochs(self, samples: int) -> list[float]:
        """How often the first `samples` samples go through each path."""
        order = self.train_dataset.order
        shares = order.quotas / order.block_size
        return [samples * share / count for share, count in zip(shares.tolist(), order.num_windows, strict=True)]

    def passes(self, samples: int) -> float:
        """How often the first `samples` samples go through the path that is read most often."""
        return max(self.epochs(samples))

    @property
    def summary(self) -> str:
        """See `ResumableDataModule`."""
        amounts = [f"{sum(map(len, self.splits[split])):,} in {split}" for split in SPLITS if self.splits[split]]
        return f"tokens: {', '.join(amounts)}; from {', '.join(self.config.paths)}"

    @property
    def tokens_per_sample(self) -> float:
        """See `ResumableDataModule`."""
        return float(self.config.sequence_length)

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of source text for each token of a split, which turns nats per token into bits per byte."""
        sources = self.splits[split]
        return sum(source.manifest.bytes for source in sources) / sum(len(source) for source in sources)

    def make_train_loader(self, sampler: ConsumedBatchSampler, reported_length: int | None = None) -> TimedDataLoader:
        """See `ResumableDataModule`; what remote shards need next is fetched ahead."""
        return super().make_train_loader(read_ahead(sampler, self.train_dataset), reported_length)

    def evaluation_dataset(self, split: str, rank: int, world_size: int) -> EvaluationWindows:
        """One rank's windows of "validation" or "test"; `EvaluationWindows` says which.

        data.validation_windows limits the validation split only: a test reads everything.
        """
        config = self.config
        manifest = self.splits["train"][0].manifest
        return EvaluationWindows(
            self.splits[split],
            config.length,
            manifest.eot_id,
            manifest.eot_id if manifest.pad_id is None else manifest.pad_id,
            config.mask_documents,
            config.validation_windows if split == "validation" else None,
            rank,
            world_size,
        )

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
