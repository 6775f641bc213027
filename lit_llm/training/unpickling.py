"""What the pickles in a checkpoint may name: a checkpoint may come from a stranger, and a pickle can call anything.

Whatever torch.load reads, it reads with weights_only. This file is for the two kinds of pickle that it cannot read so:
the index of a sharded checkpoint, and what DeepSpeed reads itself.
"""

from __future__ import annotations

import math
import pickle
import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import Metadata, filesystem, metadata
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.serialization import get_unsafe_globals_in_checkpoint

from lit_llm.config import UserError
from lit_llm.config.serialization import shown

_INDEX_NAMES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    # makes the layout of a tensor from its name, and nothing else
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,  # type: ignore[attr-defined]
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{
        (metadata.__name__, name): getattr(metadata, name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
}
"""All that torch 2.11 to 2.13 puts into the index of a checkpoint of plain tensors."""

_DEEPSPEED_NAMES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""What DeepSpeed saves besides what weights_only allows."""


def why_unreadable(error: BaseException) -> str:
    """Say in a few words why a file could not be unpickled; torch's own messages are paragraphs of advice."""
    text = str(error)
    if asked := re.search(r"\bGLOBAL (\S+)", text):
        return f"it asks for {shown(asked[1])}"
    if text.startswith("Weights only load failed") or text.isdigit():  # bytes that are no instruction of a plain pickle
        return "it is no pickle of plain tensors"
    sentence = re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
    return textwrap.shorten(sentence, 160, placeholder=" ...") or type(error).__name__


class _IndexUnpickler(pickle.Unpickler):
    """Unpickles only the classes of a fixed list; no name in the pickle, dotted or not, is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _INDEX_NAMES:
            raise pickle.UnpicklingError(f"the index of the checkpoint asks for {module}.{name}")
        return _INDEX_NAMES[module, name]


def read_index(path: Path) -> Metadata:
    """Read the index of a sharded checkpoint.

    Raises:
        pickle.UnpicklingError, ValueError: it names anything but its own records, or does not fit the folder.
    """
    with path.open("rb") as file:
        index = _IndexUnpickler(file).load()
    if not isinstance(index, Metadata):
        raise ValueError("the index of the checkpoint is not one")
    there = sum(each.stat().st_size for each in path.parent.iterdir())
    wanted = sum(_check_entry(name, entry) for name, entry in index.state_dict_metadata.items())
    if wanted > there:
        raise ValueError(f"its index tells of {wanted} bytes of tensors, and its files have {there}")
    for place in (index.storage_data or {}).values():
        name = place.relative_path
        if Path(name).name != name or place.transform_descriptors:
            raise ValueError(f"its index sends the reader to {name}")
    return index


def _check_entry(name: str, entry: Any) -> int:
    """Bytes of a tensor, whose parts must make up the whole: what no part fills would be left as memory was."""
    if not isinstance(entry, TensorStorageMetadata):
        raise ValueError(f"{name} is not a tensor")
    parts = sum(math.prod(part.sizes) for part in entry.chunks)
    inside = all(
        offset >= 0 and size >= 0 and offset + size <= whole
        for part in entry.chunks
        for offset, size, whole in zip(part.offsets, part.sizes, entry.size, strict=True)
    )
    if parts != math.prod(entry.size) or not inside:
        raise ValueError(f"the parts of {name} do not make up a tensor of shape {tuple(entry.size)}")
    return parts * entry.properties.dtype.itemsize


def check_deepspeed_folder(folder: Path) -> None:
    """Refuse a checkpoint of DeepSpeed that would run code; DeepSpeed itself executes whatever its files name.

    Raises:
        UserError: it would, or it is none.
    """
    try:
        tag = (folder / "latest").read_text(encoding="utf-8").strip()
        files = sorted(path for path in (folder / tag).rglob("*") if path.is_file())
        problem = f"its file `latest` names {tag[:80]!r}" if Path(tag).name != tag or not tag else None
        for path in files if problem is None else []:
            strange = sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - _DEEPSPEED_NAMES)
            if strange:
                problem = f"{path.name} asks for {strange[0][:80]}"
                break
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        problem = why_unreadable(error)
    if problem is not None:
        raise UserError(f"{folder} is not a whole checkpoint of deepspeed ({problem})")
