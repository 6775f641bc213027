"""What the data modules of every stage after pretraining share: rows of files, tokenised, counted and split."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lit_llm.config import RowsConfig, UserError
from lit_llm.config.progress import track
from lit_llm.data.conversations.encoded_rows import Items, RowEvaluation, RowStream
from lit_llm.data.loading.data_module import ResumableDataModule
from lit_llm.tokenizer.chat import ChatFormat, Message

if TYPE_CHECKING:
    from lit_llm.data.conversations.reading import RowPlace, Rows, RowStatistics
    from lit_llm.tokenizer import Tokenizer

NOTHING_TO_LEARN = "without a token to learn"
"""The reason that is counted for a row in which the loss would be taken over no token."""


@dataclass
class EncodedRow:
    """A row as tokens, or the reason why it is left out.

    Attributes:
        place: Where the row is.
        length: Its tokens, before any cut.
        content: What `Items` are made of; None where the row is left out.
        reason: Why the row is left out.
        truncated: Whether it was cut to fit.
        prompt: The messages to be answered. The data module fills in this and what follows for rows that it keeps.
        num_turns: Messages that are not the system's.
        opening: See `opening_share`.
    """

    place: RowPlace
    length: int
    content: Any = None
    reason: str = ""
    truncated: bool = False
    prompt: tuple[Message, ...] = ()
    num_turns: int = 0
    opening: float = 0.0


@dataclass
class Split:
    """The items of "train" or "validation", with their turns counted and the openings of their rows."""

    items: Items
    num_turns: int
    openings: set[float]


class RowsDataModule(ResumableDataModule):
    """Batches of items from rows of text files, which are tokenised when they are first asked for.

    Args:
        config: options.
        tokenizer: has chat tokens.
        seed: keys the order of the samples, and which rows share a pack.

    Raises:
        UserError: files are missing or broken, too many rows do not fit, or none is left; any method may raise it, as
            the rows are read when they are first asked for.
    """

    causes: ClassVar[dict[str, str]] = {
        "rows": "the tokenised training rows",
        "sequence_length": "data.sequence_length",
        "seed": "the seed",
    }
    config: RowsConfig

    def __init__(self, config: RowsConfig, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(config, seed)
        self.tokenizer = tokenizer
        self.chat = ChatFormat(tokenizer)
        # Padding is told by length and never by id, so that an end-of-text token does as well as any.
        self.pad_id = next((each for each in (tokenizer.pad_id, tokenizer.eot_id) if each is not None), 0)
        self._statistics: dict[str, RowStatistics] = {}
        self._validation_prompts: list[tuple[Message, ...]] = []

    # What a subclass defines for its kind of rows.

    @abstractmethod
    def read(self, paths: Sequence[str], option: str) -> Rows[Any]:
        """Reads the rows of files; `option` is the name of the option that gave their paths, for errors."""

    @abstractmethod
    def prompt_of(self, row: Any) -> tuple[Message, ...]:
        """Returns the messages of a row that ask for its answer; there may be none."""

    @abstractmethod
    def messages_of(self, row: Any) -> tuple[Message, ...]:
        """Returns all messages of a row; of a pair, the prompt and the chosen answer."""

    @abstractmethod
    def encode(self, row: Any) -> EncodedRow:
        """Tokenises one row and fits it to the sequence length."""

    @abstractmethod
    def make_items(self, places: Sequence[RowPlace], contents: Sequence[Any]) -> Items:
        """Builds the items of a split from the places of its rows and the `content` that `encode` gave each."""

    # The hooks of Lightning.

    def setup(self, stage: str) -> None:
        """Reads and tokenises, so that what is wrong with the rows is said before anything is built."""
        _ = self._splits

    # What the rest of the code asks for.

    def has_split(self, split: str) -> bool:
        """Whether there are rows to validate on; there is never a test split."""
        return split == "validation" and len(self._splits["validation"].items) > 0

    @cached_property
    def train_dataset(self) -> RowStream:
        """The endless stream of training items, by sample index."""
        return RowStream(self.items("train"), self.seed)

    def evaluation_dataset(self, split: str, rank: int, world_size: int) -> RowEvaluation:
        """One rank's items of "validation", or of "train" in the order of its files."""
        return RowEvaluation(self.items(split), rank, world_size)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that the samples and their order depend on."""
        return {"rows": self.digest("train"), "sequence_length": self.config.length, "seed": self.seed}

    def items(self, split: str) -> Items:
        """The items of "train" or "validation"; of the latter there may be none."""
        return self._splits[split].items

    def digest(self, split: str) -> str:
        """blake2b (hexadecimal) of all tokens of "train" or "validation" and of what is learned of them, in order."""
        return self.items(split).digest

    @property
    def num_rows(self) -> int:
        """How many rows are trained on."""
        return len(self.items("train").places)

    @property
    def num_samples(self) -> int:
        """How many samples one pass over the training rows takes; with packing fewer than rows."""
        return len(self.items("train"))

    def passes(self, samples: int) -> float:
        """How often the first `samples` samples go through the training rows."""
        return samples / self.num_samples

    @property
    def summary(self) -> str:
        """See `ResumableDataModule`."""
        amounts = [f"{len(split.items.places):,} in {name}" for name, split in self._splits.items() if len(split.items)]
        return f"rows: {', '.join(amounts)}; from {', '.join([*self.config.paths, *self.config.validation_paths])}"

    @property
    def tokens_per_sample(self) -> float:
        """See `ResumableDataModule`; padding is not counted."""
        items = self.items("train")
        return float(items.token_lengths().sum()) / len(items)

    def prompts(self, count: int) -> list[tuple[Message, ...]]:
        """The first `count` different prompts of the validation rows; fewer where there are not so many."""
        _ = self._splits
        return list(dict.fromkeys(filter(None, self._validation_prompts)))[:count]

    def example(self) -> list[tuple[str, list[int], list[bool]]]:
        """The texts of the first training row; see `Items.texts`."""
        return self.items("train").texts(0)

    def statistics_lines(self) -> list[str]:
        """Describes the rows for a reader: a line of numbers for each split, then lines about what was left out."""
        lines = []
        for name, split in self._splits.items():
            if not len(split.items):
                continue
            tokens = np.quantile(split.items.token_lengths(), [0.0, 0.5, 0.95, 1.0], method="nearest")
            low, median, high, most = tokens.astype(int).tolist()
            lines.append(
                f"{name}: {len(split.items.places):,} rows, {split.num_turns:,} turns; tokens of each: "
                f"min {low:,}, median {median:,}, p95 {high:,}, max {most:,}"
            )
        for name, statistics in self._statistics.items():
            lines.extend(f"{name}: {line}" for line in (*statistics.exclusions(), *statistics.remarks()))
        if any(self.items("train").supervised(0)) and (opening := self.chat.unwritten_opening):
            lines.append(
                f"the chat template asks for answers with {opening!r} and does not write that before the answers of "
                "rows, which are learned without it"
            )
        shared = len(self._splits["train"].openings & self._splits["validation"].openings)
        if shared:
            lines.append(f"prompts of validation rows that are trained on, too: {shared:,}")
        return lines

    # How rows are read.

    @cached_property
    def _splits(self) -> dict[str, Split]:
        config = self.config
        if not config.paths:
            raise UserError("data.paths is empty; give it files (.json, .jsonl, .parquet), folders, globs or hf:NAME")
        train = self._encode_rows("data.paths", config.paths)
        if not train:
            statistics = self._statistics["data.paths"]
            raise UserError(
                f"data.paths {', '.join(config.paths)}: all {statistics.rows:,} rows are left out: "
                f"{statistics.reasons}; give other files"
            )
        if config.validation_paths:
            validation = self._encode_rows("data.validation_paths", config.validation_paths)
        else:
            train, validation = split_rows(train, config.validation_fraction)
        if not train:
            raise UserError(
                f"data.paths {', '.join(config.paths)}: no training row is left ({len(validation)} are set aside for "
                "validation); use more rows, or lower data.validation_fraction"
            )
        validation = validation[: config.validation_rows]
        self._validation_prompts = [row.prompt for row in validation]
        return {"train": self._make_split(train), "validation": self._make_split(validation)}

    def _make_split(self, rows: list[EncodedRow]) -> Split:
        items = self.make_items([row.place for row in rows], [row.content for row in rows])
        return Split(items, sum(row.num_turns for row in rows), {row.opening for row in rows})

    def _encode_rows(self, name: str, paths: Sequence[str]) -> list[EncodedRow]:
        """Tokenises the rows of some files, keeps those that can be used, and counts the others."""
        rows, kept = self.read(paths, name), []
        statistics = rows.statistics
        for row in track(rows, "tokenising rows"):
            messages = self.messages_of(row)
            for field_name in {name for message in messages for name in self.chat.unread(message)}:
                statistics.unread[f"{field_name} of messages"] += 1
            statistics.thoughtless += self.chat.leaves_out_thoughts(messages)
            try:
                encoded = self.encode(row)
            except UserError as error:
                raise UserError(f"{row.place}: {error}") from None
            if encoded.content is None:
                statistics.dropped[encoded.reason] += 1
                statistics.unfit_lengths.append((encoded.length, row.place))
                continue
            statistics.truncated += encoded.truncated
            encoded.prompt, encoded.opening = self.prompt_of(row), opening_share(messages)
            encoded.num_turns = sum(message.role != "system" for message in messages)
            kept.append(encoded)
        statistics.check_dropped(name, self.config.max_dropped_share)
        self._statistics[name] = statistics
        return kept


def split_rows(rows: list[EncodedRow], fraction: float) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Divides rows into training and validation by their openings; each gets at least one where two openings differ."""
    if not fraction or not rows:
        return rows, []
    openings = {row.opening for row in rows}
    aside = {opening for opening in openings if opening < fraction}
    if not aside and len(openings) > 1:
        aside = {min(openings)}
    return [row for row in rows if row.opening not in aside], [row for row in rows if row.opening in aside]


def opening_share(messages: Sequence[Message]) -> float:
    """Hashes the opening of a conversation, all that comes before its first answer, to a number from 0 to below 1.

    Rows whose number is below the validation fraction are validated on, so that rows with the same opening stay on one
    side, in this stage and in every other. Where no user speaks before the first answer, all messages are hashed.
    """
    answers = (index for index, message in enumerate(messages) if message.role == "assistant")
    opening = messages[: next(answers, len(messages))]
    if not any(message.role == "user" for message in opening):
        opening = messages
    text = json.dumps([[message.role, message.content] for message in opening])
    return int.from_bytes(blake2b(text.encode(), digest_size=8, key=b"validation").digest(), "big") / 2**64


def cut(learned: np.ndarray, limit: int) -> int:
    """Returns how many of the first `limit` tokens to keep, so that the last one kept is learned; 0 if none is."""
    places = np.flatnonzero(learned[:limit])
    return int(places[-1]) + 1 if len(places) else 0


def too_long(config: RowsConfig) -> str:
    """The reason that is counted for a row with more tokens than data.sequence_length."""
    return f"longer than data.sequence_length {config.length}"
