"""Rounding a model to 4 bits by what its layers read of some texts, so that its answers change less.

Source: Frantar et al. 2022 (GPTQ): block after block, each with the inputs that the blocks before it, rounded already,
give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.config import UserError
from lit_llm.config.progress import track
from lit_llm.model.decoder import Decoder
from lit_llm.model.quantization import QuantizedLinear, layers_to_quantize


class _Grams:
    """The sum of x^T x over the inputs x of some linear layers; layers that read the same tensor share one sum."""

    def __init__(self) -> None:
        self.of: dict[nn.Module, Tensor] = {}
        self._last: tuple[Tensor, nn.Module] | None = None

    def add(self, linear: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Take the input of a layer, as a hook before its forward."""
        x: Tensor = arguments[0]
        if self._last is not None and self._last[0] is x:
            self.of[linear] = self.of[self._last[1]]
            return
        rows = x.reshape(-1, x.size(-1)).float()
        gram = rows.T @ rows
        if linear in self.of:
            self.of[linear] += gram
        else:
            self.of[linear] = gram
        self._last = (x, linear)


@torch.no_grad()
def quantize_by_texts(model: Decoder, windows: Sequence[Tensor]) -> Decoder:
    """Quantize a model to int4 in place, as `quantize` does, but rounded by what it reads of some texts.

    Args:
        model: a whole model in float32 or bfloat16; in evaluation mode and without gradients from then on.
        windows: token ids [t] of each text, no longer than the context. Some thousands of tokens in all are enough for
            a small model; there should be several for each input of its widest layer.

    Raises:
        UserError: as `quantize`, or there is no token. The model is then as it was.
    """
    places = layers_to_quantize(model, "int4")
    if not sum(map(len, windows)):
        raise UserError("there is no text to calibrate on")
    model.eval().requires_grad_(False)
    device = model.embedding.weight.device
    begun = [model.before_blocks(window.unsqueeze(0).to(device)) for window in windows if len(window)]
    streams = [x for x, _ in begun]
    for layer, block in enumerate(track(model.blocks, "rounding by the texts", len(model.blocks), unit="blocks")):
        inside = set(block.modules())
        reads = [model.into_block(layer, x, x0) for x, (x0, _) in zip(streams, begun, strict=True)]

        def run(block: nn.Module = block, layer: int = layer, reads: Sequence[Tensor] = reads) -> list[Tensor]:
            return [block(x, contexts[layer]) for x, (_, contexts) in zip(reads, begun, strict=True)]

        _replace([place for place in places if place[0] in inside], run)
        streams = run()
    if model.final_norm is not None:
        streams = [model.final_norm(x) for x in streams]
    _replace([place for place in places if place[0] is model], partial(list, map(model.head, streams)))
    return model


def _replace(places: Sequence[tuple[nn.Module, str]], run: Any) -> None:
    """Round layers by what they read while `run` runs."""
    if not places:
        return
    grams = _Grams()
    handles = [getattr(module, name).register_forward_pre_hook(grams.add) for module, name in places]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for module, name in places:
        linear = getattr(module, name)
        setattr(module, name, QuantizedLinear.of(linear, "int4", grams.of[linear]))
