"""The source of documents that a recipe names."""

from __future__ import annotations

from lit_llm.config import UserError
from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import DocumentSource
from lit_llm.data.sources.file_documents import FileDocuments
from lit_llm.data.sources.hub_documents import HubDocuments
from lit_llm.data.sources.packages import PREFIX, PackageDocuments


def open_source(config: SourceConfig) -> DocumentSource:
    """Finds the units of a source.

    Raises:
        UserError: there is nothing at the path, or an option could do nothing for what is there.
    """
    if not config.path:
        raise UserError("a source has no path; name a file, a folder, a glob, hf:NAME, packages:NAME or stdlib")
    if config.path.startswith("hf:") and not config.path.startswith("hf://"):
        _refuse(config, "format", "document_separator")
        return HubDocuments(config)
    if config.path.startswith(PREFIX):
        _refuse(config, "format", "document_separator", "id_field")
        return PackageDocuments(config)
    return FileDocuments(config)


def _refuse(config: SourceConfig, *names: str) -> None:
    """Refuses options that could do nothing, unless they are as they are by default.

    Raises:
        UserError: one of them is given.
    """
    default = SourceConfig()
    for name in names:
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"{name} is given, but can do nothing for {config.path}; leave it out")
