"""The source that a recipe names, opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import xxhash

from lit_llm.config import UserError
from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import DocumentSource, Skipped, SourceDocument, Unit
from lit_llm.data.sources.encoding import read_text
from lit_llm.data.sources.files import content_suffix, find_files
from lit_llm.data.sources.rows import json_line_rows


class _Files:
    """Text files, each a document, and rows of .jsonl files."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._root, self._files, self.description = find_files(config.path, "sources.path")

    def units(self) -> list[Unit]:
        """See `DocumentSource`."""
        units = []
        for path in self._files:
            stat = path.stat()
            units.append(Unit(path.relative_to(self._root).as_posix(), stat.st_size, str(stat.st_mtime_ns)))
        return units

    def read(self, unit: Unit) -> Iterator[SourceDocument | Skipped]:
        """See `DocumentSource`."""
        path, config = Path(self._root) / unit.name, self._config
        if content_suffix(path) != ".jsonl":
            text = read_text(path)
            yield SourceDocument(
                unit.name, config.name, text, xxhash.xxh3_128_hexdigest(text.encode()), license=config.license
            )
            return
        try:
            for number, row, _ in json_line_rows(path):
                name, text = f"{unit.name}:{number}", row.get(config.text_field)
                if not isinstance(text, str):
                    yield Skipped(name, f"no field {config.text_field!r}")
                    continue
                digest = xxhash.xxh3_128_hexdigest(text.encode())
                yield SourceDocument(
                    name, config.name, text, digest, row.get("url"), license=row.get("license") or config.license
                )
        except UserError as error:
            yield Skipped(str(path), "broken JSON", str(error))


def open_source(config: SourceConfig) -> DocumentSource:
    """The source of a recipe's entry."""
    return _Files(config)
