"""In which type and quantization a model folder is held by the server. Heavy libraries are imported on use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.config import ModelConfig

if TYPE_CHECKING:
    import torch


def held_as(
    folder: Path, config: ModelConfig, dtype: torch.dtype | None, quantize: str
) -> tuple[torch.dtype, str | None]:
    """Find the type and the quantization of a model's weights in memory, without reading them.

    Args:
        folder: a model folder, an adapter folder or a GGUF file.
        config: its configuration.
        dtype: what weights are converted to; None: they stay as stored.
        quantize: how they are rounded once they are read, or "none".

    Raises:
        UserError: a file is missing or broken.
    """
    from lit_llm.interop import iterate_weights, read_quantization, reading
    from lit_llm.interop.peft import base_of

    stored = None if base_of(folder) is not None else read_quantization(folder)
    if stored is not None:
        weights = reading.iterate_weights(folder, config, None, quantization=stored)
        # which is never quantized; config.json need not say the type
        return next(tensor.dtype for name, tensor in weights if name == "embedding.weight"), stored
    if dtype is None:
        dtype = next(iter(iterate_weights(folder, config)))[1].dtype
    return dtype, None if quantize == "none" else quantize
