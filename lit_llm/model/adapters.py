"""Several low-rank adapters over one base in memory, each row of a pass with one of them or with none.

A layer computes its product for all rows at once, and then for each adapter that rows have its addition to these rows:
`W x + scale * B A x`. Rows without an adapter are exactly what the base computes. The base may be quantized.

Source: Hu et al. 2021, section 4.2 (adapters are exchanged over one base); Chen et al. 2023 (Punica) and Sheng et al.
2023 (S-LoRA), who batch rows of different adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import LoraConfig, UserError
from lit_llm.model.arithmetic import at_least_float32
from lit_llm.model.decoder import Decoder
from lit_llm.model.lora import is_adapter, row_lengths
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
        addition = F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)
        if self.stretch is None:
            return base + addition.to(base.dtype)
        product = base if bias is None else base - bias
        return (base + (self.stretch - 1) * product + self.stretch * addition).to(base.dtype)


class AdaptedLinear(nn.Module):
    """A linear layer, quantized or not, with the additions of several adapters.

    Args:
        base: the layer itself, which stays as it is.
        rows: says which adapter each row of a pass has.
    """

    def __init__(self, base: nn.Linear | QuantizedLinear, rows: RowAdapters) -> None:
        super().__init__()
        self.base = base
        self.additions: dict[str, Addition] = {}
        self._rows = rows
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [b, t, in] by the weight, with the addition of each row's adapter: [b, t, out]."""
        y: Tensor = self.base(x)
        for name, rows in self._rows.groups:
            addition = self.additions.get(name)
            if addition is None:
                continue
            if rows is None:
                y = addition.to(x, y, self.base.bias)
            else:
                y = y.index_copy(0, rows, addition.to(x[rows], y[rows], self.base.bias))
        return y


class RowAdapters:
    """The adapters of a decoder by name, and which of them each row of the next pass has.

    Args:
        model: a whole decoder in evaluation mode, quantized or not; its projections are wrapped in place. It can be
            neither trained, saved nor compiled from then on.
        adapters: of each name the options and the tensors, as `lit_llm.interop.read_adapter` gives them.
    """

    def __init__(self, model: Decoder, adapters: Mapping[str, tuple[LoraConfig, Mapping[str, Tensor]]]) -> None:
        self.names = tuple(adapters)
        self._device = model.embedding.weight.device
        self.groups: list[tuple[str, Tensor | None]] = []
        """Each adapter that rows of this pass have, and these rows; None: all rows have it."""
        self.nbytes = 0
        """Memory of the additions, in bytes."""
        for name, (config, tensors) in adapters.items():
            for module in {key.rpartition(".")[0] for key in tensors if is_adapter(key)}:
                layer = self._layer(model, module)
                layer.additions[name] = _addition(layer.base, module, config, tensors)
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
    layer: nn.Linear | QuantizedLinear, module: str, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> Addition:
    device = layer.weight.device
    a, b = (at_least_float32(tensors[f"{module}.{part}"].to(device)) for part in ("lora_A", "lora_B"))
    magnitude = tensors.get(f"{module}.lora_magnitude")
    stretch = None
    if magnitude is not None:
        weight = layer.dequantized() if isinstance(layer, QuantizedLinear) else layer.weight.detach()
        stretch = at_least_float32(magnitude.to(device)) / row_lengths(weight, a, b, config.scale)
    return Addition(a.clone(), config.scale * b, stretch)
