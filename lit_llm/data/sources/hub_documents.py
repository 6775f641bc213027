"""Documents of data sets of the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import Skipped, SourceDocument, Unit
from lit_llm.data.sources.hub import HubDataset
from lit_llm.data.sources.making import DocumentMaker
from lit_llm.data.sources.row_documents import RowDocuments


class HubDocuments:
    """Documents of one split of a data set, of which each file (shard) is a unit.

    Args:
        config: Its `path` is `hf:NAME[:CONFIG[:SPLIT]]`.

    Raises:
        UserError: the path is not in that form.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._dataset = HubDataset.parse(config.path, "path")
        self.description = f"{config.path} ({self._dataset.split})"

    def units(self) -> list[Unit]:
        """The shards, in the order of the data set.

        Raises:
            UserError: the data set cannot be loaded.
        """
        return [Unit(f"shard {number}") for number in range(self._num_shards)]

    @cached_property
    def _num_shards(self) -> int:
        return self._dataset.num_shards()

    def read(self, unit: Unit) -> Iterator[SourceDocument | Skipped]:
        """Yields the documents of a shard; the id of each is the shard and the row in it, unless a field has it.

        Raises:
            UserError: the data set cannot be loaded.
        """
        shard = int(unit.name.removeprefix("shard "))
        documents = RowDocuments(self._config, DocumentMaker.of(self._config), self._num_shards == 1)
        for number, row in enumerate(self._dataset.rows(shard)):
            yield documents.of_row(row, f"{self._dataset.split}-{shard:05d}", number)
