"""What the manifest of a folder of shards may say, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lit_llm.data.shards import Manifest

_LARGEST_COUNT = 1 << 62
_LARGEST_TOKEN = 1 << 16  # bytes
_NORMALIZED = 4  # as much longer than what its tokens spell may text be that the tokenizer has normalized


def what_is_wrong(manifest: Manifest) -> str | None:
    """The first value that no folder of shards can have, in words; None where there is none."""
    return _wrong_ids(manifest) or _wrong_shards(manifest)


def cannot_spell(manifest: Manifest, longest: int) -> str | None:
    """The first shard with more text than its tokens can stand for, in words.

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
        if shard.documents > shard.tokens:  # each ends with a token
            return f"documents of {shard.file} is {shard.documents}, and it has {shard.tokens} tokens"
        if shard.bytes > _LARGEST_TOKEN * shard.tokens:
            return f"bytes of {shard.file} is {shard.bytes}, which its {shard.tokens} tokens cannot spell"
        if shard.file in names:
            return f"{shard.file} is listed twice"
        names.add(shard.file)
    return None


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", "..") and name == Path(name).name and "\\" not in name


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT
