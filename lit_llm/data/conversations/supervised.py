"""Batches of conversations: what supervised fine-tuning reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from lit_llm.config import ConversationDataConfig, UserError
from lit_llm.data.conversations.data_module import NOTHING_TO_LEARN, EncodedRow, RowsDataModule, cut, too_long
from lit_llm.data.conversations.encoded_rows import Items, Ragged, padded_width
from lit_llm.data.conversations.reading import Conversation, RowPlace, Rows, read_conversations
from lit_llm.data.loading.order import Permutation
from lit_llm.data.loading.packing import pack
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.tokenizer.chat import Message


class ConversationItems(Items):
    """Conversations, alone or packed.

    A batch holds int64 tensors:
        tokens [b, t]; targets [b, t]: the next token of the same conversation, -100 where it is not learned and in
        padding; and, where packed, document_ids [b, t], which count the conversations of a row from 0, then padding.

    t is the longest row's, rounded up to a multiple of 8. Padding comes last, where causal attention lets no token see
    it, so that conversations that are not packed need no document_ids, which would cost the fastest attention.

    Args:
        places: file and row of each conversation.
        ids: tokens of each, at least 2.
        supervised: which of them are learned.
        sequence_length: most inputs of a row; a conversation of n tokens has n - 1.
        pad_id: the token of padding.
        seed: decides which conversations of equal length share a pack; None: none is packed.
    """

    def __init__(
        self,
        places: Sequence[RowPlace],
        ids: Sequence[np.ndarray],
        supervised: Sequence[np.ndarray],
        sequence_length: int,
        pad_id: int,
        seed: int | None,
    ) -> None:
        super().__init__(places)
        self._ids, self._supervised = Ragged(ids), Ragged(supervised, np.bool_)
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self._packed = seed is not None
        self._bins: Ragged | None = None
        if seed is not None and places:
            # Rows that are next to each other in a file are often alike; a pack should be as mixed as a batch.
            shuffled = Permutation(len(places), seed)(np.arange(len(places)))
            inputs = self._ids.lengths[shuffled] - 1
            self._bins = Ragged([shuffled[texts] for texts in pack(inputs, sequence_length)])

    def __len__(self) -> int:
        return len(self._ids) if self._bins is None else len(self._bins)

    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        """See the class."""
        rows = [self.rows_of(item) if item >= 0 else [] for item in items]
        longest = max(sum(len(self._ids[row]) - 1 for row in packed) for packed in rows)
        # A batch that is all filler has one token, as a model cannot read none.
        shape = len(items), padded_width(max(longest, 1), self.sequence_length)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int64)
        for line, packed in enumerate(rows):
            start = 0
            for document, row in enumerate(packed):
                ids, learned = self._ids[row], self._supervised[row]
                end = start + len(ids) - 1
                tokens[line, start:end] = ids[:-1]
                targets[line, start:end] = np.where(learned[1:], ids[1:], IGNORE_INDEX)
                documents[line, start:end] = document
                start = end
            documents[line, start:] = len(packed)
        batch = {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}
        if self._packed:
            batch["document_ids"] = torch.from_numpy(documents)
        return batch

    def rows_of(self, item: int) -> list[int]:
        """See `Items`."""
        return [item] if self._bins is None else self._bins[item].tolist()

    def ids(self, row: int) -> list[int]:
        """See `Items`."""
        return self._ids[row].tolist()

    def supervised(self, row: int) -> list[bool]:
        """See `Items`."""
        return self._supervised[row].tolist()

    def token_lengths(self) -> np.ndarray:
        """See `Items`."""
        return self._ids.lengths

    def content(self) -> Iterator[bytes]:
        """See `Items`."""
        yield from (*self._ids.parts(), *self._supervised.parts())

    def fill(self) -> tuple[float, float]:
        """The share of batches of sequence_length columns that is not padding, with packing and without it."""
        inputs = int((self._ids.lengths - 1).sum())
        return inputs / (len(self) * self.sequence_length), inputs / (len(self._ids) * self.sequence_length)


class ConversationDataModule(RowsDataModule):
    """Batches of conversations; `ConversationItems` says what a batch holds.

    What follows the last learned token of a conversation is left out, as nothing is learned from reading it. A
    conversation ends with its last turn: no end-of-text token comes after it, as the token that ends the turn is where
    the model has to stop.
    """

    causes: ClassVar[dict[str, str]] = {**RowsDataModule.causes, "packing": "data.packing"}
    config: ConversationDataConfig

    @property
    def fingerprint(self) -> dict[str, Any]:
        """See `ResumableDataModule`; packing decides which rows a sample has."""
        return {**super().fingerprint, "packing": self.config.packing}

    def read(self, paths: Sequence[str], option: str) -> Rows[Conversation]:
        """See `RowsDataModule`."""
        return read_conversations(paths, self.config.form, option=option)

    def prompt_of(self, row: Conversation) -> tuple[Message, ...]:
        """What comes before the first answer."""
        answers = (index for index, message in enumerate(row.messages) if message.role == "assistant")
        return tuple(row.messages[: next(answers, len(row.messages))])

    def messages_of(self, row: Conversation) -> tuple[Message, ...]:
        """See `RowsDataModule`."""
        return tuple(row.messages)

    def encode(self, row: Conversation) -> EncodedRow:
        """Tokenises a conversation and tells what is learned; its first token never is, as nothing comes before it."""
        rendered = self.chat.render(row.messages)
        ids = np.array(rendered.ids, dtype=np.int32)
        self._check_learned(row.messages)
        learned = np.array(rendered.supervised if self.config.supervise == "assistant" else rendered.left_out)
        if self.config.supervise == "all":
            learned = ~learned
        learned[:1] = False
        limit, truncate = self.config.length + 1, self.config.too_long == "truncate"
        length = cut(learned, len(ids))
        if not length:
            return EncodedRow(row.place, len(ids), reason=NOTHING_TO_LEARN)
        if length > limit and not truncate:
            return EncodedRow(row.place, length, reason=too_long(self.config))
        kept = cut(learned, limit)
        if not kept:
            return EncodedRow(row.place, length, reason=f"{NOTHING_TO_LEARN} once truncated")
        return EncodedRow(row.place, length, (ids[:kept], learned[:kept]), truncated=length > limit)

    def _check_learned(self, messages: Sequence[Message]) -> None:
        """Refuses a message's wish to be learned, or not to be, where data.supervise decides for all of its role."""
        supervises_all = self.config.supervise == "all"
        for number, message in enumerate(messages, start=1):
            if message.role != "assistant" and message.learned is not None and message.learned != supervises_all:
                asked, other = ("is to be", "all") if message.learned else ("is not to be", "assistant")
                raise UserError(
                    f"message {number}, the {message.role}'s, {asked} learned by its weight, train or loss, which only "
                    f"an assistant's may say; leave that out, or set data.supervise {other}"
                )

    def make_items(self, places: Sequence[RowPlace], contents: Sequence[Any]) -> ConversationItems:
        """See `RowsDataModule`."""
        config = self.config
        ids, supervised = [content[0] for content in contents], [content[1] for content in contents]
        seed = self.seed if config.packing else None
        return ConversationItems(places, ids, supervised, config.length, self.pad_id, seed)

    def statistics_lines(self) -> list[str]:
        """Adds to the lines of every kind of rows how full the packed rows are."""
        lines, items = super().statistics_lines(), self.items("train")
        if self.config.packing:
            packed, alone = items.fill()
            lines.append(f"packing: {len(items):,} rows of a batch, {packed:.1%} full; unpacked {alone:.1%}")
        return lines
