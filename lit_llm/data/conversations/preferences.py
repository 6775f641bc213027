"""Batches of preferences: what reward models and DPO read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lit_llm.config import PreferenceDataConfig
from lit_llm.data.conversations.data_module import NOTHING_TO_LEARN, EncodedRow, RowsDataModule, cut, too_long
from lit_llm.data.conversations.encoded_rows import Items, Ragged, padded_width
from lit_llm.data.conversations.reading import SAME, Preference, RowPlace, Rows, read_preferences
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.tokenizer.chat import Message

if TYPE_CHECKING:
    from lit_llm.tokenizer import Tokenizer


@dataclass
class Pair:
    """A tokenised pair: the ids of the chosen and the rejected text, which of them are the answer's, and the margin."""

    ids: tuple[np.ndarray, np.ndarray]
    learned: tuple[np.ndarray, np.ndarray]
    margin: float | None


class PairItems(Items):
    """Pairs of a chosen and a rejected answer to the same prompt.

    A batch of b pairs holds, with the chosen in rows 0 to b - 1 and the rejected in rows b to 2b - 1:
        tokens [2b, t] int64: the whole text, its last token too, where a reward model reads the score; padding after it
        targets [2b, t] int64: the next token, -100 where it is not the answer's and in padding
        lengths [2b] int64: tokens of each text
        margin [b] float32: how much better the chosen one is, 0 where that is not known
        has_margin [b] bool: whether it is
        row_ids [b] int64: number of the pair in its split, -1 for filler, whose text is one token of padding

    t is the longest text's, rounded up to a multiple of 8.

    Args:
        places: file and row of each pair.
        pairs: their tokens.
        sequence_length: most tokens of a text.
        pad_id: the token of padding.
    """

    def __init__(self, places: Sequence[RowPlace], pairs: Sequence[Pair], sequence_length: int, pad_id: int) -> None:
        super().__init__(places)
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self._ids = [Ragged([pair.ids[side] for pair in pairs]) for side in range(2)]
        self._learned = [Ragged([pair.learned[side] for pair in pairs], np.bool_) for side in range(2)]
        self._margins = np.array([pair.margin or 0.0 for pair in pairs], dtype=np.float32)
        self._has_margin = np.array([pair.margin is not None for pair in pairs], dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        """See the class."""
        size, numbers = len(items), np.array(items, dtype=np.int64)
        lengths = np.ones(2 * size, dtype=np.int64)
        for side, ids in enumerate(self._ids):
            lengths[side * size :][:size][numbers >= 0] = ids.lengths[numbers[numbers >= 0]]
        shape = 2 * size, padded_width(int(lengths.max()), self.sequence_length)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        margins, has_margin = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.bool_)
        for index, item in enumerate(items):
            if item < 0:
                continue
            for side in range(2):
                ids, learned = self._ids[side][item], self._learned[side][item]
                tokens[side * size + index, : len(ids)] = ids
                targets[side * size + index, : len(ids) - 1] = np.where(learned[1:], ids[1:], IGNORE_INDEX)
            margins[index], has_margin[index] = self._margins[item], self._has_margin[item]
        arrays = {"tokens": tokens, "targets": targets, "lengths": lengths, "margin": margins}
        arrays.update(has_margin=has_margin, row_ids=numbers)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def rows_of(self, item: int) -> list[int]:
        """See `Items`."""
        return [item]

    def ids(self, row: int) -> list[int]:
        """See `Items`: of the chosen answer's text."""
        return self._ids[0][row].tolist()

    def supervised(self, row: int) -> list[bool]:
        """See `Items`: of the chosen answer's text."""
        return self._learned[0][row].tolist()

    def texts(self, row: int) -> list[tuple[str, list[int], list[bool]]]:
        """See `Items`: the text of the chosen answer, then that of the rejected one."""
        sides = zip(("chosen", "rejected"), self._ids, self._learned, strict=True)
        return [(name, ids[row].tolist(), learned[row].tolist()) for name, ids, learned in sides]

    def token_lengths(self) -> np.ndarray:
        """See `Items`."""
        return np.concatenate([ids.lengths for ids in self._ids])

    def content(self) -> Iterator[bytes]:
        """See `Items`."""
        for ragged in (*self._ids, *self._learned):
            yield from ragged.parts()
        yield self._margins.tobytes()
        yield self._has_margin.tobytes()

    def num_margins(self) -> int:
        """How many pairs have a known margin."""
        return int(self._has_margin.sum())


class PreferenceDataModule(RowsDataModule):
    """Batches of pairs; `PairItems` says what a batch holds.

    What follows the last token of an answer, the end of its turn, is left out, so that a text's last token is that.

    Args:
        config: options.
        tokenizer: has chat tokens.
        seed: keys the order of the samples.
        margins: read the margins of rows.
        score_scale: see `read_preferences`.
    """

    config: PreferenceDataConfig

    def __init__(
        self,
        config: PreferenceDataConfig,
        tokenizer: Tokenizer,
        seed: int,
        *,
        margins: bool = True,
        score_scale: float | None = None,
    ) -> None:
        super().__init__(config, tokenizer, seed)
        self._margins, self._score_scale = margins, score_scale

    def read(self, paths: Sequence[str], option: str) -> Rows[Preference]:
        """See `RowsDataModule`."""
        return read_preferences(paths, option=option, margins=self._margins, score_scale=self._score_scale)

    def prompt_of(self, row: Preference) -> tuple[Message, ...]:
        """See `RowsDataModule`."""
        return tuple(row.prompt)

    def messages_of(self, row: Preference) -> tuple[Message, ...]:
        """See `RowsDataModule`."""
        return (*row.prompt, *row.chosen)

    def encode(self, row: Preference) -> EncodedRow:
        """Tokenises both texts, which are cut or left out together."""
        sides = [self._encode_side(row.prompt, answer) for answer in (row.chosen, row.rejected)]
        limit = self.config.length
        whole = [cut(learned, len(ids)) for ids, learned in sides]
        length = max(whole)
        if not min(whole):
            return EncodedRow(row.place, length, reason=NOTHING_TO_LEARN)
        if length > limit and self.config.too_long == "drop":
            return EncodedRow(row.place, length, reason=too_long(self.config))
        kept = [cut(learned, limit) for _, learned in sides]
        if not min(kept):
            return EncodedRow(row.place, length, reason=f"{NOTHING_TO_LEARN} once truncated")
        ids = sides[0][0][: kept[0]], sides[1][0][: kept[1]]
        if np.array_equal(*ids):
            return EncodedRow(row.place, length, reason=SAME if length <= limit else f"{SAME} once truncated")
        learned = sides[0][1][: kept[0]], sides[1][1][: kept[1]]
        return EncodedRow(row.place, length, Pair(ids, learned, row.margin), truncated=length > limit)

    def make_items(self, places: Sequence[RowPlace], contents: Sequence[Any]) -> PairItems:
        """See `RowsDataModule`."""
        return PairItems(places, contents, self.config.length, self.pad_id)

    def statistics_lines(self) -> list[str]:
        """Adds to the lines of every kind of rows how many margins are known."""
        lines, margins = super().statistics_lines(), self.items("train").num_margins()
        if margins:
            lines.append(f"margins: {margins:,} of {self.num_rows:,} training rows have one")
        return lines

    def _encode_side(self, prompt: Sequence[Message], answer: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the prompt and one answer, and which are the answer's; answers in the prompt do not count."""
        rendered, length = self.chat.render_answer(prompt, answer)
        learned = np.array(rendered.supervised)
        learned[:length] = False
        return np.array(rendered.ids, dtype=np.int32), learned
