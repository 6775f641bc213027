"""The container: what a GGUF file says of itself, and where in it each tensor lies.

Nothing that the file says is believed before it has been compared with the file's own size, so that a damaged or
hostile one is refused at once and in little memory.

Source: the specification of GGUF, versions 2 and 3 (ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config import UserError
from lit_llm.config.serialization import shown

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)
MOST_KEYS = 4_096
MOST_TENSORS = 2**16
MOST_DIMENSIONS = 4
MOST_ELEMENTS = 2**21
"""The most entries of all lists together; the largest published vocabulary has some 900,000 tokens and merges."""
MOST_HEADER_BYTES = 64 * 2**20
"""The largest size of everything before the tensors; Gemma's, of 262,144 tokens, has some 20 MiB."""

_NUMBERS: dict[int, str] = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""The numpy type of each kind of number in the metadata."""
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class BlockType:
    """How the numbers of a tensor are stored."""

    name: str
    """Its name in ggml."""
    numbers: int
    """How many numbers share a block."""
    size: int
    """Bytes of a block."""


TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
}
"""The types that are read, by their number in the file."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file."""

    name: str
    shape: tuple[int, ...]
    """The last dimension is the one whose numbers lie side by side."""
    type: BlockType
    begin: int
    """Its first byte in the file."""

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) // self.type.numbers * self.type.size


def is_gguf(path: Path) -> bool:
    """Whether a model is given as one file, which can only be GGUF, and not as a folder."""
    return path.is_file() or (path.suffix == SUFFIX and not path.is_dir())


def open_gguf(path: Path) -> GgufFile:
    """Read what a file says of itself, once for as long as the file stays the same.

    Raises:
        UserError: as `GgufFile`.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return _opened(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=2)
def _opened(path: Path, changed: int, size: int) -> GgufFile:
    return GgufFile(path)


def gguf_license(path: Path) -> str | None:
    """Read the license that a file names; None where it names none, or is not there any more."""
    try:
        name = open_gguf(path).values.get("general.license")
    except UserError:
        return None
    return name if isinstance(name, str) and len(name) <= 100 and name.isprintable() else None


class GgufFile:
    """A GGUF file, mapped into memory.

    Attributes:
        path: of the file.
        values: the metadata.
        tensors: where each tensor lies, by its name.

    Raises:
        UserError: there is no such file, it is no GGUF file of a version that is read, it is damaged or cut off, a
            tensor is of a type that is not read, or it is one part of several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c").view(np.ndarray) if size else np.empty(0, np.uint8)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be read: {reason}") from error
        reader = _Header(path, self._bytes)
        self.values = reader.metadata()
        parts = self.values.get("split.count", 1)
        if parts != 1:
            raise UserError(
                f"{path} is one of {shown(parts)} parts of a model; join them with llama.cpp's llama-gguf-split --merge"
            )
        self.tensors = reader.tensors(self.values.get("general.alignment", 32))

    def bytes_of(self, tensor: StoredTensor) -> np.ndarray:
        """Give the bytes of a tensor, mapped to the file: uint8 [size]; writing to them does not change the file."""
        return self._bytes[tensor.begin : tensor.begin + tensor.size]


