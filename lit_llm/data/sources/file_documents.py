"""Documents of files, of this machine or remote ones: each file is a unit, read as what its name says it is."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lit_llm.config import UserError
from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources import spans
from lit_llm.data.sources.code import code_language
from lit_llm.data.sources.document import Skipped, SourceDocument, Span, Unit
from lit_llm.data.sources.files import COMPRESSED_SUFFIXES, content_suffix, file_key, find_files
from lit_llm.data.sources.making import BROKEN_FILE, UNREADABLE_FILE, DocumentMaker
from lit_llm.data.sources.remote import StoredFile, find_remote_files, is_remote
from lit_llm.data.sources.row_documents import row_file_documents
from lit_llm.data.sources.rows import has_rows
from lit_llm.data.sources.source import END_OF_TEXT
from lit_llm.data.sources.text_documents import code_documents, text_documents
from lit_llm.data.sources.text_files import PROSE_SUFFIXES
from lit_llm.data.sources.web_archives import archive_documents
from lit_llm.data.sources.web_pages import HTML_SUFFIXES, html_documents
from lit_llm.data.sources.wikipedia import is_wiki_dump, wiki_documents

_OF_THE_FILE = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EIO", "EINVAL", "EBADMSG", "ENODATA")
    if hasattr(errno, name)
)
"""What is wrong with a single file when it cannot be read; anything else is likely to hold for others, too."""
GONE = "it was there when the files were listed"


@dataclass(frozen=True)
class FoundFile:
    """A file of a source.

    Attributes:
        key: Its path from the source's root.
        path: Where it is.
        size_bytes: As it is stored; None where that is not known.
        modified: The time of a file of this machine, and whether it may be read, which can change without the time.
    """

    key: str
    path: StoredFile
    size_bytes: int | None
    modified: str | None = None

    @classmethod
    def of_path(cls, key: str, path: Path) -> FoundFile:
        """A file of this machine, which may be gone by now."""
        try:
            stat = path.stat()
        except OSError:
            return cls(key, path, None, "gone")
        return cls(key, path, stat.st_size, f"{stat.st_mtime_ns}{'' if os.access(path, os.R_OK) else ' unreadable'}")


class FileDocuments:
    """Documents of a file, a folder, a glob or the standard library, local or remote.

    Args:
        config: The source; its `path` names files.

    Raises:
        UserError: there is no such file, or an option of `config` could do nothing for the files that there are.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._maker = DocumentMaker.of(config)
        self.description, files = _find(config.path)
        self._files: dict[str, FoundFile] = {}
        for file in files:
            key = file.key
            while key in self._files:  # as two names, one of which is no UTF-8, may look the same
                key += "'"
            self._files[key] = replace(file, key=key)
        kinds = {self._kind(file.path) for file in files}
        if config.document_separator not in ("auto", None) and not kinds & {"text", "code"}:
            raise UserError(
                f"document_separator is given, but {config.path} has no text files that it could stand in; leave it out"
            )
        if config.id_field is not None and "rows" not in kinds:
            raise UserError(f"id_field is given, but {config.path} has no rows; leave it out")

    def units(self) -> list[Unit]:
        """The files, in the order of their paths; large ones of some kinds in spans."""
        return [unit for file in self._files.values() for unit in self._units_of(file)]

    def _units_of(self, file: FoundFile) -> list[Unit]:
        size, parts = file.size_bytes, self._spans(file)
        if size is None or len(parts) < 2:
            return [Unit(file.key, size, file.modified)]
        bounds = [size * number // len(parts) for number in range(len(parts) + 1)]
        sizes = (end - begin for begin, end in pairwise(bounds))
        return [Unit(file.key, each, file.modified, span) for each, span in zip(sizes, parts, strict=True)]

    def _spans(self, file: FoundFile) -> list[Span]:
        """The spans of a large file of this machine; none of one that must be read from its beginning."""
        path, size = file.path, file.size_bytes
        if not isinstance(path, Path) or size is None or size <= spans.SPAN_BYTES:
            return []
        kind = self._kind(path)
        if kind in ("warc", "wet"):
            return spans.archive_spans(size)
        if kind != "rows" or self._config.id_field is not None:  # which ids have come before must be known
            return []
        try:
            if content_suffix(path) == ".parquet":
                return spans.parquet_spans(path)
            if path.suffix.lower() not in COMPRESSED_SUFFIXES and content_suffix(path) != ".json":
                return spans.line_spans(path, size)
        except OSError:  # whoever reads the file says what is wrong
            pass
        return []

    def read(self, unit: Unit) -> Iterator[SourceDocument | Skipped]:
        """Yields the documents of a file.

        Raises:
            UserError: a connection is lost for good, or what is wrong is not the file alone.
        """
        file = self._files.get(unit.name)
        if file is None:
            yield Skipped(unit.name, UNREADABLE_FILE, GONE)
            return
        yield from reading(self._documents(file, unit.span), file)

    def _documents(self, file: FoundFile, span: Span | None) -> Iterator[SourceDocument | Skipped]:
        path, key, maker = file.path, file.key, self._maker
        kind = self._kind(path)
        if kind == "rows":
            return row_file_documents(path, key, self._config, maker, len(self._files) == 1, span)
        if kind == "html":
            return html_documents(path, key, maker)
        if kind in ("warc", "wet"):
            return archive_documents(path, key, maker, kind == "wet", span)
        if kind == "wikipedia":
            return wiki_documents(path, key, maker)
        if kind == "code" and self._config.document_separator in ("auto", None):
            license = "PSF-2.0" if self._config.path == "stdlib" else None
            return code_documents(path, key, maker, license)
        return text_documents(path, key, maker, self._separators(path))

    def _separators(self, path: StoredFile) -> tuple[str, ...]:
        separator = self._config.document_separator
        if separator == "auto":
            return (END_OF_TEXT,) if content_suffix(path) in PROSE_SUFFIXES else ()
        return () if separator is None else (separator,)

    def _kind(self, path: StoredFile) -> str:
        if self._config.format != "auto":
            return self._config.format
        if has_rows(path):
            return "rows"
        suffix = content_suffix(path)
        if suffix in HTML_SUFFIXES:
            return "html"
        if suffix in (".warc", ".wet"):
            return suffix[1:]
        if suffix == ".xml" and is_wiki_dump(path):
            return "wikipedia"
        return "code" if code_language(suffix, path.name) else "text"


def reading(documents: Iterator[SourceDocument | Skipped], file: FoundFile) -> Iterator[SourceDocument | Skipped]:
    """Passes on what is read of a file, up to where it is broken or can no longer be read.

    Raises:
        UserError: the file cannot be read for a reason that is not in the file.
    """
    try:
        yield from documents
    except (OSError, EOFError, zlib.error) as error:
        number = getattr(error, "errno", None)
        if number is None:
            yield Skipped(file.key, BROKEN_FILE, str(error))
        elif number in _OF_THE_FILE:
            detail = "a folder that cannot be listed" if number == errno.EISDIR else os.strerror(number)
            yield Skipped(file.key, UNREADABLE_FILE, detail)
        else:
            raise UserError(
                f"{file.path}: cannot be read ({os.strerror(number)}); correct that, and run again"
            ) from None


def _find(path: str) -> tuple[str, list[FoundFile]]:
    """What the files of a path are in words, and the files."""
    if is_remote(path):
        found, description = find_remote_files(path, "path")
        return description, [FoundFile(*each) for each in found]
    root, files, description = find_files(path, "path")
    return description, [FoundFile.of_path(file_key(file, root), file) for file in files]
