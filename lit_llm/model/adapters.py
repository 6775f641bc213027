"""Several low-rank adapters over one base in memory, each row of a pass with one of them or with none.

A layer computes its product for all rows at once, and then for each adapter that rows have its addition to these rows:
`W x + scale * B A x`. Rows without an adapter are exactly what the base computes. The base may be quantized. For passes
over one token of each row, which are compiled once, the tensors of all adapters lie in one, of which a row reads those
of its own by their number.

Source: Hu et al. 2021, section 4.2 (adapters are exchanged over one base); Chen et al. 2023 (Punica) and Sheng et al.
2023 (S-LoRA), who batch rows of different adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import LoraConfig, UserError
from lit_llm.model.arithmetic import at_least_float32
from lit_llm.model.decoder import Decoder
from lit_llm.model.lora import is_adapter, row_lengths
from lit_llm.model.packed_linear import PackedLinear
from lit_llm.model.quantization import QuantizedLinear


@dataclass(frozen=True)
class Addition:
    """What one adapter adds to the product of one layer, in float32 at least."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank], times the adapter's scale."""
    stretch: Tensor | None = None
    """DoRA's learned length of each row of the sum, divided by its length [out]."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in (self.a, self.b, self.stretch) if tensor is not None)

    def to(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """Add to the product `base` [..., out] of `x` [..., in] with the weight; the type is that of `base`."""
        return _joined(base, bias, F.linear(F.linear(x.to(self.a.dtype), self.a), self.b), self.stretch)


def _joined(base: Tensor, bias: Tensor | None, addition: Tensor, stretch: Tensor | None) -> Tensor:
    if stretch is None:
        return base + addition.to(base.dtype)
    product = base if bias is None else base - bias
    return (base + (stretch - 1) * product + stretch * addition).to(base.dtype)


class AdaptedLinear(nn.Module):
    """A linear layer, quantized, packed or neither, with the additions of several adapters.

    Args:
        base: the layer itself, which stays as it is.
        rows: says which adapter each row of a pass has.
    """

    def __init__(self, base: nn.Linear | QuantizedLinear | PackedLinear, rows: RowAdapters) -> None:
        super().__init__()
        self.base = base
        self.additions: dict[str, Addition] = {}
        self.rows = rows
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [b, t, in] by the weight, with the addition of each row's adapter: [b, t, out]."""
        y: Tensor = self.base(x)
        for name, rows in self.rows.groups:
            addition = self.additions.get(name)
            if addition is None:
                continue
            if rows is None:
                y = addition.to(x, y, self.base.bias)
            else:
                y = y.index_copy(0, rows, addition.to(x[rows], y[rows], self.base.bias))
        return y

    def stacked(self) -> StackedLinear:
        """Make a form of it to be compiled, whose tensors hold those of the additions from then on."""
        stacked = StackedLinear(self.base, self.additions, self.rows)
        for name, addition in self.additions.items():
            place, rank = 1 + self.rows.names.index(name), len(addition.a)
            self.additions[name] = replace(addition, a=stacked.a[place, :rank], b=stacked.b[place, :rank].t())
        return stacked


class StackedLinear(nn.Module):
    """`AdaptedLinear` for one token of each row, to be compiled: `RowAdapters.numbers` says which adapter each has.

    There is room for as many adapters as the next power of two, so that one more seldom needs another compilation.

    Args:
        base: the layer itself, or a form of it for few rows.
        additions: of adapters by name.
        rows: knows the number of each name, which is its place in the tensors; place 0 adds nothing.
    """

    def __init__(self, base: nn.Module, additions: Mapping[str, Addition], rows: RowAdapters) -> None:
        super().__init__()
        self.base: Any = base
        self.rows = rows
        some = next(iter(additions.values()))
        places, rank = 1 << len(rows.names).bit_length(), max(len(each.a) for each in additions.values())
        self.a: Tensor
        self.b: Tensor
        self.stretch: Tensor | None
        self.register_buffer("a", some.a.new_zeros(places, rank, some.a.size(1)))
        self.register_buffer("b", some.b.new_zeros(places, rank, some.b.size(0)))
        stretched = any(each.stretch is not None for each in additions.values())
        self.register_buffer("stretch", some.b.new_ones(places, len(some.b)) if stretched else None)
        for name, addition in additions.items():
            place, own = 1 + rows.names.index(name), len(addition.a)
            self.a[place, :own], self.b[place, :own] = addition.a, addition.b.t()
            if self.stretch is not None and addition.stretch is not None:
                self.stretch[place] = addition.stretch

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [b, 1, in] by the weight, with the addition of each row's adapter: [b, 1, out]."""
        numbers = self.rows.numbers
        y: Tensor = self.base(x)
        # in memory: otherwise the compiler computes what makes the inputs again for every line of `a`
        row = x.to(self.a.dtype).as_strided(x.shape, (x.size(-1), x.size(-1), 1))
        inner = (self.a[numbers] * row).sum(-1)  # [b, rank]
        addition = (self.b[numbers] * inner.unsqueeze(-1)).sum(1, keepdim=True)
        stretch = None if self.stretch is None else self.stretch[numbers].unsqueeze(1)
        return _joined(y, self.base.bias, addition, stretch)


