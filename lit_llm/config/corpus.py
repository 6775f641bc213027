"""Where text comes from, and how a tokenizer and shards are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.errors import UserError


@dataclass
class CorpusConfig:
    """A source of documents and its split into train, validation and test."""

    path: str = "stdlib"
    """"stdlib" (the Python standard library's source on this machine, without tests and generated tables), a .txt,
    .jsonl or .parquet file, a folder, a glob, or hf:NAME[:CONFIG[:SPLIT]] for a Hugging Face dataset (streamed; its
    split is train unless given, as in hf:NAME::SPLIT)."""
    text_field: str = "text"
    """Field of a .jsonl, .parquet or Hugging Face row that holds the text."""
    document_separator: str | None = "auto"
    """What ends a document within a text file, together with a line end after it. "auto": <|endoftext|> and the
    tokenizer's own end-of-text, in .txt and .md files and those without a suffix; any other string: that one, in every
    text file; null: nothing, each file is one document. A row is always one document."""
    split: Literal["auto", "hash", "tail"] = "auto"
    """"hash" gives whole documents to a split by a stable hash; "tail" cuts every file in order, its last characters
    being validation (then test). "auto": hash where that gives each split at least 10 documents, else tail."""
    validation_fraction: float = 0.05
    """Share of the documents (hash) or of the characters of every file (tail) kept for validation."""
    test_fraction: float = 0.0
    """Share of the documents or characters kept for test."""

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"corpus.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise UserError("corpus.validation_fraction and corpus.test_fraction leave nothing to train on")
        if self.document_separator == "none":
            self.document_separator = None
        if self.document_separator == "":
            raise UserError('corpus.document_separator is empty; give a string, "auto", or null for none')
        if self.path.startswith("hf:") and self.document_separator not in ("auto", None):
            raise UserError("corpus.document_separator is given, but each row of hf: is a document; leave it out")


@dataclass
class TokenizerTrainingConfig:
    """Train a tokenizer on a corpus and save it as a folder."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """The text; only its train split is read."""
    kind: Literal["bpe", "character"] = "bpe"
    """Byte-level byte-pair encoding, or one token per character."""
    vocab_size: int = 32000
    """Tokens in all, special tokens included (bpe only; 32,000 and 50,257 are usual)."""
    special_tokens: list[str] = field(default_factory=list)
    """More special tokens, such as '["<|think|>"]', after <|endoftext|>, <|pad|>, <|im_start|> and <|im_end|>. Like
    these, they are no part of any merge, and a text that spells one has its letters, and not the token."""
    byte_fallback: bool = True
    """With kind character: spell characters that the corpus lacks as UTF-8 bytes; without it they are an error."""
    max_bytes: int | None = None
    """Read at most this many bytes of text; null reads all."""
    output: str = "checkpoints/tokenizer"
    """Folder that the tokenizer is written to."""
    overwrite: bool = False
    """Replace a tokenizer that is already there."""

    def __post_init__(self) -> None:
        specials = 4 + len(self.special_tokens)
        if self.kind == "bpe" and self.vocab_size < 256 + specials:
            raise UserError(
                f"vocab_size is {self.vocab_size}; byte-level BPE needs at least {256 + specials} (256 bytes, "
                f"{specials} specials)"
            )
        if not all(self.special_tokens) or len(set(self.special_tokens)) < len(self.special_tokens):
            raise UserError("special_tokens has an empty string, or one twice; leave it out")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise UserError(f"max_bytes is {self.max_bytes}; it must be at least 1, or null")


@dataclass
class PrepareConfig:
    """Encode a corpus into shards."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """The text."""
    tokenizer: str = "checkpoints/tokenizer"
    """Folder of the tokenizer."""
    output: str = "checkpoints/shards"
    """Folder that gets train/, validation/ and test/ shards. A run that was interrupted goes on where it stopped."""
    shard_tokens: int = 50_000_000
    """Tokens after which a shard is closed; an interruption loses no more work than that."""
    num_workers: int | None = None
    """How many threads encode at once; null uses every core."""
    overwrite: bool = False
    """Replace shards that are already there."""

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise UserError(f"shard_tokens is {self.shard_tokens}; it must be at least 1")
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"num_workers is {self.num_workers}; it must be at least 1, or null")
