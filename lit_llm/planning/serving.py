"""Memory of a model that is served: its weights, and the cache of the texts that it writes at once.

Both are laid out on the meta device by the classes that the server itself uses, so that no byte of them is reckoned
apart. What a pass needs for a moment comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from lit_llm.config import ModelConfig
from lit_llm.model import Decoder, KVCache
from lit_llm.model.packed_linear import can_pack, layers_to_pack, packed_layers
from lit_llm.model.quantization import quantize


@dataclass(frozen=True)
class ServingMemory:
    """Bytes of a served model."""

    weights: int
    """Of the weights, as they are held."""
    cache: int
    """Of the keys and values of all texts, which are allocated at the start."""

    @property
    def total(self) -> int:
        """Sum of both."""
        return self.weights + self.cache


def serving_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    quantization: str | None,
    texts: int,
    length: int,
    *,
    tied_head: bool = False,
    packed: bool = False,
    kept: bool = False,
) -> ServingMemory:
    """Work out what a served model holds.

    Args:
        config: the decoder's configuration; `vocab_size` must be set.
        dtype: of what is not quantized, and of the cache.
        quantization: how weights are rounded: "int8", "int8_dynamic", "int4", or None.
        texts: that are written at once.
        length: tokens that each may have, with its prompt.
        tied_head: whether a copy of the embedding is quantized as the head, as `compile` has it.
        packed: whether linear layers are packed, as on a CPU.
        kept: whether their weights are held besides, as with `compile`.

    Raises:
        UserError: the model cannot be quantized so.
    """
    return ServingMemory(
        weight_bytes(config, dtype, quantization, tied_head=tied_head, packed=packed, kept=kept),
        cache_bytes(config, dtype, texts, length),
    )


def weight_bytes(
    config: ModelConfig,
    dtype: torch.dtype,
    quantization: str | None = None,
    *,
    tied_head: bool = False,
    packed: bool = False,
    kept: bool = False,
) -> int:
    """Bytes of the weights of a model, quantized or not. Args and raises: as `serving_memory`."""
    with torch.device("meta"):
        model = Decoder(config).to(dtype)
    model.tie()
    if quantization is not None:
        quantize(model, quantization, tied_head=tied_head)
    total = bytes_of(model)
    if packed and can_pack(dtype):
        weights = [getattr(module, name).weight for module, name in layers_to_pack(model)]
        # of weights that are not kept the packed form takes the place, but for that of the embedding
        total += sum(weight.nbytes for weight in weights if kept or weight is model.embedding.weight)
    return total


def bytes_of(module: nn.Module) -> int:
    """Bytes of the parameters, buffers and packed weights of a module; what is shared counts once."""
    held = chain(module.parameters(), module.buffers(), packed_layers(module))
    return sum(each.nbytes for each in held)


def cache_bytes(config: ModelConfig, dtype: torch.dtype, texts: int, length: int) -> int:
    """Bytes of the keys and values of some texts of some length; layers with a window hold no more than that.

    A prefix cache has the windows hold some tokens more, and memory of its own.
    """
    return bytes_of_cache(KVCache(config, texts, length, device="meta", dtype=dtype))


def prefix_cache_bytes(config: ModelConfig, dtype: torch.dtype, mib: int | None, useful_tokens: int) -> float:
    """Bytes that a prefix cache may come to take.

    Args:
        config: the decoder's configuration.
        dtype: of keys and values.
        mib: its memory in MiB; None: as much as `useful_tokens` take.
        useful_tokens: more than so many are not worth memory.
    """
    return mib * 2**20 if mib is not None else cache_bytes(config, dtype, 1, useful_tokens)


def bytes_of_cache(cache: KVCache) -> int:
    """Bytes of the memory of a cache."""
    last = () if cache.last_tokens is None else (cache.last_tokens,)
    return sum(tensor.nbytes for tensor in chain(cache.keys, cache.values, last))


def most_texts(config: ModelConfig, dtype: torch.dtype, length: int, room: float) -> int:
    """How many texts of `length` tokens have room for their cache in `room` bytes."""
    return max(0, int(room // cache_bytes(config, dtype, 1, length)))
