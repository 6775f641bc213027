"""What a tokenizer is measured on, and beside which others."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.errors import UserError


@dataclass
class TokenizerEvaluationConfig:
    """Measure how short a tokenizer makes texts, by corpus and by language, beside other tokenizers."""

    tokenizer: str = "checkpoints/tokenizer"
    """Folder of the tokenizer, or of a model that has one; or a folder with the vocab.json and merges.txt of GPT-2."""
    against: list[str] = field(default_factory=list)
    """Folders of other tokenizers that read the same texts."""
    texts: list[str] = field(default_factory=list)
    """The corpora: files (.txt, .jsonl, .parquet), folders, globs or hf:NAME[:CONFIG[:SPLIT]]; each is one."""
    text_field: str = "text"
    """Field of a row that holds the text."""
    language_field: str = "language"
    """Field of a row that holds the language of its text, where it has one."""
    max_bytes: int | None = None
    """Read at most this many bytes of each corpus, the last document cut after a whole character; null reads all."""
    output: str | None = None
    """JSON file for the numbers; null: they are only printed."""

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 1:
            raise UserError(f"max_bytes is {self.max_bytes}; it must be at least 1, or null")
