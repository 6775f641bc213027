"""The weights of a GGUF file under the names of transformers, one tensor at a time, as plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_llm.config.extras import optional_module
from lit_llm.interop.families import Stored
from lit_llm.interop.gguf_reading.configuration import family_of_file
from lit_llm.interop.gguf_reading.container import GgufFile, StoredTensor
from lit_llm.interop.gguf_reading.names import FUSED, NAMES, NORMS_WITH_ONE, ROPE_FACTORS, ROTATED_PAIRS

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NUMBERS_AT_ONCE = 2**21
"""How many numbers are dequantized at once: the library makes several copies of them on the way."""


class GgufWeights:
    """The tensors of a GGUF file by the names that transformers has for them; only what is read takes memory.

    All tensors have one type. It is that of the matrices where they are all float16, or all bfloat16, and everything
    else in the file is exact in it; and float32 otherwise, as for quantized weights, which are dequantized.

    Args:
        file: the file.
        head_dim: the width of a head.
        device: where tensors are read to. On the CPU plain ones stay mapped to the file.

    Raises:
        UserError: the file is of another architecture than those that are read.
    """

    about = "metadata"

    def __init__(self, file: GgufFile, head_dim: int, device: torch.device | str = "cpu") -> None:
        self.folder: Path = file.path
        self._file = file
        self._width = head_dim
        self._device = device
        self._architecture: str = file.values["general.architecture"]
        self._stored = _stored_modules(file)
        self._tensors = {self._name(name): tensor for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
        self._dtype: torch.dtype | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor, as transformers stores it."""
        shape = self._tensors[name].shape
        return shape[::-1] if self._is_transposed(name) else shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of all tensors."""
        if self._dtype is None:
            self._dtype = self._common_dtype()
        return self._dtype

    def read(self, name: str, columns: slice | None = None) -> Tensor:
        """Read a tensor, or some columns of its last dimension.

        Raises:
            UserError: it is quantized, and the library that dequantizes is not installed.
        """
        tensor = self._number_tensor(name).to(self.dtype)
        if self._is_transposed(name):
            tensor = tensor.t()
        return (tensor if columns is None else tensor[..., columns]).to(self._device)

    def _name(self, name: str) -> str:
        """Give the name that transformers has for a tensor; one that the architecture has not keeps its own."""
        module, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
        stored = self._stored.get(f"blk.{{}}.{block[2]}" if block else module)
        if stored is None:
            return name
        return f"{stored.name.format(block[1] if block else '')}.{kind}"

    def _is_transposed(self, name: str) -> bool:
        module, _, kind = self._tensors[name].name.rpartition(".")
        stored = self._stored.get(re.sub(r"^blk\.\d+\.", "blk.{}.", module))
        return stored is not None and stored.transposed and kind == "weight"

    def _number_tensor(self, name: str) -> Tensor:
        """Read a tensor as numbers of its own type, in the order of rows and with the meaning that transformers has."""
        stored = self._tensors[name]
        tensor = dequantized(self._file, stored)
        if self._architecture in NORMS_WITH_ONE and stored.name.endswith("norm.weight"):
            return tensor.float() - 1.0
        if self._architecture in ROTATED_PAIRS and re.match(r"blk\.\d+\.attn_[qk]\.", stored.name):
            if tensor.size(0) % self._width:
                return tensor  # of another shape than the metadata say, which is refused by who knows them
            pairs = tensor.reshape(-1, self._width // 2, 2, *tensor.shape[1:])
            return pairs.transpose(1, 2).reshape(tensor.shape)
        return tensor

    def _common_dtype(self) -> torch.dtype:
        kinds = {tensor.type.name for tensor in self._tensors.values()}
        matrices = {kind for kind in kinds if kind != "F32"}
        wanted = PLAIN.get(next(iter(matrices), "F32")) if len(matrices) < 2 else None
        if wanted is None or wanted == torch.float32:
            return torch.float32
        for name, tensor in self._tensors.items():
            if tensor.type.name == "F32":
                numbers = self._number_tensor(name)
                if not torch.equal(numbers.to(wanted).float(), numbers):
                    return torch.float32
        return wanted


def dequantized(file: GgufFile, tensor: StoredTensor) -> Tensor:
    """Read a tensor as numbers: of its own type where that is plain, else as float32.

    Raises:
        UserError: it is quantized, and the library that dequantizes is not installed.
    """
    stored = file.bytes_of(tensor)
    if tensor.type.name in PLAIN:
        return torch.from_numpy(stored).view(PLAIN[tensor.type.name]).view(tensor.shape)
    gguf = optional_module("gguf", f"reading the type {tensor.type.name} of {file.path}", "gguf")
    kind = gguf.GGMLQuantizationType[tensor.type.name]
    numbers = torch.empty(math.prod(tensor.shape))
    step = _NUMBERS_AT_ONCE // tensor.type.numbers * tensor.type.size
    filled = 0
    with np.errstate(all="ignore"):  # scales that are NaN or infinite are for who reads the weights to refuse
        for begin in range(0, len(stored), step):
            part = gguf.dequantize(stored[None, begin : begin + step], kind)  # one long row, which it does at once
            numbers[filled : filled + part.size] = torch.from_numpy(part[0])
            filled += part.size
    return numbers.view(tensor.shape)


def _stored_modules(file: GgufFile) -> dict[str, Stored]:
    """Look up, for llama.cpp's name of each module, the place in a file of transformers."""
    weights = family_of_file(file).weights
    return {FUSED if stored.part is not None else NAMES[ours]: stored for ours, stored in weights.items()}
