"""Corpus -> shards, in bounded memory, so that an interruption loses at most one shard's work.

The open shards of all splits are closed together at commit points: the first document after about `shard_tokens`
tokens. A commit point depends on the documents alone, not on how they were batched, so an interrupted run that goes on
from the last one writes the same bytes as a run that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config import PrepareConfig, UserError, from_plain, to_plain
from lit_llm.config.files import write_json
from lit_llm.config.json_text import parse_json
from lit_llm.data.corpus.documents import Corpus, Document
from lit_llm.data.corpus.manifest import ShardInfo
from lit_llm.data.corpus.provenance import ProvenanceWriter
from lit_llm.data.corpus.shards import ShardWriter, token_dtype
from lit_llm.data.corpus.splits import SPLITS, wanted_splits
from lit_llm.tokenizer import Tokenizer

_BATCH_CHARACTERS = 8_000_000


@dataclass
class PreparationProgress:
    """What a preparation has finished, as progress.json keeps it."""

    made_from: dict[str, Any]
    """All options and inputs that the bytes of the shards depend on."""
    documents: int = 0
    """How many documents of the corpus are in finished shards, to be skipped next time."""
    shards: dict[str, list[ShardInfo]] = field(default_factory=dict)
    """Finished shards of each split."""


class CorpusEncoder:
    """Appends encoded documents to the open shard of their split, and commits."""

    def __init__(
        self, config: PrepareConfig, tokenizer: Tokenizer, output: Path, progress: PreparationProgress
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.output = output
        self.progress = progress
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._eot = np.array([tokenizer.eot_id], dtype=self._dtype)
        self._writers: dict[str, tuple[ShardWriter, ProvenanceWriter]] = {}
        self._uncommitted_documents = 0
        self._uncommitted_tokens = 0

    def add(self, documents: list[Document]) -> int:
        """Encodes documents and writes them, committing where a commit point falls; returns their UTF-8 bytes."""
        encoded = self.tokenizer.encode_bulk([document.text for document in documents], self.config.num_workers)
        total = 0
        for document, tokens in zip(documents, encoded, strict=True):
            if document.final:
                tokens = np.concatenate([tokens, self._eot])
            num_bytes = len(document.text.encode("utf-8"))
            if len(tokens):
                shard, provenance = self._writer(document.split)
                shard.append(tokens, int(document.final), num_bytes)
                provenance.append(len(tokens), document.final, document.provenance)
            total += num_bytes
            self._uncommitted_documents += 1
            self._uncommitted_tokens += len(tokens)
            if self._uncommitted_tokens >= self.config.shard_tokens:
                self.commit()
        return total

    def commit(self) -> None:
        """Closes the open shards and records them; an interruption from here on leaves them as they are."""
        for split, (shard, provenance) in self._writers.items():
            info = shard.close()
            file, sha256 = provenance.close()
            self.progress.shards[split].append(replace(info, documents_file=file, documents_sha256=sha256))
        self._writers = {}
        self.progress.documents += self._uncommitted_documents
        self._uncommitted_documents = self._uncommitted_tokens = 0
        write_json(self.output / "progress.json", to_plain(self.progress))

    def discard(self) -> None:
        """Drops the shards that are not complete."""
        for writers in self._writers.values():
            for writer in writers:
                writer.discard()

    def _writer(self, split: str) -> tuple[ShardWriter, ProvenanceWriter]:
        if split not in self._writers:
            number, folder = len(self.progress.shards[split]), self.output / split
            shard = ShardWriter(folder / f"shard_{number:05d}.npy", self._dtype)
            self._writers[split] = shard, ProvenanceWriter(folder / f"documents_{number:05d}.parquet")
        return self._writers[split]


def document_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about 8 MB of text, enough to keep every encoding thread busy."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def refuse_finished(config: PrepareConfig, output: Path) -> None:
    """Raises UserError where the folder has finished shards that are not to be replaced."""
    if not config.overwrite and not (output / "progress.json").is_file() and any(_files(output)):
        raise UserError(
            f"{output} already holds finished shards; use them, give another --output, or replace them with "
            "--overwrite true"
        )


def begin_preparation(config: PrepareConfig, tokenizer: Tokenizer, corpus: Corpus, output: Path) -> PreparationProgress:
    """Makes the folders, or finds what an interrupted run has finished and clears away what it has not."""
    splits = wanted_splits(config.corpus)
    made_from = {
        "corpus": to_plain(config.corpus),
        "corpus_files": corpus.files_digest(),
        "tokenizer": tokenizer.digest,
        "shard_tokens": config.shard_tokens,
    }
    progress = PreparationProgress(made_from, shards={split: [] for split in splits})
    path = output / "progress.json"
    try:
        if config.overwrite:
            path.unlink(missing_ok=True)
        elif path.is_file():
            progress = _load_progress(path, made_from)
        finished = {
            output / split / file
            for split, shards in progress.shards.items()
            for shard in shards
            for file in (shard.file, shard.documents_file or shard.file)
        }
        for file in _files(output):
            if file not in finished:
                file.unlink()
        for split in SPLITS:
            folder = output / split
            if split in splits:
                folder.mkdir(parents=True, exist_ok=True)
            elif folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()  # it would look like a split that is not finished
        if Path(config.tokenizer).resolve() != (output / "tokenizer").resolve():
            tokenizer.save(output / "tokenizer")
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from error
    write_json(path, to_plain(progress))
    return progress


def _files(output: Path) -> list[Path]:
    """The files that a run writes into the folders of the splits."""
    patterns = ("shard_*.npy", "documents_*.parquet", "*.tmp", "manifest.json")
    return [file for split in SPLITS for p in patterns for file in (output / split).glob(p)]


def _load_progress(path: Path, made_from: dict[str, Any]) -> PreparationProgress:
    try:
        values = parse_json(path.read_bytes())
        shards = {split: [from_plain(ShardInfo, info) for info in infos] for split, infos in values["shards"].items()}
        progress = PreparationProgress(values["made_from"], values["documents"], shards)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); start again with --overwrite true") from error
    changed = [name for name in made_from if made_from[name] != progress.made_from.get(name)]
    if changed == ["corpus_files"]:
        raise UserError(
            f"{path.parent} was begun with other files of corpus.path (their names, sizes or times differ); give those "
            "again, or start again with --overwrite true"
        )
    if changed:
        raise UserError(
            f"{path.parent} was begun with other options ({', '.join(changed)} differ); give those again, or start "
            "again with --overwrite true"
        )
    for split, infos in progress.shards.items():
        for info in infos:
            for name in (info.file, info.documents_file or info.file):
                if not (path.parent / split / name).is_file():
                    raise UserError(f"{path.parent / split / name} is gone; start again with --overwrite true")
    return progress
