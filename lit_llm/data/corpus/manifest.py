"""The manifest of a folder of shards: what it holds, and which tokenizer wrote it.

A manifest may come from a stranger, so that nothing in it is believed before it is checked.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config import UserError, from_plain, to_plain
from lit_llm.config.files import write_json
from lit_llm.config.json_text import parse_json

FORMAT_VERSION = 1
_LARGEST_COUNT = 1 << 62
_LARGEST_TOKEN = 1 << 16  # bytes that a single token may stand for
BLOCK_BYTES = 1 << 18
"""Bytes of a shard that have a checksum of their own."""
_NORMALIZED = 4  # a tokenizer that normalizes may make text shorter by this factor


@dataclass
class ShardInfo:
    """What the manifest says of one shard."""

    file: str
    """Name inside the folder."""
    tokens: int
    """Length of the array."""
    documents: int
    """Documents that end in this shard."""
    bytes: int
    """UTF-8 bytes of the text that the tokens spell."""
    sha256: str
    """Digest of the whole file."""
    block_crc32: str = ""
    """CRC-32 of each 256 KiB of the file, of eight hexadecimal digits, one after another: a part of a shard that was
    fetched alone is checked by it. Empty in manifests of before there was one."""
    documents_file: str | None = None
    """File in the same folder that says where each of its documents came from; None in shards of before there was."""
    documents_sha256: str | None = None
    """Digest of that file."""


@dataclass
class Manifest:
    """What a folder of shards holds and which tokenizer wrote it."""

    tokenizer_digest: str
    """`Tokenizer.digest` of the tokenizer that encoded the text."""
    vocab_size: int
    """Every token is below this."""
    dtype: str
    """"uint16" or "uint32"."""
    eot_id: int
    """The end-of-text token that closes every document."""
    pad_id: int | None
    """The padding token, which no shard contains; None where the tokenizer has none."""
    special_ids: dict[str, int] = field(default_factory=dict)
    """Every special token and its id."""
    corpus: dict[str, Any] = field(default_factory=dict)
    """Options of the corpus the text came from."""
    shards: list[ShardInfo] = field(default_factory=list)
    """The shards, in order."""
    format_version: int = FORMAT_VERSION
    """Version of this format."""

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of source text in all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """One short digest of the content of every shard."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def save(self, folder: Path | str) -> None:
        """Writes folder/manifest.json so that a reader sees the old file or the new one, never a part.

        Raises:
            UserError: the file cannot be written.
        """
        write_json(Path(folder) / "manifest.json", to_plain(self))

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Reads folder/manifest.json.

        Raises:
            UserError: the folder or the file is missing, damaged, or of another format version.
        """
        folder = Path(folder)
        path, word = folder / "manifest.json", shlex.quote(str(folder.parent))
        if not folder.is_dir():
            raise UserError(f"there are no shards at {folder}; run experiments/prepare_data.py --output {word}")
        if not path.is_file():
            raise UserError(f"{folder} has no manifest.json; run experiments/prepare_data.py --output {word}")
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, path: str) -> Manifest:
        """The manifest that the content of a manifest.json gives.

        Args:
            text: the content.
            path: names it in messages.

        Raises:
            UserError: it is damaged, or of another format version.
        """
        damaged = f"{path} is damaged ({{}}); prepare the data again with --overwrite true"
        try:
            values = parse_json(text)
            version = values["format_version"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(damaged.format(error)) from error
        if type(version) is not int or version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version} and this code reads {FORMAT_VERSION}; prepare the data again"
            )
        try:
            values["shards"] = [from_plain(ShardInfo, shard) for shard in values["shards"]]
            manifest = from_plain(cls, values)
            wrong = what_is_wrong(manifest)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(damaged.format(error)) from error
        if wrong:
            raise UserError(f"{path}: {wrong}; copy it again or prepare the data again with --overwrite true")
        return manifest


def what_is_wrong(manifest: Manifest) -> str | None:
    """Says which value of a manifest is impossible, the first if there are several; None where all are possible."""
    return _wrong_ids(manifest) or _wrong_shards(manifest)


def cannot_spell(manifest: Manifest, longest: int) -> str | None:
    """Says which shard has more text than its tokens can stand for; None where none has.

    Args:
        manifest: one without other faults.
        longest: bytes of the tokenizer's longest token.
    """
    for shard in manifest.shards:
        if shard.bytes > _NORMALIZED * longest * shard.tokens:
            return (
                f"says that the {shard.tokens} tokens of {shard.file} are {shard.bytes} bytes of text, and the longest "
                f"token is {longest} bytes"
            )
    return None


def _wrong_ids(manifest: Manifest) -> str | None:
    if manifest.dtype not in ("uint16", "uint32"):
        return f"dtype {manifest.dtype!r} is neither uint16 nor uint32"
    largest = 1 << 8 * np.dtype(manifest.dtype).itemsize
    if not _is_count(manifest.vocab_size) or not 1 <= manifest.vocab_size <= largest:
        return f"vocab_size is {manifest.vocab_size!r}; with dtype {manifest.dtype} it must be 1 to {largest}"
    ids = {"eot_id": manifest.eot_id, **manifest.special_ids}
    if manifest.pad_id is not None:
        ids["pad_id"] = manifest.pad_id
    for name, value in ids.items():
        if not _is_count(value) or value >= manifest.vocab_size:
            return f"{name} is {value!r}, which is no token of a vocabulary of {manifest.vocab_size}"
    return None


def _wrong_shards(manifest: Manifest) -> str | None:
    names: set[str] = set()
    for shard in manifest.shards:
        if not _is_plain_name(shard.file):
            return f"{shard.file!r} is not the name of a file in the same folder"
        for name in ("tokens", "documents", "bytes"):
            value = getattr(shard, name)
            if not _is_count(value):
                return f"{name} of {shard.file} is {value!r}; it must be a number from 0"
        if shard.documents > shard.tokens:  # every document ends with a token of its own
            return f"documents of {shard.file} is {shard.documents}, and it has {shard.tokens} tokens"
        if shard.bytes > _LARGEST_TOKEN * shard.tokens:
            return f"bytes of {shard.file} is {shard.bytes}, which its {shard.tokens} tokens cannot spell"
        if shard.documents_file is not None and not _is_plain_name(shard.documents_file):
            return f"{shard.documents_file!r} is not the name of a file in the same folder"
        if not re.fullmatch(r"([0-9a-f]{8})*", shard.block_crc32):
            return f"block_crc32 of {shard.file} is no row of checksums of eight hexadecimal digits"
        if shard.file in names:
            return f"{shard.file} is listed twice"
        names.add(shard.file)
    return None


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", "..") and name == Path(name).name and "\\" not in name


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT
