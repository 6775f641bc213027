"""Batches of prompts: what a policy answers in reinforcement learning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_llm.config import PromptDataConfig
from lit_llm.data.conversations.data_module import EncodedRow, RowsDataModule, too_long
from lit_llm.data.conversations.encoded_rows import Items, Ragged
from lit_llm.data.conversations.reading import Prompt, RowPlace, Rows, read_prompts
from lit_llm.tokenizer.chat import Message

if TYPE_CHECKING:
    from lit_llm.tokenizer import Tokenizer


class PromptItems(Items):
    """Prompts, each with the header of the assistant's turn that is to follow.

    A batch holds:
        prompts: b lists of ids, at least one each; filler repeats the first prompt, so that ranks write as many answers
        fields: b dicts with the fields of the rows, for rewards to read

    Args:
        places: file and row of each prompt.
        ids: their tokens.
        fields: the fields of each row.
    """

    def __init__(self, places: Sequence[RowPlace], ids: Sequence[np.ndarray], fields: Sequence[dict[str, Any]]) -> None:
        super().__init__(places)
        self._ids = Ragged(ids)
        self._fields = list(fields)

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        """See the class."""
        rows = [max(item, 0) for item in items]
        return {"prompts": [self.ids(row) for row in rows], "fields": [self._fields[row] for row in rows]}

    def rows_of(self, item: int) -> list[int]:
        """See `Items`."""
        return [item]

    def ids(self, row: int) -> list[int]:
        """See `Items`."""
        return self._ids[row].tolist()

    def supervised(self, row: int) -> list[bool]:
        """See `Items`: nothing of a prompt is learned."""
        return [False] * len(self._ids[row])

    def token_lengths(self) -> np.ndarray:
        """See `Items`."""
        return self._ids.lengths

    def content(self) -> Iterator[bytes]:
        """See `Items`."""
        yield from self._ids.parts()
        yield from (json.dumps(fields, sort_keys=True, default=str).encode() for fields in self._fields)


class PromptDataModule(RowsDataModule):
    """Batches of prompts; `PromptItems` says what a batch holds.

    A prompt leaves room for its answer. One that is too long for that loses its beginning where it may be truncated:
    its end is what asks for the answer.

    Args:
        config: options.
        tokenizer: has chat tokens.
        seed: keys the order of the samples.
        answer_tokens: room to leave in data.sequence_length.
    """

    config: PromptDataConfig

    def __init__(self, config: PromptDataConfig, tokenizer: Tokenizer, seed: int, answer_tokens: int = 1) -> None:
        super().__init__(config, tokenizer, seed)
        self.answer_tokens = answer_tokens

    def read(self, paths: Sequence[str], option: str) -> Rows[Prompt]:
        """See `RowsDataModule`."""
        return read_prompts(paths, option=option)

    def prompt_of(self, row: Prompt) -> tuple[Message, ...]:
        """See `RowsDataModule`."""
        return tuple(row.messages)

    def messages_of(self, row: Prompt) -> tuple[Message, ...]:
        """See `RowsDataModule`."""
        return tuple(row.messages)

    def encode(self, row: Prompt) -> EncodedRow:
        """Tokenises the prompt, and keeps the row's fields for the rewards."""
        ids = np.array(self.chat.render_prompt(row.messages), dtype=np.int32)
        excess = len(ids) + self.answer_tokens - self.config.length
        if excess <= 0:
            return EncodedRow(row.place, len(ids), (ids, row.fields))
        if self.config.too_long == "drop" or excess >= len(ids):
            room = f" with an answer of {self.answer_tokens} tokens" if self.answer_tokens > 1 else ""
            return EncodedRow(row.place, len(ids), reason=too_long(self.config) + room)
        return EncodedRow(row.place, len(ids), (ids[excess:], row.fields), truncated=True)

    def make_items(self, places: Sequence[RowPlace], contents: Sequence[Any]) -> PromptItems:
        """See `RowsDataModule`."""
        return PromptItems(places, [content[0] for content in contents], [content[1] for content in contents])
