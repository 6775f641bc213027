"""Shards behind a URL, read block by block through a cache on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lit_llm.config import RemoteConfig, UserError
from lit_llm.config.notices import tell_once
from lit_llm.config.remote import is_url
from lit_llm.data.corpus.block_cache import BlockCache
from lit_llm.data.corpus.downloads import Calls, downloads
from lit_llm.data.corpus.manifest import BLOCK_BYTES, Manifest
from lit_llm.data.corpus.remote_folder import RemoteFolder
from lit_llm.data.corpus.shards import HEADER_BYTES, ShardedTokens, block_checksums
from lit_llm.tokenizer import Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_LEAST_BLOCKS = 16  # fewer would be deleted before they are read
_BLOCKS_AHEAD = 8  # of a reader that goes through the shards in order

Block = tuple[int, int]
"""A shard, and a block of its file."""


def open_split(path: str, split: str, config: RemoteConfig) -> ShardedTokens | None:
    """One split of the shards at a path or URL; None where that is missing or an empty folder, unless it is "train".

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    if not is_url(path):
        folder = Path(path) / split
        is_there = split == "train" or (folder.is_dir() and any(folder.iterdir()))
        return ShardedTokens(folder) if is_there else None
    try:
        return RemoteTokens(RemoteFolder(path, config) / split)
    except FileNotFoundError:
        if split != "train":
            return None
        raise UserError(
            f"there are no shards at {path}, which has no train/manifest.json; give the URL of a folder written by "
            "experiments/prepare_data.py"
        ) from None


