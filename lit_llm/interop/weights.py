"""Tensors by name, as what reads a model asks for them, and those of a model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lit_llm.config import UserError


class Weights(Protocol):
    """Tensors by name, wherever they are read from."""

    @property
    def folder(self) -> Path | str:
        """What they are of, for errors."""

    @property
    def about(self) -> str:
        """Where it is said what shapes they have, for errors."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor, without reading it."""

    def read(self, name: str, columns: slice | None = None) -> Tensor:
        """Read a tensor, or some columns of its last dimension."""


class WeightsInMemory:
    """Tensors by name, with what `WeightFiles` has to read them.

    Args:
        tensors: a state_dict.
        what: names them in errors.
    """

    about = "config.json"

    def __init__(self, tensors: Mapping[str, Tensor], what: str) -> None:
        self.folder = what
        self._tensors = tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            UserError: its numbers are of another kind than those of weights.
        """
        tensor = self._tensors[name]
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise UserError(f"{self.folder}: {name} is stored as {tensor.dtype}; quantized weights are not read")
        return tuple(tensor.shape)

    def read(self, name: str, columns: slice | None = None) -> Tensor:
        """A copy of a tensor, or of some of its last dimension."""
        tensor = self._tensors[name].detach()
        return (tensor if columns is None else tensor[..., columns]).clone()
