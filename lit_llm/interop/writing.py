"""This file writes weights into a model folder, in one file or several, each whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_llm.config import ModelConfig, UserError
from lit_llm.config.files import whole_file, write_json
from lit_llm.interop.families import Family
from lit_llm.interop.reading import INDEX, OWN_SCORES, WEIGHTS, Source, has_rows_of_tokens, source_of

SCORE_NAMES = {ours: stored for stored, ours in OWN_SCORES.items()}
MAX_SHARD_BYTES = 5 * 1000**3
"""The largest size of a weight file, unless a single tensor is larger (transformers' choice)."""


@dataclass(frozen=True)
class Output:
    """One tensor of a file, with the tensors of ours that it is made of."""

    name: str
    sources: list[Source]
    tensors: list[Tensor]

    def bytes(self, dtype: torch.dtype | None) -> int:
        """Compute its size in the file."""
        return sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in self.tensors)

    def make(self, dtype: torch.dtype | None) -> Tensor:
        """Make its content, on the CPU.

        Raises:
            UserError: a number of it is too large for `dtype`.
        """
        parts = [
            tensor.detach().t() if source.transposed else tensor.detach()
            for source, tensor in zip(self.sources, self.tensors, strict=True)
        ]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        converted = whole.to("cpu", dtype or whole.dtype).contiguous()
        if converted.dtype == torch.float16 != whole.dtype and whole.isfinite().all() > converted.isfinite().all():
            raise UserError(f"{self.name} has numbers beyond float16's 65,504; write bfloat16 or float32")
        return converted


def outputs_of(
    config: ModelConfig, weights: Mapping[str, Tensor], family: Family | None, quantized: bool = False
) -> list[Output]:
    """List the tensors that the files are to hold, from the decoder's state_dict.

    A tied head is left out, and so are rows that only pad the vocabulary: transformers would take them for tokens.

    Args:
        config: the decoder's configuration.
        weights: its state_dict.
        family: the architecture of transformers that the files are to be of; None for our own form.
        quantized: the weights are; their rows all stay, as they are packed together.
    """
    outputs: dict[str, Output] = {}
    for name, tensor in weights.items():
        if name == "head.weight" and config.tie_word_embeddings:
            continue
        if has_rows_of_tokens(name, config) and not quantized:
            tensor = tensor[: config.vocab_size]
        source = source_of(name, family)
        if family is None and config.output == "score":
            source = replace(source, name=SCORE_NAMES.get(name, name))
        output = outputs.setdefault(source.name, Output(source.name, [], []))
        place = sum(1 for other in output.sources if (other.part or 0) < (source.part or 0))
        output.sources.insert(place, source)
        output.tensors.insert(place, tensor)
    return list(outputs.values())


def write_weights(
    folder: Path, outputs: list[Output], dtype: torch.dtype | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write `model.safetensors`, or numbered files and an index where that would be too large.

    No more than one file's tensors are held converted at a time. Weights that the folder had before are replaced.

    Args:
        folder: an existing folder.
        outputs: the tensors to write, from `outputs_of`.
        dtype: the type that tensors are converted to; None keeps theirs.
        max_shard_bytes: the largest size of a file.

    Raises:
        UserError: a number is too large for `dtype`.
        OSError: a file cannot be written.
    """
    shards = list(_split(outputs, dtype, max_shard_bytes))
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(1, len(shards) + 1)]
    with ExitStack() as files:  # at whose end all files get their names
        for name, shard in zip(names, shards, strict=True):
            path = files.enter_context(whole_file(folder / name))
            save_file({output.name: output.make(dtype) for output in shard}, path, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {output.name: name for name, shard in zip(names, shards, strict=True) for output in shard}
        total = sum(output.bytes(dtype) for output in outputs)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    delete_weights(folder, names if len(shards) == 1 else [*names, INDEX])


def delete_weights(folder: Path, kept: Collection[str] = ()) -> None:
    """Delete what `write_weights` writes, but for the files named in `kept`.

    Raises:
        OSError: a file cannot be deleted.
    """
    for path in folder.iterdir():
        is_of_weights = path.name == INDEX or re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", path.name)
        if is_of_weights and path.name not in kept:
            path.unlink()


def _shard_name(number: int, total: int) -> str:
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def _split(outputs: list[Output], dtype: torch.dtype | None, limit: int) -> Iterator[list[Output]]:
    shard: list[Output] = []
    size = 0
    for output in outputs:
        if shard and size + output.bytes(dtype) > limit:
            yield shard
            shard, size = [], 0
        shard.append(output)
        size += output.bytes(dtype)
    yield shard
