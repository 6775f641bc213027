"""The LightningDataModule of token shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from lit_llm.config import DataConfig, UserError
from lit_llm.data.corpus.remote_shards import open_split
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.loading.data_module import ResumableDataModule
from lit_llm.data.loading.loader import ConsumedBatchSampler, TimedDataLoader
from lit_llm.data.loading.order import Stretch
from lit_llm.data.pretraining.mix_plan import Done, MixPlan, plan_mix
from lit_llm.data.pretraining.read_ahead import read_ahead
from lit_llm.data.pretraining.windows import EvaluationWindows, WindowDataset, grid_of
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
        max_steps: length of the run, which phases and limits of a mix need; None where there are none.

    Raises:
        UserError: shards are missing, damaged, of another tokenizer, or too small; any method may raise it, as they are
            opened when they are first asked for.
    """

    causes: ClassVar[dict[str, str]] = {
        "train_tokens": "the number of training tokens",
        "train_digests": "the content of the training shards",
        "sequence_length": "data.sequence_length",
        "windows": "how an epoch is cut into windows",
        "seed": "the seed",
    }
    config: DataConfig

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer | None, seed: int, max_steps: int | None = None
    ) -> None:
        super().__init__(config, seed)
        self.tokenizer = tokenizer
        self.max_steps = max_steps
        self._is_changed = False

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
                f"{', '.join(self.config.folders)} has no test split; prepare the data with corpus.test_fraction above "
                "0"
            )

    # What the stages and modules use.

    def has_split(self, split: str) -> bool:
        """Whether a path has the split."""
        return bool(self.splits[split])

    @property
    def splits(self) -> dict[str, list[ShardedTokens]]:
        """The token arrays of each split, one for each path that has the split; every path has "train"."""
        return {split: list(sources.values()) for split, sources in self._opened.items()}

    @cached_property
    def _opened(self) -> dict[str, dict[int, ShardedTokens]]:
        """The token arrays of each split by the number of their path."""
        if not self.config.folders:
            raise UserError("data.paths is empty; give it folders written by experiments/prepare_data.py")
        opened: dict[str, dict[int, ShardedTokens]] = {split: {} for split in SPLITS}
        for number, path in enumerate(self.config.folders):
            for split in SPLITS:
                source = open_split(path, split, self.config.remote)
                if source is not None:
                    opened[split][number] = source
        self._check_tokenizers([source for sources in opened.values() for source in sources.values()])
        return opened

    @property
    def vocab_size(self) -> int:
        """Every token is below this."""
        return self.splits["train"][0].manifest.vocab_size

    @cached_property
    def mix(self) -> MixPlan:
        """Which share of the samples is from each path, along the run."""
        return self._plan(None)

    def _plan(self, done: Done | None) -> MixPlan:
        sources = self.splits["train"]
        windows = [grid_of(source, self.config.length).num_windows for source in sources]
        return plan_mix(self.config, list(map(len, sources)), windows, self.seed, self.max_steps, done)

    @cached_property
    def train_dataset(self) -> WindowDataset:
        """The endless stream of training windows, by sample index."""
        return WindowDataset(
            self.splits["train"],
            self.mix.stretches,
            self.config.length,
            self.seed,
            self.splits["train"][0].manifest.eot_id,
            self.config.mask_documents,
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that the samples and their order depend on."""
        sources = self.splits["train"]
        shares: dict[str, Any] = {"weights": [1.0]}
        if len(sources) > 1:
            # the whole run as its options plan it, and as it is: samples before a change of options stay as they were
            planned = self._plan(None) if self._is_changed else self.mix
            shares = {"planned": _plain(planned.stretches), "mix": _plain(self.mix.stretches)}
        return {
            "train_tokens": [len(source) for source in sources],
            "train_digests": [source.manifest.digest for source in sources],
            **shares,
            "sequence_length": self.config.length,
            "windows": "ring",  # checkpoints of other cuts do not go on as if nothing had changed
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state; see `ResumableDataModule`.

        Samples that the saved run has read stay as they were read. Where this run would have read others, as its mix or
        its batch size is another, `reordered` says so, and this run's mix holds for the samples to come.
        """
        super().load_state_dict(state)
        saved = state["fingerprint"]
        if len(self.splits["train"]) == 1 or (self.trainer is not None and self.trainer.state.fn != "fit"):
            return
        if "mix" not in saved:
            raise UserError(
                "the checkpoint is of a version that mixed paths in another order, which is gone; start a new run with "
                "init_from"
            )
        planned, mix = (list(map(Stretch.from_list, saved[name])) for name in ("planned", "mix"))
        if planned == self.mix.stretches:  # the same options, be it that some others came before them
            self._follow(MixPlan(mix, self.mix.lines))
            return
        read, would_read, ours = (self._until_now(each) for each in (mix, planned, self.mix.stretches))
        if would_read != ours:
            sized = any(stretch.batch_size != self.config.batch_size for stretch in read)
            self.reordered = self._in_words(read, sized), self._in_words(ours, sized)
        if read != ours:
            self._follow(self._plan(Done(tuple(read), self.samples_consumed)))

    def adopt(self, fingerprint: dict[str, Any]) -> None:
        """Takes the samples and their order from a `fingerprint` of the same corpora."""
        if len(self.splits["train"]) > 1 and "mix" in fingerprint:
            self._follow(MixPlan([Stretch.from_list(each) for each in fingerprint["mix"]], []))

    def _follow(self, mix: MixPlan) -> None:
        """Reads samples as in `mix` from here on, whatever the options plan."""
        self._is_changed = self.mix.stretches != mix.stretches
        self.__dict__.pop("train_dataset", None)
        self.mix = mix

    def _until_now(self, stretches: Sequence[Stretch]) -> list[Stretch]:
        """The stretches that the samples so far are of."""
        return [stretch for stretch in stretches if stretch.first < self.samples_consumed]

    def samples_at(self, step: int) -> int:
        """How many samples the first so many optimizer steps of a run of several paths read."""
        done = 0
        for stretch, after in zip(self.mix.stretches, self.mix.stretches[1:], strict=False):
            steps = (after.first - stretch.first) // stretch.batch_size
            if step <= done + steps:
                return stretch.first + (step - done) * stretch.batch_size
            done += steps
        last = self.mix.stretches[-1]
        return last.first + (step - done) * last.batch_size

    def mix_curves(self, first_step: int, last_step: int) -> dict[str, float]:
        """Curves of a mix: the share of each path in some steps, and how often it has been read by the end of them.

        Args:
            first_step: steps before them.
            last_step: steps up to the last of them.
        """
        names = self.config.names
        if len(names) == 1:
            return {}
        first, last = self.samples_at(first_step), self.samples_at(last_step)
        before, after = self.counts(first), self.counts(last)
        shares = [(late - early) / (last - first) for early, late in zip(before, after, strict=True)]
        return {
            **{f"data/share/{name}": share for name, share in zip(names, shares, strict=True)},
            **{f"data/epochs/{name}": epochs for name, epochs in zip(names, self.epochs(last), strict=True)},
        }

    def mix_lines(self, steps: int) -> list[str]:
        """The shares of a mix along a run of so many steps, and how often each corpus is read, for a reader."""
        if len(self.config.names) == 1:
            return []
        read = [
            f"{name} {epochs:.3g} times"
            for name, epochs in zip(self.config.names, self.epochs(self.samples_at(steps)), strict=True)
        ]
        return [self._in_words(self.mix.stretches), f"in all, {', '.join(read)}"]

    def _in_words(self, stretches: Sequence[Stretch], sized: bool = False) -> str:
        """The shares of stretches, and the step from which each holds; `sized`: and always the batch size."""
        parts, step, before = [], 0, None
        for stretch in stretches:
            if before is not None:
                step += (stretch.first - before.first) // before.batch_size
            named = zip(self.config.names, stretch.shares, strict=True)
            shares = ", ".join(f"{name} {100 * share:.3g}%" for name, share in named if share)
            parts.append(shares if before is None else f"from step {step:,} on {shares}")
            if sized or (before is not None and before.batch_size != stretch.batch_size):
                parts[-1] += f" in batches of {stretch.batch_size}"
            before = stretch
        return "; ".join(parts)

    def counts(self, samples: int) -> list[int]:
        """How many of the first `samples` samples are from each path."""
        return self.train_dataset.order.counts(samples)

    def epochs(self, samples: int) -> list[float]:
        """How often the first `samples` samples go through each path."""
        windows = self.train_dataset.order.num_windows
        return [count / number for count, number in zip(self.counts(samples), windows, strict=True)]

    def passes(self, samples: int) -> float:
        """How often the first `samples` samples go through the path that is read most often."""
        return max(self.epochs(samples))

    @property
    def summary(self) -> str:
        """See `ResumableDataModule`."""
        amounts = [f"{sum(map(len, self.splits[split])):,} in {split}" for split in SPLITS if self.splits[split]]
        return f"tokens: {', '.join(amounts)}; from {', '.join(self.config.folders)}"

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

        data.validation_windows limits the validation split only: a test reads everything. With several paths, a batch
        says which of them each window is of.
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
            list(self._opened[split]) if len(config.folders) > 1 else None,
        )

    def validation_lines(self) -> list[str]:
        """Which corpora of a mix have no validation loss of their own, and why."""
        names = self.config.names
        if len(names) == 1 or not self.has_split("validation"):
            return []
        read = self.evaluation_dataset("validation", 0, 1).read_numbers()
        return [
            f"{name} has no val/loss of its own: "
            + (
                "data.validation_windows reads none of its windows"
                if number in self._opened["validation"]
                else "it has no validation split"
            )
            for number, name in enumerate(names)
            if number not in read
        ]

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


def _plain(stretches: Sequence[Stretch]) -> list[list[Any]]:
    return [stretch.as_list() for stretch in stretches]
