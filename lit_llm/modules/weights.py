"""Copying the weights of model folders into decoders, whole or sharded."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from lit_llm.config import ModelConfig
from lit_llm.distributed.tensors import shard_like
from lit_llm.interop import iterate_weights, model_files, read_model_config
from lit_llm.model import Decoder

_PARTS, _PART_BYTES = 64, 2**14


def copy_weights(folder: Path, decoder: Decoder) -> None:
    """Copy the weights of a model folder into a decoder; a larger vocabulary's new rows get the mean of the old ones.

    Raises:
        UserError: the folder holds another model.
    """
    source = read_model_config(folder)
    grown = (decoder.config.vocab_size or 0) > (source.vocab_size or 0)
    source.output, source.value_head = decoder.config.output, decoder.config.value_head
    if source.output == "score":
        source.tie_word_embeddings, source.logits_softcap = False, None
    weights = iterate_weights(folder, source if grown else decoder.config)
    copy_into(((name, _grow(weight, decoder, name, source) if grown else weight) for name, weight in weights), decoder)


def _grow(weight: Tensor, decoder: Decoder, name: str, source: ModelConfig) -> Tensor:
    """Lengthen a tensor that has a row for each token to a larger vocabulary; return others as they are."""
    if not (name in ("embedding.weight", "head.weight") or name.endswith("value_embedding.weight")):
        return weight
    if name == "head.weight" and source.output == "score":
        return weight
    rows, known = decoder.get_parameter(name).size(0), weight[: source.vocab_size]
    return torch.cat([known, known.float().mean(0, keepdim=True).to(weight.dtype).expand(rows - len(known), -1)])


def digest_of_parts(folder: Path) -> str:
    """Hash the weights of a model folder or of a GGUF file by parts of each file, as hexadecimal text.

    A megabyte of each file at the most is read, which tells trained weights from other ones. Of an adapter
    folder its options are hashed, too, as they say how much of the additions is added, and so is its base.

    Raises:
        UserError: the base of an adapter folder is not on this machine.
    """
    digest = blake2b(digest_size=16)
    for path in model_files(folder):
        if path.name == "config.json":  # the run has one of its own
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for part in range(_PARTS):
                file.seek(part * size // _PARTS)
                digest.update(file.read(_PART_BYTES))
    return digest.hexdigest()


@torch.no_grad()
def copy_into(weights: Iterable[tuple[str, Tensor]], decoder: Decoder) -> None:
    """Copy tensors by name; one at a time is whole, and each rank keeps its part of it."""
    parameters = decoder.state_dict()
    for name, weight in weights:
        parameters[name].copy_(shard_like(weight.to(parameters[name].dtype), parameters[name]))
