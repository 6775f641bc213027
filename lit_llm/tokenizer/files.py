"""The files of a tokenizer folder: read with one readable error."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from lit_llm.config import UserError


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        UserError: it is missing, or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def parse_tokenizer(text: str, path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that the content of a tokenizer.json describes.

    Raises:
        UserError: it describes none; the error names `path`.
    """
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the only type that tokenizers raises
        raise UserError(f"{path}: not a tokenizer ({' '.join(str(error).split())}); write the folder again") from None
