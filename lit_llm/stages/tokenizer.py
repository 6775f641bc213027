"""A tokenizer trained on the train split of a corpus, in a folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lit_llm.config import TokenizerTrainingConfig, UserError
from lit_llm.data.corpus.documents import END_OF_TEXT, Corpus
from lit_llm.data.corpus.splits import wanted_splits
from lit_llm.data.corpus.tokenizer_record import TokenizerRecord
from lit_llm.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe, train_character


def train_tokenizer(config: TokenizerTrainingConfig) -> Tokenizer:
    """Train on the train split of `config.corpus`, write the tokenizer to `config.output`, and return it.

    The folder also gets a record of what the tokenizer was trained on, see `TokenizerRecord`.

    Raises:
        UserError: a tokenizer is there already and `overwrite` is off, or the corpus is missing, broken or too small.
    """
    output = Path(config.output)
    if (output / "tokenizer.json").exists() and not config.overwrite:
        raise UserError(f"{output}: a tokenizer is there already; set overwrite true or choose another output")
    corpus = Corpus(config.corpus)
    corpus.say_split()
    text = _TrainText(config, corpus)
    total = _expected_bytes(corpus, config)
    special_tokens = (*SPECIAL_TOKENS, *config.special_tokens)
    if config.kind == "bpe":
        tokenizer = train_bpe(text.parts(), config.vocab_size, total_bytes=total, special_tokens=special_tokens)
    else:
        tokenizer = train_character(
            text.parts(), config.byte_fallback, total_bytes=total, special_tokens=special_tokens
        )
    tokenizer.save(output)
    record = TokenizerRecord(tokenizer.digest, corpus.settled_config, text.documents, text.bytes)
    record.save(output)
    corpus.counts.say()
    of = "the train split" if len(wanted_splits(config.corpus)) > 1 else "all of the corpus, as no split is held out"
    print(f"trained on {of}: {record.bytes:,} bytes of {record.documents:,} documents", file=sys.stderr)
    return tokenizer


class _TrainText:
    """The text of a corpus that a tokenizer is trained on, and how much of it has been read.

    Attributes:
        documents: Documents of which something has been read.
        bytes: UTF-8 bytes that have been read; at most `max_bytes`.
    """

    def __init__(self, config: TokenizerTrainingConfig, corpus: Corpus) -> None:
        self._config, self._corpus = config, corpus
        # Where rows or program code spell a special token, no merge is to be made of its letters.
        names = sorted({END_OF_TEXT, *config.special_tokens}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names))) if config.kind == "bpe" else None
        self.documents = self.bytes = 0

    def parts(self) -> Iterator[str]:
        """The text up to `max_bytes`, the last part cut after a whole character."""
        begins = True
        for document in self._corpus.documents():
            if document.split != "train":
                continue
            self.documents += begins
            begins = document.final
            for part in self._without_markers(document.text):
                encoded = part.encode()
                if self._config.max_bytes is not None:
                    encoded = encoded[: self._config.max_bytes - self.bytes]
                self.bytes += len(encoded)
                yield encoded.decode(errors="ignore")
                if self.bytes == self._config.max_bytes:
                    return

    def _without_markers(self, text: str) -> list[str]:
        return [text] if self._special is None else [part for part in self._special.split(text) if part]


def _expected_bytes(corpus: Corpus, config: TokenizerTrainingConfig) -> int | None:
    size = corpus.size_bytes()
    if size is None:
        return config.max_bytes
    train = int(size * (1 - config.corpus.validation_fraction - config.corpus.test_fraction))
    return train if config.max_bytes is None else min(train, config.max_bytes)