class _Header:
    """Reads what stands before the tensors, in order."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self._path = path
        self._size = len(data)
        self._data = memoryview(data[:MOST_HEADER_BYTES])
        self._place = 0
        self._elements = 0
        if bytes(self._data[:4]) != MAGIC:
            raise UserError(f"{path} is no GGUF file: it begins with {shown(bytes(self._data[:4]))}")
        self._take(4)
        version = self._number(4)
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "is big-endian, which is not read" if swapped else f"is of version {version}; 2 and 3 are read"
            raise UserError(f"{path} {what}")
        self._num_tensors = self._count(MOST_TENSORS, "tensors", 24)
        self._num_keys = self._count(MOST_KEYS, "keys", 13)

    def metadata(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(self._num_keys):
            key = self._text("a key")
            if key in values:
                raise UserError(f"{self._path} has the key {shown(key)} twice")
            values[key] = self._value(self._number(4), key)
        return values

    def tensors(self, alignment: Any) -> dict[str, StoredTensor]:
        if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise UserError(f"{self._path}: general.alignment is {shown(alignment)}; it must be a power of two")
        entries = list(self._entries(alignment))
        start = -(-self._place // alignment) * alignment
        found: dict[str, StoredTensor] = {}
        end = start
        for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
            tensor = StoredTensor(name, shape, kind, start + offset)
            if name in found:
                raise UserError(f"{self._path} holds the tensor {shown(name)} twice")
            if tensor.begin < end:
                raise UserError(f"{self._path} is damaged: the tensor {shown(name)} lies over another one")
            end = tensor.begin + tensor.size
            if end > self._size:
                raise UserError(
                    f"{self._path} is cut off or damaged: the tensor {shown(name)} ends at byte {end:,} and the file "
                    f"at {self._size:,}; download it again"
                )
            found[name] = tensor
        return found

    def _entries(self, alignment: int) -> Iterator[tuple[str, tuple[int, ...], BlockType, int]]:
        for _ in range(self._num_tensors):
            name = self._text("a tensor's name")
            dimensions = self._number(4)
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                raise UserError(f"{self._path}: the tensor {shown(name)} has {dimensions:,} dimensions")
            shape = tuple(self._number(8) for _ in range(dimensions))[::-1]
            kind = TYPES.get(number := self._number(4))
            if kind is None:
                known = ", ".join(each.name for each in TYPES.values())
                raise UserError(f"{self._path}: {shown(name)} is of type {_name_of(number)}; what is read is {known}")
            if 0 in shape or shape[-1] % kind.numbers:
                raise UserError(
                    f"{self._path}: {shown(name)} has the shape {shown(list(shape))}, which {kind.name} cannot hold"
                )
            offset = self._number(8)
            if offset % alignment:
                raise UserError(
                    f"{self._path} is damaged: {shown(name)} begins at {offset}, not a multiple of {alignment}"
                )
            yield name, shape, kind, offset

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(key)
        if kind == _ARRAY:
            return self._array(key)
        return self._numbers(kind, 1, key)[0]

    def _array(self, key: str) -> list[Any]:
        kind = self._number(4)
        if kind == _ARRAY:
            raise UserError(f"{self._path}: {shown(key)} is a list of lists, which is not read")
        smallest = 8 if kind == _STRING else np.dtype(_NUMBERS.get(kind, "u1")).itemsize
        count = self._count(MOST_ELEMENTS - self._elements, f"entries of {shown(key)}", smallest)
        self._elements += count
        if kind == _STRING:
            return self._texts(count, key)
        return self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> list[Any]:
        if kind not in _NUMBERS:
            raise UserError(f"{self._path} is damaged: {shown(key)} is of a kind {kind}, which there is not")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()

    def _text(self, what: str) -> str:
        return self._texts(1, what)[0]

    def _texts(self, count: int, what: str) -> list[str]:
        data, place, texts = self._data, self._place, []
        try:
            for _ in range(count):  # vocabularies are long: nothing else is done for each of their tokens
                begin = place + 8
                place = begin + _LENGTH.unpack_from(data, place)[0]
                texts.append(str(data[begin:place], "utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{self._path} is damaged: {shown(what)} is no UTF-8 text") from None
        except struct.error:
            place = begin
        self._take(place - self._place)
        return texts

    def _count(self, most: int, what: str, smallest: int) -> int:
        """Read a number of things, each of which takes at least `smallest` bytes of the file."""
        count = self._number(8)
        room = (self._size - self._place) // smallest
        if count > min(most, room):
            why = f"at most {most:,} are read" if room > most else "the file is cut off or damaged"
            raise UserError(f"{self._path} says that it has {count:,} {what}; {why}")
        return count

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _take(self, size: int) -> memoryview:
        """Give the next bytes."""
        begin, self._place = self._place, self._place + size
        if self._place > len(self._data):
            if self._place > self._size:
                raise UserError(f"{self._path} is cut off or damaged: it ends within its header; download it again")
            raise UserError(f"{self._path} has a header of more than {MOST_HEADER_BYTES:,} bytes, which is not read")
        return self._data[begin : self._place]


def _name_of(number: int) -> str:
    """Give the name of a type that is not read, where the library knows it."""
    try:
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(number).name
    except (ImportError, ValueError):
        return str(number)
