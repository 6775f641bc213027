"""A tokenizer trained on the train split of a corpus, in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lit_llm.config import TokenizerTrainingConfig, UserError
from lit_llm.data.corpus.documents import END_OF_TEXT, Corpus
from lit_llm.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe, train_character


def train_tokenizer(config: TokenizerTrainingConfig) -> Tokenizer:
    """Train on the train split of `config.corpus`, write the tokenizer to `config.output`, and return it.

    Raises:
        UserError: a tokenizer is there already and `overwrite` is off, or the corpus is missing, broken or too small.
    """
    output = Path(config.output)
    if (output / "tokenizer.json").exists() and not config.overwrite:
        raise UserError(f"{output}: a tokenizer is there already; set overwrite true or choose another output")
    corpus = Corpus(config.corpus)
    texts = _train_texts(corpus)
    if config.kind == "bpe":
        # Where rows or program code spell a special token, no merge is to be made of its letters.
        spelled = re.compile("|".join(map(re.escape, sorted([END_OF_TEXT, *config.special_tokens], key=len)[::-1])))
        texts = (part for text in texts for part in spelled.split(text) if part)
    texts = _first_bytes(texts, config.max_bytes)
    total = _expected_bytes(corpus, config)
    special_tokens = (*SPECIAL_TOKENS, *config.special_tokens)
    if config.kind == "bpe":
        tokenizer = train_bpe(texts, config.vocab_size, total_bytes=total, special_tokens=special_tokens)
    else:
        tokenizer = train_character(texts, config.byte_fallback, total_bytes=total, special_tokens=special_tokens)
    tokenizer.save(output)
    corpus.counts.say()
    return tokenizer


def _train_texts(corpus: Corpus) -> Iterator[str]:
    return (document.text for document in corpus.documents() if document.split == "train")


def _first_bytes(texts: Iterator[str], limit: int | None) -> Iterator[str]:
    """The texts up to `limit` bytes of UTF-8, the last one cut after a whole character."""
    left = limit
    for text in texts:
        if left is None:
            yield text
            continue
        encoded = text.encode()[:left]
        left -= len(encoded)
        yield encoded.decode(errors="ignore")
        if not left:
            return


def _expected_bytes(corpus: Corpus, config: TokenizerTrainingConfig) -> int | None:
    size = corpus.size_bytes()
    if size is None:
        return config.max_bytes
    train = int(size * (1 - config.corpus.validation_fraction - config.corpus.test_fraction))
    return train if config.max_bytes is None else min(train, config.max_bytes)
