"""The documents that a folder of shards was made of, as far as its tokens say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lit_llm.config import UserError
from lit_llm.config.recipe import SourceConfig
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.sources.document import Skipped, SourceDocument, Unit
from lit_llm.data.sources.making import DocumentMaker
from lit_llm.tokenizer import Tokenizer

_SPLITS = ("train", "validation", "test")
_BLOCK_TOKENS = 1 << 20


def is_shard_folder(path: str) -> bool:
    """Whether a path is a folder that `prepare_data` has written, or one split of it."""
    return any((Path(path) / name / "manifest.json").is_file() for name in ("", *_SPLITS))


class ShardDocuments:
    """Documents of shards, decoded one by one; each split is a unit, and a document is `train:0`, `train:1`, ...

    Args:
        config: Its `path` is one for which `is_shard_folder` holds.

    Raises:
        UserError: the tokenizer is missing or another one, or a shard is damaged.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._maker = DocumentMaker.of(config)
        folder = Path(config.path)
        if (folder / "manifest.json").is_file():
            self._root, splits = folder.resolve().parent, [folder.resolve().name]
        else:
            self._root, splits = folder, [name for name in _SPLITS if (folder / name / "manifest.json").is_file()]
        if not (self._root / "tokenizer").is_dir():
            raise UserError(
                f"{config.path}: these are shards, and their tokenizer is not at {self._root / 'tokenizer'}"
            )
        self._tokenizer = Tokenizer.load(self._root / "tokenizer")
        self._splits = {name: ShardedTokens(self._root / name) for name in splits}
        for tokens in self._splits.values():
            tokens.check_tokenizer(self._tokenizer)
        self.description = f"shards {config.path} ({', '.join(splits)})"

    def units(self) -> list[Unit]:
        """The splits."""
        return [Unit(name, tokens.manifest.bytes) for name, tokens in self._splits.items()]

    def read(self, unit: Unit) -> Iterator[SourceDocument | Skipped]:
        """Yields the documents of a split."""
        source, number = self._splits[unit.name], 0
        pieces: list[np.ndarray] = []
        for begin in range(0, len(source), _BLOCK_TOKENS):
            block = source.read(begin, min(_BLOCK_TOKENS, len(source) - begin))
            at = 0
            for end in np.flatnonzero(block == source.manifest.eot_id).tolist():
                yield self._document(unit.name, number, [*pieces, block[at:end]])
                pieces, at, number = [], end + 1, number + 1
            pieces.append(block[at:])
        if any(map(len, pieces)):
            yield self._document(unit.name, number, pieces)

    def _document(self, split: str, number: int, pieces: list[np.ndarray]) -> SourceDocument | Skipped:
        return self._maker.make(f"{split}:{number}", self._tokenizer.decode(np.concatenate(pieces).tolist()))
