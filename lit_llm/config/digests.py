"""Short digests, by which it is seen whether something is still what it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_llm.config.errors import UserError

_MODEL_FILES = frozenset({".json", ".safetensors", ".jinja"})


def digest_of(*values: Any) -> str:
    """32 hexadecimal digits that depend on values fit for JSON."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str:
    """32 hexadecimal digits that depend on the contents of files, in their order.

    Raises:
        UserError: one cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def digest_of_model(path: Path) -> str:
    """A digest of what a model folder, or a file with a model, says: weights, configuration and tokenizer.

    Raises:
        UserError: it cannot be read.
    """
    if path.is_file():
        return digest_of_files([path])
    try:
        return digest_of_files(sorted(each for each in path.iterdir() if each.suffix in _MODEL_FILES))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
