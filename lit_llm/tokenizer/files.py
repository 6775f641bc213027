"""The files of a tokenizer folder: read with one readable error, replaced whole."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
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


def replace_files(texts: dict[Path, str]) -> None:
    """Write files of one folder, which is made where it is missing, so that a reader finds the old or the new ones.

    All are written under other names first: where there is no room for one of them, the old ones stay as they are.
    Their permissions are those that the umask gives a new file.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in texts}
    path = next(iter(texts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with temporaries[path].open("x", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; what was there before is as it was") from error
    finally:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink()
