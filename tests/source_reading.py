"""What the tests of sources share: all of a source, read unit by unit."""

from __future__ import annotations

from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import Skipped, SourceDocument
from lit_llm.data.sources.opening import open_source


def read_all(path, **options) -> tuple[list[SourceDocument], list[Skipped]]:
    """The documents of a source in order, and what was left out."""
    config = SourceConfig(str(path), **options)
    source = open_source(config)
    units = source.units()
    assert len({(unit.name, unit.span) for unit in units}) == len(units) > 0
    found = [each for unit in units for each in source.read(unit)]
    # As in another process, in which the source is made again and the units are read in any order.
    again = open_source(config)
    assert again.units() == units and again.description == source.description
    assert [each for unit in reversed(units) for each in reversed(list(again.read(unit)))] == found[::-1]
    documents = [each for each in found if isinstance(each, SourceDocument)]
    assert len({document.id for document in documents}) == len(documents)
    assert all(document.source == (config.name or str(path)) for document in documents)
    return documents, [each for each in found if isinstance(each, Skipped)]


def reasons(skipped: list[Skipped]) -> list[tuple[str, str]]:
    """Where each thing was that was left out, and why."""
    return [(each.where, each.reason) for each in skipped]