class RowAdapters:
    """The adapters of a decoder by name, and which of them each row of the next pass has.

    Args:
        model: a whole decoder in evaluation mode, quantized, packed or neither; its projections are wrapped in place.
            It can be neither trained nor saved from then on.
        adapters: of each name the options and the tensors, as `lit_llm.interop.read_adapter` gives them.
    """

    def __init__(self, model: Decoder, adapters: Mapping[str, tuple[LoraConfig, Mapping[str, Tensor]]]) -> None:
        self.names = tuple(adapters)
        self._device = model.embedding.weight.device
        self.groups: list[tuple[str, Tensor | None]] = []
        """Each adapter that rows of this pass have, and these rows; None: all rows have it."""
        self.numbers: Tensor | None = None
        """For a compiled pass the number of each row's adapter [b], from 1 on in the order of `names`; 0: none."""
        self.nbytes = 0
        """Memory of the additions, in bytes."""
        for name, (config, tensors) in adapters.items():
            for module in {key.rpartition(".")[0] for key in tensors if is_adapter(key)}:
                layer = self._layer(model, module)
                layer.additions[name] = _addition(layer.base, module, config, tensors, self._device)
                self.nbytes += layer.additions[name].nbytes

    def check(self, name: str | None) -> None:
        """Refuse the name of an adapter that is not here.

        Raises:
            UserError: names those that are.
        """
        if name is not None and name not in self.names:
            raise UserError(f"there is no adapter {name!r} here; there are: {', '.join(self.names) or 'none'}")

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Give each row of the passes inside a block its adapter, or None for the base alone."""
        found = dict.fromkeys(name for name in names if name is not None)
        everywhere = len(found) == 1 and None not in names
        self.groups = [(name, None if everywhere else self._places(name, names)) for name in found]
        try:
            yield
        finally:
            self.groups = []

    def numbers_of(self, names: Sequence[str | None]) -> list[int]:
        """Return the number of each adapter, as `numbers` has them."""
        return [0 if name is None else 1 + self.names.index(name) for name in names]

    def _places(self, name: str, names: Sequence[str | None]) -> Tensor:
        return torch.tensor([row for row, own in enumerate(names) if own == name], device=self._device)

    def _layer(self, model: Decoder, module: str) -> AdaptedLinear:
        """Find a layer by its name, wrapped."""
        parent, _, name = module.rpartition(".")
        layer = model.get_submodule(module)
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer, self)  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), name, layer)
        return layer


@torch.no_grad()
def _addition(
    layer: nn.Linear | QuantizedLinear | PackedLinear,
    module: str,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> Addition:
    a, b = (at_least_float32(tensors[f"{module}.{part}"].to(device)) for part in ("lora_A", "lora_B"))
    magnitude = tensors.get(f"{module}.lora_magnitude")
    stretch = None
    if magnitude is not None:
        stretch = at_least_float32(magnitude.to(device)) / row_lengths(_weight_of(layer), a, b, config.scale)
    return Addition(a.clone(), config.scale * b, stretch)


def _weight_of(layer: nn.Linear | QuantizedLinear | PackedLinear) -> Tensor:
    if isinstance(layer, QuantizedLinear):
        return layer.dequantized()
    return layer.unpacked() if isinstance(layer, PackedLinear) else layer.weight.detach()
