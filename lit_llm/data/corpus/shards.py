"""Shards: token arrays on disk as plain .npy files beside a manifest, read where a token is asked for.

A folder holds one split: shard_00000.npy, shard_00001.npy, ... (1-D; uint16 where the vocabulary fits, else uint32) and
manifest.json. `numpy.load` reads a shard and `sha256sum` checks one; no other tool is needed.
"""

from __future__ import annotations

import hashlib
import io
import os
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lit_llm.config import UserError
from lit_llm.data.corpus.manifest import BLOCK_BYTES, Manifest, ShardInfo, cannot_spell

if TYPE_CHECKING:
    from lit_llm.data.corpus.remote_folder import RemoteFolder
    from lit_llm.tokenizer import Tokenizer

HEADER_BYTES = 128  # numpy pads the header of any 1-D array to this, so that it can be written last, in place
_MAX_OPEN = 512  # shards held open at once, below the usual limit of 1024 open files
_TOKENS_AT_ONCE = 1 << 24


def token_dtype(vocab_size: int) -> str:
    """The smallest unsigned type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def file_sha256(path: Path, on_block: Callable[[bytes, bool], None] | None = None) -> str:
    """The sha256 of a file in hexadecimal, as sha256sum prints it.

    Args:
        path: the file.
        on_block: called with each 4 MiB of it, and whether they are the first.
    """
    digest, first = hashlib.sha256(), True
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if on_block is not None:
                on_block(block, first)
            first = False
    return digest.hexdigest()


def block_checksums(data: bytes) -> str:
    """The CRC-32 of each block of `BLOCK_BYTES` of a shard's file, or of a part of it that begins with a block."""
    starts = range(0, len(data), BLOCK_BYTES)
    return "".join(f"{zlib.crc32(memoryview(data)[start : start + BLOCK_BYTES]):08x}" for start in starts)


class ShardWriter:
    """Writes one shard, token by token, in bounded memory. The file gets its name only when it is complete.

    Args:
        path: the .npy file to make; its folder exists.
        dtype: "uint16" or "uint32".

    Raises:
        UserError: the file cannot be written, as on a full disk; nothing of this shard is left behind and finished
            shards are untouched. Any method may raise it.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.tokens = self.documents = self.bytes = 0
        self._temporary = path.with_name(path.name + ".tmp")
        with self._cleaning_up():
            self._file: IO[bytes] = self._temporary.open("wb")
            self._file.write(bytes(HEADER_BYTES))

    def append(self, tokens: np.ndarray, documents: int, num_bytes: int) -> None:
        """Adds tokens.

        Args:
            tokens: 1-D integer array.
            documents: how many documents end in it.
            num_bytes: UTF-8 bytes of the text that it spells.
        """
        with self._cleaning_up():
            self._file.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self.tokens += len(tokens)
        self.documents += documents
        self.bytes += num_bytes

    def close(self) -> ShardInfo:
        """Completes the file, gives it its name and returns its line of the manifest."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self.dtype.str, "fortran_order": False, "shape": (self.tokens,)}
        )
        if header.tell() != HEADER_BYTES:
            raise RuntimeError(f"numpy wrote a header of {header.tell()} bytes, not {HEADER_BYTES}")
        with self._cleaning_up():
            self._file.seek(0)
            self._file.write(header.getvalue())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            checksums: list[str] = []
            sha256 = file_sha256(self._temporary, lambda block, _: checksums.append(block_checksums(block)))
            self._temporary.replace(self.path)
        return ShardInfo(self.path.name, self.tokens, self.documents, self.bytes, sha256, "".join(checksums))

    def discard(self) -> None:
        """Deletes the unfinished file."""
        if hasattr(self, "_file"):
            with suppress(OSError):  # closing writes what is buffered, which fails again on a full disk
                self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _cleaning_up(self) -> AbstractContextManager[None]:
        return discarding(self.path, self.discard)


@contextmanager
def discarding(path: Path, discard: Callable[[], None]) -> Iterator[None]:
    """A block that writes a part of a shard; where that fails, what is there of it is discarded.

    Raises:
        UserError: it cannot be written, mostly because the disk is full.
    """
    try:
        yield
    except OSError as error:
        discard()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; finished shards are intact, and the same command goes on "
            "from them"
        ) from error


