"""Data sets of the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.sources.source import Files, Piece, row_piece


def hub_rows(name: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a Hugging Face data set, streamed.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    try:
        yield from datasets.load_dataset(name, subset, split=split, streaming=True)
    except Exception as error:  # datasets raises whatever its file systems and parsers do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"hf:{name}: cannot be loaded, split {split!r} ({reason})") from None


class HubSource:
    """Texts from a Hugging Face data set, streamed.

    Args:
        config: Its `path` is `hf:NAME` or `hf:NAME:CONFIG`.
    """

    binary_files = Files()

    def __init__(self, config: CorpusConfig) -> None:
        name, _, subset = config.path.removeprefix("hf:").partition(":")
        if not name:
            raise UserError(f"corpus.path is {config.path!r}; write hf:NAME or hf:NAME:CONFIG")
        self._name, self._subset = name, subset or None
        self._split, self._field = config.hf_split, config.text_field
        self.description = f"{config.path} ({config.hf_split})"

    def is_one_text(self, end_of_text: Sequence[str]) -> bool:
        """Never: it has rows."""
        return False

    def size_bytes(self) -> None:
        """A stream does not say how long it is."""

    def pieces(self, end_of_text: Sequence[str]) -> Iterator[Piece]:
        """Every row's text, in the order of the data set.

        Raises:
            UserError: the data set cannot be loaded, or a row has no such field.
        """
        for index, row in enumerate(hub_rows(self._name, self._subset, self._split)):
            yield row_piece(row, self._field, (f"hf:{self._name}", index), f"hf:{self._name} row {index}")
