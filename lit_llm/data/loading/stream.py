"""What a data module reads its training samples from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Decodes(Protocol):
    """Anything that turns ids into text, as a tokenizer does."""

    def decode(self, ids: Any) -> str:
        """The text of `ids`."""


class SampleStream(Protocol):
    """An endless, shuffled stream of training samples: any index can be asked for, and always gives the same one."""

    def __getitems__(self, sample_ids: Sequence[int]) -> dict[str, Any]:
        """A whole batch; its `sample_ids` are those asked for."""

    def locate(self, sample_ids: Sequence[int]) -> list[tuple[Path | str, int]]:
        """The file that each sample begins in, and where in it: a token of a shard, or a row."""

    def describe(self, sample_id: int, tokenizer: Decodes) -> tuple[str, str]:
        """Says where a sample is, and gives its text."""
