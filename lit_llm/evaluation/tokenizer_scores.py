"""How well a tokenizer fits texts: counts that add up over documents, and the ratios that people compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.alphabet import FALLBACK_TOKENS


class TokenizerScores:
    """What a tokenizer makes of texts.

    Args:
        tokenizer: encodes them.

    Attributes:
        documents: how many texts there were.
        bytes: UTF-8 bytes of them.
        words: their words, which are what white space divides.
        tokens: their tokens.
        changed: texts that their tokens do not spell as they were, as those of a tokenizer that normalizes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self.documents = self.bytes = self.words = self.changed = 0

    def add(self, texts: Sequence[str]) -> None:
        """Counts texts in.

        Raises:
            UserError: the tokenizer cannot encode one.
        """
        for text, ids in zip(texts, self._tokenizer.encode_bulk(texts), strict=True):
            self._counts += np.bincount(ids, minlength=len(self._counts))
            self.documents += 1
            self.bytes += len(text.encode())
            self.words += len(text.split())
            self.changed += self._tokenizer.decode(ids.tolist()) != text

    def merge(self, other: TokenizerScores) -> None:
        """Counts in what another has counted of the same tokenizer."""
        self._counts += other._counts
        for name in ("documents", "bytes", "words", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return int(self._counts.sum())

    def numbers(self) -> dict[str, Any]:
        """Everything, for JSON.

        bytes_per_token: of the text. tokens_per_word: the fertility (Rust et al. 2021, "How Good is Your Tokenizer?").
        vocabulary_used: share of the tokens that are not special that occur. byte_share: share of the tokens that are
        only a part of a character's bytes, or stand for a byte. unknown_share: share of the tokens that stand for any
        text that the vocabulary lacks.
        """
        ordinary, pieces, unknown = self._kinds
        tokens = max(self.tokens, 1)
        return {
            **{name: getattr(self, name) for name in ("documents", "bytes", "words", "tokens", "changed")},
            "bytes_per_token": self.bytes / tokens,
            "tokens_per_word": self.tokens / max(self.words, 1),
            "vocabulary_used": float((self._counts[ordinary] > 0).mean()),
            "byte_share": float(self._counts[pieces].sum() / tokens),
            "unknown_share": float(self._counts[unknown].sum() / tokens),
        }

    @property
    def _kinds(self) -> tuple[list[int], list[int], list[int]]:
        """Ids that are not special, those that are less than a character, and the one of what is unknown."""
        tokenizer = self._tokenizer
        special = set(tokenizer.special_ids.values())
        vocabulary: dict[str, int] = tokenizer.state["model"]["vocab"]
        unknown = vocabulary.get(tokenizer.state["model"].get("unk_token") or "")
        ordinary = [index for index in vocabulary.values() if index not in special and index != unknown]
        if tokenizer.kind == "bpe":
            pieces = [index for index in ordinary if not _is_text(tokenizer.token_bytes(index))]
        else:
            pieces = [vocabulary[token] for token in FALLBACK_TOKENS if token in vocabulary]
        return ordinary, pieces, [] if unknown is None else [unknown]


def _is_text(spelling: bytes) -> bool:
    try:
        spelling.decode()
    except UnicodeDecodeError:
        return False
    return True
