"""Training tokenizers on text."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lit_llm.config import UserError
from lit_llm.config.progress import progress
from lit_llm.tokenizer.alphabet import fallback_token
from lit_llm.tokenizer.bulk import require_unicode
from lit_llm.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer, byte_level

_PART = 10_000
"""Characters that are learned together of a word that is too long for one, as a genome is: the trainer takes time by
more than the square of a word's length."""
_UNBROKEN = re.compile(r"[^\W\d_]+|\d+|(?:[^\w\s]|_)+|\s+")
"""What GPT-2's pattern does not split."""


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    show_progress: bool = True,
    total_bytes: int | None = None,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
) -> Tokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016) with GPT-2's split into words.

    The 256 bytes come first, then the merges in the order they were found, then the special tokens: as in GPT-2, a
    token's id is its rank, and the ids of text do not depend on how many special tokens there are. A pair must occur
    twice to be merged. The same texts give the same tokenizer, on any number of cores. A word of 20,000 characters or
    more is learned in parts.

    Args:
        texts: Read once; special-token strings in them are text like any other.
        vocab_size: Tokens in all: 256 and the special tokens at least.
        show_progress: Show on stderr how much text has been read.
        total_bytes: How much text there is about to be, for the progress bar.
        special_tokens: All of them, in the order of their ids. What this package trains with needs those of
            `SPECIAL_TOKENS`; for another use there may be any, or none.

    Raises:
        UserError: there is no text, not enough of it for `vocab_size`, `vocab_size` is too small for the bytes and the
            special tokens, or a special token is a token of the text, too.
    """
    specials = _distinct(special_tokens)
    smallest = 256 + len(specials)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size is {vocab_size}; byte-level BPE needs at least {smallest} (256 bytes, "
            f"{len(specials)} specials)"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw = byte_level(models.BPE(), ())
    counted = _CountedTexts(texts, show_progress, total_bytes, "finding merges")
    raw.train_from_iterator(counted, trainer)
    counted.require_text()
    size = raw.get_vocab_size() + len(specials)
    if size < vocab_size:
        raise UserError(f"the corpus supports only {size} tokens; set vocab_size to {size} or less")
    return _with_special_tokens(raw, specials)


def train_character(
    texts: Iterable[str],
    byte_fallback: bool = True,
    show_progress: bool = True,
    total_bytes: int | None = None,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
) -> Tokenizer:
    """One token per character: the characters of `texts` in order of code point, as nanoGPT numbers them, then the 256
    bytes (with `byte_fallback`), then the special tokens.

    Args:
        texts: Read once.
        byte_fallback: Spell characters that `texts` lack as UTF-8 bytes; without it they are an error when encoding.
        show_progress: Show on stderr how much text has been read.
        total_bytes: How much text there is about to be, for the progress bar.
        special_tokens: As of `train_bpe`.

    Raises:
        UserError: there is no text, or a special token is a token of the text, too.
    """
    specials = _distinct(special_tokens)
    characters: set[str] = set()
    counted = _CountedTexts(texts, show_progress, total_bytes)
    for text in counted:
        characters.update(text)
    counted.require_text()
    tokens = sorted(characters)
    if byte_fallback:
        tokens += [fallback_token(byte) for byte in range(256)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    raw = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=byte_fallback))
    fuse = decoders.Fuse()
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), fuse]) if byte_fallback else fuse
    return _with_special_tokens(raw, specials)


def _distinct(special_tokens: Sequence[str]) -> list[str]:
    if not all(special_tokens) or len(set(special_tokens)) < len(special_tokens):
        raise UserError(f"the special tokens {', '.join(special_tokens)} must be distinct, and none of them empty")
    return list(special_tokens)


def _with_special_tokens(raw: tokenizers.Tokenizer, special_tokens: list[str]) -> Tokenizer:
    """Add special tokens after the ids of text."""
    vocabulary = raw.get_vocab()
    taken = [token for token in special_tokens if token in vocabulary]
    if taken:
        raise UserError(f"special token {taken[0]!r} is a token of the text, too; name it such as <|{taken[0]}|>")
    raw.add_special_tokens(special_tokens)
    return Tokenizer(raw)


def _parts(text: str) -> Iterator[str]:
    """The text, cut within words so that none has 20,000 characters."""
    begin = 0
    for place in range(_PART, len(text), _PART):
        if _UNBROKEN.fullmatch(text, place - _PART, place + 1):
            yield text[begin:place]
            begin = place
    yield text[begin:]


class _CountedTexts:
    """Texts that are counted, and shown as progress, while they are read.

    Args:
        texts: read once.
        show: whether progress is shown.
        total_bytes: how much text there is about to be; None where that is not known.
        then: what begins when all is read and takes its time, too; "" for nothing.
    """

    def __init__(self, texts: Iterable[str], show: bool, total_bytes: int | None, then: str = "") -> None:
        self._texts, self._show, self._total, self._then = texts, show, total_bytes, then
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        with progress("reading text", self._total, "bytes", shown=self._show) as advance:
            for text in self._texts:
                require_unicode(text)
                size = len(text.encode())
                self.bytes += size
                advance(size)
                yield from _parts(text)
        if self._show and self._then:
            print(self._then, file=sys.stderr)

    def require_text(self) -> None:
        """Raises UserError where there was no text."""
        if not self.bytes:
            raise UserError("the corpus has no text to train a tokenizer on; check its path and its split")