class ShardedTokens:
    """The tokens of one split as one long array that is never read whole.

    Args:
        folder: a folder with manifest.json and its shards.

    Raises:
        UserError: the folder or a file is missing, or a shard is not of the size and type that the manifest says.
    """

    def __init__(self, folder: Path | str) -> None:
        self._begin(Path(folder), Manifest.load(folder))
        for shard in self.manifest.shards:
            self._check_size(shard)

    def _begin(self, folder: Path | RemoteFolder, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._ends = np.cumsum([shard.tokens for shard in self.manifest.shards], dtype=np.int64).tolist()
        self._starts = [0, *self._ends[:-1]]
        self._open: dict[int, int] = {}  # file descriptors by shard
        self._closing: list[weakref.finalize] = []

    def __len__(self) -> int:
        """Tokens in the split."""
        return self._ends[-1] if self._ends else 0

    @property
    def files(self) -> list[Path]:
        """The shard files, in order."""
        return [self.folder / shard.file for shard in self.manifest.shards]

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length), across shards where need be, in the type of the shards.

        Raises:
            IndexError: the range is not inside the split.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)} in {self.folder}")
        out = np.empty(length, dtype=self.manifest.dtype)
        if length:
            self._read_into(start, out)
        self._require_known(out)
        return out

    def read_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Several ranges of one length; one that reaches past the end goes on from the beginning.

        Args:
            starts: first token of each, [n].
            length: tokens in each, at most those of the split.

        Returns:
            [n, length], in the type of the shards.

        Raises:
            IndexError: a range does not begin inside the split, or is longer.
        """
        starts, size = np.asarray(starts, dtype=np.int64), len(self)
        if len(starts) and (starts.min() < 0 or starts.max() >= size or length > size):
            raise IndexError(f"a window of {length} tokens is not among the {size} tokens of {self.folder}")
        out = np.empty((len(starts), length), dtype=self.manifest.dtype)
        for row, start in zip(out, starts.tolist(), strict=True):
            if start + length <= size:
                self._read_into(start, row)
            else:
                self._read_into(start, row[: size - start])
                self._read_into(0, row[size - start :])
        self._require_known(out)
        return out

    def locate(self, position: int) -> tuple[Path, int]:
        """The shard that holds token `position`, and the token's place in it.

        Raises:
            IndexError: there is no such token.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"token {position} of {len(self)} in {self.folder}")
        shard = bisect_right(self._ends, position)
        return self.files[shard], position - self._starts[shard]

    def shard_at(self, position: int) -> tuple[int, int]:
        """The number of the shard that holds token `position`, and the token's place in it."""
        shard = bisect_right(self._ends, position)
        return shard, position - self._starts[shard]

    def first_token(self, shard: int) -> int:
        """The place in the split of a shard's first token."""
        return self._starts[shard]

    def count(self, token: int, start: int, length: int) -> int:
        """How often `token` stands among tokens [start, start + length)."""
        return sum(int(np.count_nonzero(self.read(*piece) == token)) for piece in _in_pieces(start, start + length))

    @property
    def bytes_to_verify(self) -> int:
        """Size of what `verify` reads."""
        return sum(path.stat().st_size for path in self.files)

    def verify(self, on_bytes: Any = None) -> None:
        """Checks the sha256 of every shard, and that each of its tokens is in the vocabulary.

        Args:
            on_bytes: called with the size of each file once it is checked.

        Raises:
            UserError: a shard differs from the manifest; the message names it.
        """
        for shard in self.manifest.shards:
            path, largest = self.folder / shard.file, -1

            def see(block: bytes, first: bool) -> None:
                nonlocal largest
                tokens = np.frombuffer(block, self.manifest.dtype, offset=HEADER_BYTES if first else 0)
                largest = max(largest, int(tokens.max(initial=0)))

            if file_sha256(path, see) != shard.sha256:
                raise UserError(
                    f"{path} does not match the sha256 in its manifest, so it is damaged or was changed; copy it again "
                    "or prepare the data again with --overwrite true"
                )
            self._require_token(largest, path)
            if on_bytes is not None:
                on_bytes(path.stat().st_size)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises UserError unless `tokenizer` is the one that the shards were encoded with, as the manifest says it."""
        if tokenizer.digest != self.manifest.tokenizer_digest:
            raise UserError(
                f"{self.folder} was encoded with another tokenizer (digest {self.manifest.tokenizer_digest[:12]}) than "
                f"the one given (digest {tokenizer.digest[:12]}); use {self.folder.parent / 'tokenizer'} or prepare "
                "the data again"
            )
        wrong = cannot_spell(self.manifest, int(tokenizer.byte_lengths().max(initial=1)))
        for name in ("vocab_size", "eot_id", "pad_id"):
            ours, theirs = getattr(tokenizer, name), getattr(self.manifest, name)
            if ours != theirs:
                wrong = f"says {name} {theirs}, and the tokenizer with the same digest has {ours}"
        if wrong:
            raise UserError(
                f"{self.folder / 'manifest.json'} {wrong}; copy it again or prepare the data again with "
                "--overwrite true"
            )

    def __getstate__(self) -> dict[str, Any]:
        # An open file is of this process alone; a loader worker opens its own.
        return {**self.__dict__, "_open": {}, "_closing": []}

    def _read_into(self, start: int, out: np.ndarray) -> None:
        """Fills `out` [length, at least 1], of the type of the shards, with the tokens from `start` on."""
        shard = bisect_right(self._ends, start)
        while start + len(out) > self._ends[shard]:
            count = self._ends[shard] - start
            self._read_shard(shard, start, out[:count])
            start, out, shard = start + count, out[count:], shard + 1
        self._read_shard(shard, start, out)

    def _read_shard(self, shard: int, start: int, out: np.ndarray) -> None:
        # By a call and not a map: a map's pages count as memory of this process, and giving them back so that it does
        # not grow, and then touching them again, takes several times as long as the call.
        if shard not in self._open:
            self._open_shard(shard)
        at = HEADER_BYTES + (start - self._starts[shard]) * out.itemsize
        read = os.preadv(self._open[shard], (out,), at)
        if read < out.nbytes:  # the file ends here, or the call was cut short
            if read < out.itemsize:
                self._check_size(self.manifest.shards[shard])
            whole = read // out.itemsize
            self._read_shard(shard, start + whole, out[whole:])

    def _require_known(self, tokens: np.ndarray) -> None:
        """Refuses tokens that no vocabulary has, whatever becomes of them: an embedding on a GPU would end the process.

        Raises:
            UserError: there is one; the message names a shard that holds it.
        """
        largest = int(tokens.max(initial=0))
        if largest < self.manifest.vocab_size:
            return
        for shard, file in enumerate(self.files):
            for start, length in _in_pieces(self._starts[shard], self._ends[shard]):
                piece = np.empty(length, dtype=self.manifest.dtype)
                self._read_into(start, piece)
                self._require_token(int(piece.max()), file)

    def _require_token(self, largest: int, path: Path) -> None:
        if largest >= self.manifest.vocab_size:
            raise UserError(
                f"{path} holds token {largest}, and its manifest says a vocabulary of {self.manifest.vocab_size}; copy "
                "the folder again or prepare the data again with --overwrite true"
            )

    def _open_shard(self, shard: int) -> None:
        if len(self._open) >= _MAX_OPEN:
            for close in self._closing:
                close()
            self._open, self._closing = {}, []
        self._open[shard] = os.open(self.folder / self.manifest.shards[shard].file, os.O_RDONLY)
        self._closing.append(weakref.finalize(self, os.close, self._open[shard]))

    def _check_size(self, shard: ShardInfo) -> None:
        path = self.folder / shard.file
        if not path.is_file():
            raise UserError(f"{path} is missing; copy it again or prepare the data again with --overwrite true")
        expected = HEADER_BYTES + shard.tokens * np.dtype(self.manifest.dtype).itemsize
        size = path.stat().st_size
        if size != expected:
            raise UserError(
                f"{path} has {size} bytes and its manifest says {expected}, so it is truncated or not the same shard; "
                "copy it again or prepare the data again with --overwrite true"
            )


def _in_pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Tokens [start, end) in parts that fit memory: the first token and the length of each."""
    for first in range(start, end, _TOKENS_AT_ONCE):
        yield first, min(_TOKENS_AT_ONCE, end - first)
