"""Counts of what became of the rows of files, kept beside those that can be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lit_llm.config import UserError
from lit_llm.data.conversations.forms import RowPlace

NOT_LEARNED = "not to be learned by their weight, train or loss"
"""The reason that is counted for a row that is left out at its own wish, which is no fault of the file."""


@dataclass
class RowStatistics:
    """Counts of what was found in the rows of some files.

    Attributes:
        rows: All rows, those left out included.
        dropped: Rows left out, by reason.
        unread: Rows that have a field which nothing reads, by its name; of messages, one that the model's form of
            conversations has no place for.
        repeated: Rows with an answer that begins with the prompt, and was left as it is; of conversations, those of
            prompt and completion.
        first_repeated: Where the first row of `repeated` is.
        taken_off: Preferences whose answers began with the prompt, which was taken off them.
        thoughtless: Rows with what was thought in an earlier turn, which the chat template leaves out.
        turns: Of the rows kept, how many have so many messages (without the system's; of a preference, the prompt's
            and the chosen answer's).
        truncated: Rows that were cut to fit, where they have been tokenised.
        unfit_lengths: Tokens and place of each row that was left out once it was tokenised.
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    first_repeated: RowPlace | None = None
    taken_off: int = 0
    thoughtless: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    truncated: int = 0
    unfit_lengths: list[tuple[int, RowPlace]] = field(default_factory=list)

    @property
    def reasons(self) -> str:
        """How many rows are left out for each reason, in words."""
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))

    def remarks(self) -> list[str]:
        """Lines about what a reader may want to repair in the files; none where all is well."""
        lines = []
        if self.unread:
            names = ", ".join(f"{name} ({count:,})" for name, count in sorted(self.unread.items()))
            lines.append(f"columns that are not read, with the rows that have them: {names}")
        if self.repeated:
            lines.append(
                f"rows with an answer that begins with the prompt, left as they are: {self.repeated:,} "
                f"(the first: {self.first_repeated})"
            )
        if self.taken_off:
            lines.append(f"rows whose answers began with the prompt, which was taken off them: {self.taken_off:,}")
        if self.thoughtless:
            lines.append(
                f"rows with reasoning in earlier turns, which the chat template leaves out there: {self.thoughtless:,}"
            )
        return lines

    def found_repeated(self, count: int, first: RowPlace) -> None:
        """Count rows with an answer that begins with the prompt."""
        self.first_repeated = self.first_repeated or first
        self.repeated += count

    def exclusions(self) -> list[str]:
        """How many rows were left out, and why, and how many were truncated; a line for each, where there are any."""
        lines, count = [], self.dropped.total()
        if count:
            lines.append(f"{count:,} of {self.rows:,} rows left out ({count / self.rows:.1%}): {self.reasons}")
        if self.truncated:
            share = self.truncated / self.rows
            lines.append(f"{self.truncated:,} of {self.rows:,} rows truncated ({share:.1%})")
        return lines

    def check_dropped(self, name: str, max_share: float) -> None:
        """Refuse to go on where too many rows are left out that were not meant to be.

        Args:
            name: The option that gave the files, for the error.
            max_share: The largest share of all rows that may be left out.

        Raises:
            UserError: a larger share is left out; the longest of those that do not fit are named.
        """
        share = (self.dropped.total() - self.dropped[NOT_LEARNED]) / self.rows
        if share <= max_share:
            return
        longest = sorted(self.unfit_lengths, key=lambda each: -each[0])[:3]
        named = "; ".join(f"{place} with {length:,} tokens" for length, place in longest)
        named = f"the longest: {named}; " if named else ""
        raise UserError(
            f"{name}: {share:.1%} of {self.rows:,} rows are left out ({self.reasons}), more than "
            f"data.max_dropped_share {max_share}; {named}raise data.sequence_length, set "
            "data.too_long truncate, repair the rows, or raise data.max_dropped_share"
        )

    def lines(self) -> list[str]:
        """All counts as lines for a reader."""
        kept = self.turns.total()
        lines = [f"{self.rows:,} rows, {kept:,} kept", *self.exclusions()]
        if kept:
            mean = sum(turns * count for turns, count in self.turns.items()) / kept
            lines.append(f"turns of each: min {min(self.turns):,}, mean {mean:.1f}, max {max(self.turns):,}")
        return [*lines, *self.remarks()]


T = TypeVar("T")


class Rows(list[T], Generic[T]):
    """The rows of some files that can be used, in order.

    Attributes:
        statistics: What was found, and left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statistics = RowStatistics()
