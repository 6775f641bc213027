"""Data sets of the Hugging Face hub, streamed: the one place that knows what `hf:...` means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.sources.source import Files, Piece, row_piece

_FORMS = "hf:NAME, hf:NAME:CONFIG, hf:NAME:CONFIG:SPLIT or hf:NAME::SPLIT"


@dataclass(frozen=True)
class HubDataset:
    """One split of a Hugging Face data set.

    Attributes:
        name: Name on the hub, or path of a folder of this machine.
        subset: The configuration; None: the only one, or the default.
        split: Name of the split.
    """

    name: str
    subset: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, path: str, option: str) -> HubDataset:
        """The data set that `hf:NAME[:CONFIG[:SPLIT]]` names; an empty part is one that was left out.

        Args:
            path: Begins with `hf:`.
            option: What gave the path, for the error.

        Raises:
            UserError: the path has no name, or more than three parts.
        """
        name, *rest = path.removeprefix("hf:").split(":")
        if not name or len(rest) > 2:
            raise UserError(f"{option} {path!r}: write {_FORMS}")
        subset, split = [*rest, "", ""][:2]
        return cls(name, subset or None, split or cls.split)

    def rows(self, shard: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows, streamed.

        Args:
            shard: Only those of this shard, from 0; None: all.

        Raises:
            UserError: the data set cannot be loaded.
        """
        with self._loading():
            stream = self._stream()
            yield from stream if shard is None else stream.shard(stream.num_shards, shard)

    def num_shards(self) -> int:
        """The number of its shards, mostly files.

        Raises:
            UserError: the data set cannot be loaded.
        """
        with self._loading():
            return int(self._stream().num_shards)

    def _stream(self) -> Any:
        import datasets

        return datasets.load_dataset(self.name, self.subset, split=self.split, streaming=True)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # datasets raises whatever its file systems and parsers do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            configuration = f"configuration {self.subset!r}, " if self.subset else ""
            # A lone second part may be meant as a split.
            is_lone = self.subset and self.split == HubDataset.split
            meant = f"; a split is the third part, as in hf:{self.name}::{self.subset}" if is_lone else ""
            raise UserError(
                f"hf:{self.name}: cannot be loaded, {configuration}split {self.split!r} ({reason}){meant}"
            ) from None


class HubSource:
    """Texts from a Hugging Face data set, streamed.

    Args:
        config: Its `path` begins with `hf:`.

    Raises:
        UserError: the path is not in the form that `HubDataset.parse` reads.
    """

    binary_files = Files()

    def __init__(self, config: CorpusConfig) -> None:
        self._dataset = HubDataset.parse(config.path, "corpus.path")
        self._field = config.text_field
        self.description = f"{config.path} ({self._dataset.split})"

    def size_bytes(self) -> None:
        """A stream does not say how long it is."""

    def files_digest(self) -> None:
        """Nor of what files it is."""

    def pieces(self, end_of_text: Sequence[str]) -> Iterator[Piece]:
        """Yields the text of every row, in the order of the data set.

        Raises:
            UserError: the data set cannot be loaded, or a row has no such field.
        """
        name = f"hf:{self._dataset.name}"
        for index, row in enumerate(self._dataset.rows()):
            yield row_piece(row, self._field, (name, index), f"{name} row {index}")
