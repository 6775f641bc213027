"""Folders of shards with given tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.shards import ShardWriter, token_dtype


def write_split(folder: Path, arrays: list[np.ndarray], vocab_size: int = 1000) -> Manifest:
    """A folder of shards that holds `arrays`."""
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for number, array in enumerate(arrays):
        writer = ShardWriter(folder / f"shard_{number:05d}.npy", token_dtype(vocab_size))
        for piece in np.array_split(array, 3):
            writer.append(piece, documents=int(len(piece) > 0), num_bytes=2 * len(piece))
        infos.append(writer.close())
    manifest = Manifest("digest", vocab_size, token_dtype(vocab_size), 0, 1, {"<|eot|>": 0}, {"path": "x"}, infos)
    manifest.save(folder)
    return manifest