def load_tokenizer(path: str, config: RemoteConfig) -> Tokenizer:
    """The tokenizer beside the shards at a path or URL.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not is_url(path):
        return Tokenizer.load(Path(path) / "tokenizer")
    remote = RemoteFolder(path, config) / "tokenizer"
    with TemporaryDirectory() as local:
        for name in _TOKENIZER_FILES:
            with suppress(FileNotFoundError):
                (Path(local) / name).write_bytes(remote.read(name))
        try:
            return Tokenizer.load(local)
        except UserError as error:
            raise UserError(str(error).replace(local, str(remote))) from None


def cache_folder(config: RemoteConfig) -> Path:
    """Where fetched blocks are kept."""
    if config.cache is not None:
        return Path(config.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_llm" / "blocks"


class RemoteTokens(ShardedTokens):
    """The tokens of one split behind a URL, as those of a folder of this machine.

    Only the manifest is read at once. A block of 256 KiB is fetched when a token of it is asked for, and has to match
    the checksum in the manifest before it is used, as has a block of the cache when a process first reads it. Blocks
    are kept under the sha256 of their shard: another content is never taken for it, wherever it comes from.

    Args:
        folder: of the split.

    Raises:
        FileNotFoundError: there is no manifest.json.
        UserError: the manifest is damaged or has no checksums of blocks, or the cache is too small; a reading method:
            a block is damaged there, or cannot be fetched.
    """

    folder: RemoteFolder

    def __init__(self, folder: RemoteFolder) -> None:
        config = folder.config
        self._begin(folder, Manifest.parse(folder.read("manifest.json"), f"{folder}/manifest.json"))
        if config.cache_bytes < _LEAST_BLOCKS * BLOCK_BYTES:
            raise UserError(
                f"data.remote.cache_gib {config.cache_gib} holds fewer than {_LEAST_BLOCKS} blocks of 256 KiB; "
                f"it must be at least {_LEAST_BLOCKS * BLOCK_BYTES / 2**30:.4f}"
            )
        itemsize = np.dtype(self.manifest.dtype).itemsize
        self._sizes = [HEADER_BYTES + shard.tokens * itemsize for shard in self.manifest.shards]
        for shard, size in zip(self.manifest.shards, self._sizes, strict=True):
            if len(shard.block_crc32) != 8 * -(-size // BLOCK_BYTES):
                raise UserError(
                    f"{folder}/manifest.json has no checksums of the blocks of {shard.file}, by which a part of it "
                    "could be checked; prepare the data again, or copy the folder to this machine"
                )
        self._cache = BlockCache(cache_folder(config), config.cache_bytes)
        self._checked: set[Block] = set()
        self._last_block: Block | None = None

    @property
    def files(self) -> list[RemoteFolder]:  # type: ignore[override]
        """The URLs of the shards, in order."""
        return [self.folder / shard.file for shard in self.manifest.shards]

    @property
    def cache_blocks(self) -> int:
        """How many blocks the cache holds."""
        return self.folder.config.cache_bytes // BLOCK_BYTES

    def read(self, start: int, length: int) -> np.ndarray:
        """See `ShardedTokens.read`; of a reader that goes on in order, some blocks ahead are fetched, too."""
        blocks = list(self._blocks(start, length))
        self._fetch(blocks)
        if blocks:
            following = self._following(blocks[-1], _BLOCKS_AHEAD)
            if self._last_block in (blocks[0], self._before(blocks[0])):
                self._fetch_later(following)
            self._last_block = blocks[-1]
        return super().read(start, length)

    def read_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """See `ShardedTokens.read_windows`; the blocks of all windows are fetched at the same time."""
        self._fetch(self._of_windows(starts, length))
        return super().read_windows(starts, length)

    def prefetch(self, starts: np.ndarray, length: int) -> None:
        """Has the blocks of windows that will be read fetched in the background, and returns at once."""
        self._fetch_later(self._of_windows(starts, length))

    def verify(self, on_bytes: object = None) -> None:
        """Does nothing, as each block is checked before it is used."""

    @property
    def bytes_to_verify(self) -> int:
        """None, before a block is fetched."""
        return 0

    def _read_into(self, start: int, out: np.ndarray) -> None:
        dtype, done = np.dtype(self.manifest.dtype), 0
        for shard, first, end in self._ranges(start, len(out)):
            for number in range(first // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                at = number * BLOCK_BYTES
                begin, stop = max(first, at) - at, min(end, at + BLOCK_BYTES) - at
                piece = np.frombuffer(self._part((shard, number), begin, stop), dtype)
                self._require_token(int(piece.max(initial=0)), self.files[shard])
                out[done : done + len(piece)] = piece
                done += len(piece)

    def _require_known(self, tokens: np.ndarray) -> None:
        """Nothing is left to do: `_read_into` has looked."""

    def _ranges(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Each shard of tokens [start, start + length), with the first byte of its file and the one after the last."""
        itemsize = np.dtype(self.manifest.dtype).itemsize
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while length > 0 and shard < len(self._ends):
            offset = start - self._starts[shard]
            count = min(length, self._ends[shard] - start)
            if count:
                yield shard, HEADER_BYTES + offset * itemsize, HEADER_BYTES + (offset + count) * itemsize
            start, length, shard = start + count, length - count, shard + 1

    def _blocks(self, start: int, length: int) -> Iterator[Block]:
        for shard, first, end in self._ranges(start, length):
            for number in range(first // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                yield shard, number

    def _of_windows(self, starts: np.ndarray, length: int) -> list[Block]:
        """The blocks of windows that go on from the beginning after the end, each once."""
        blocks: dict[Block, None] = {}
        for start in np.asarray(starts, dtype=np.int64).tolist():
            inside = min(length, len(self) - start)
            blocks.update(dict.fromkeys(self._blocks(start, inside)))
            blocks.update(dict.fromkeys(self._blocks(0, length - inside)))
        return list(blocks)

    def _following(self, block: Block, number: int) -> list[Block]:
        shard, following = block[0], []
        place = block[1] + 1
        while len(following) < number and shard < len(self._sizes):
            if place * BLOCK_BYTES < self._sizes[shard]:
                following.append((shard, place))
                place += 1
            else:
                shard, place = shard + 1, 0
        return following

    def _before(self, block: Block) -> Block:
        shard, number = block
        if number or not shard:
            return shard, number - 1
        return shard - 1, -(-self._sizes[shard - 1] // BLOCK_BYTES) - 1

    def _fetch(self, blocks: Iterable[Block]) -> None:
        downloads(self.folder.config.connections).now(self._calls(blocks))

    def _fetch_later(self, blocks: Iterable[Block]) -> None:
        downloads(self.folder.config.connections).later(self._calls(blocks))

    def _calls(self, blocks: Iterable[Block]) -> Calls:
        """What fetches the blocks that are not kept."""
        return {
            (self._cache.folder, self.folder.url, block): partial(self._download, block)
            for block in blocks
            if not self._cache.has(self._key(block), block[1])
        }

    def _key(self, block: Block) -> str:
        return self.manifest.shards[block[0]].sha256

    def _part(self, block: Block, begin: int, stop: int) -> bytes:
        """Bytes [begin, stop) of a block, of the cache where they are kept there."""
        key, number = self._key(block), block[1]
        if block in self._checked:
            part = self._cache.read(key, number, begin, stop - begin)
            if part is not None and len(part) == stop - begin:
                return part
        return self._download(block)[begin:stop]

    def _download(self, block: Block) -> bytes:
        """A whole block that matches its checksum: of the cache, or else fetched into it."""
        key, number = self._key(block), block[1]
        with self._cache.locked(key, number):
            data = self._cache.read(key, number)
            if data is not None and not self._matches(block, data):
                tell_once(
                    f"{self._cache.folder}: block {number} of {self.files[block[0]]} is damaged; fetching it again"
                )
                self._cache.remove(key, number)
                data = None
            if data is None:
                data = self._fetched(block)
                self._cache.write(key, number, data)
        self._checked.add(block)
        return data

    def _fetched(self, block: Block) -> bytes:
        """A block from the URL.

        Raises:
            UserError: it cannot be read, or does not match its checksum twice.
        """
        shard, first = self.manifest.shards[block[0]].file, block[1] * BLOCK_BYTES
        end = min(first + BLOCK_BYTES, self._sizes[block[0]])
        for _ in range(2):
            try:
                data = self.folder.read(shard, first, end)
            except FileNotFoundError:
                raise UserError(f"{self.folder}/{shard} is missing; copy it there again") from None
            if self._matches(block, data):
                return data
        raise UserError(
            f"{self.folder}/{shard} does not match its manifest in bytes {first} to {end}, so it is damaged or was "
            "changed; copy it there again, and a run that was under way goes on with --ckpt_path last"
        )

    def _matches(self, block: Block, data: bytes) -> bool:
        shard, number = block
        expected = self.manifest.shards[shard].block_crc32[8 * number : 8 * number + 8]
        size = min(BLOCK_BYTES, self._sizes[shard] - number * BLOCK_BYTES)
        return len(data) == size and block_checksums(data) == expected
