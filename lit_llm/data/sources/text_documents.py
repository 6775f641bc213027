"""Documents of text files, and of program code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lit_llm.data.sources.code import code_language, is_generated, stated_license
from lit_llm.data.sources.document import Skipped, SourceDocument
from lit_llm.data.sources.encoding import find_encoding
from lit_llm.data.sources.files import content_suffix
from lit_llm.data.sources.making import BINARY, TOO_LONG, DocumentMaker
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.source import PIECE_BYTES
from lit_llm.data.sources.text_files import Separators, text_pieces


def text_documents(
    path: StoredFile, key: str, maker: DocumentMaker, separators: Sequence[str]
) -> Iterator[SourceDocument | Skipped]:
    """Yields the documents of a text file.

    Args:
        path: The file.
        key: Its path from the source's root.
        maker: Of the source.
        separators: The strings that end a document; none: the file is one.

    Raises:
        OSError, EOFError, zlib.error: The file cannot be read on.
    """
    encoding = find_encoding(path)
    if encoding is None:
        yield Skipped(key, BINARY, "there are NUL bytes, and no byte order mark")
        return
    parts: list[str] = []
    size = replaced = 0
    piece_bytes = min(PIECE_BYTES, maker.max_bytes)
    # The pieces are joined again, so that it does not matter where they are cut.
    for piece in text_pieces(path, key, encoding, piece_bytes, Separators(separators) if separators else None, len):
        size += len(piece.text.encode())
        replaced += piece.replaced_bytes
        if size <= maker.max_bytes:
            parts.append(piece.text)
        else:
            parts.clear()
        if piece.final:
            if size <= maker.max_bytes:
                yield maker.make(piece.key, "".join(parts), replaced=replaced)
            else:
                yield Skipped(piece.key, TOO_LONG, f"{size:,} bytes")
            parts.clear()
            size = replaced = 0


def code_documents(
    path: StoredFile, key: str, maker: DocumentMaker, license: str | None = None, **metadata: str | None
) -> Iterator[SourceDocument | Skipped]:
    """Yields the document of a file of program code, with its language, the licence that it states, and whether a
    program has written it.

    Args:
        path: The file.
        key: Its path from the source's root.
        maker: Of the source.
        license: Where the file states none.
        metadata: Whatever else is known of it.

    Raises:
        OSError, EOFError, zlib.error: The file cannot be read on.
    """
    for document in text_documents(path, key, maker, ()):
        if isinstance(document, SourceDocument):
            document.license = stated_license(document.text) or license or maker.license
            language = code_language(content_suffix(path), path.name)
            if language is not None:
                document.metadata["code_language"] = language
            if is_generated(document.text):
                document.metadata["generated"] = True
            document.metadata.update(metadata)
        yield document
