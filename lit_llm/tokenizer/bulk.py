"""Encoding much text at once: ordinary text only, the same ids as `tokenizers`, as fast as the machine allows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tokenizers

from lit_llm.config import UserError
from lit_llm.tokenizer.alphabet import BYTE_TO_CHARACTER, byte_level_bytes, fallback_token

# GPT-2's split pattern, which tokenizers' ByteLevel has built in, with its seven contractions folded into one branch
# (a quarter faster).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

LINE_CUT = re.compile(r"(?<=\S)\n(?=\S)")
"""The end of a line between two that are neither empty nor indented."""
SAFE_CUT = re.compile(r"(?<=\S)(?:\n(?=\S)|(?= \S))")
"""Where a text may be cut without changing its ids: GPT-2's pattern matches nothing across the end of such a match."""

_CHUNK = 65_536  # characters; long texts are cut into such chunks, so that every core has work
_TRIAL_CHARACTERS = 1_000_000  # encoded by both libraries before the faster one is trusted


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def require_unicode(text: str) -> None:
    """Raise UserError where `text` has half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "replace it, it is not valid Unicode"
        ) from None


class CharacterEncoder:
    """Characters to ids by a table over all code points.

    Args:
        vocabulary: Token to id: single characters and, with `byte_fallback`, `<0x00>` to `<0xFF>`.
        byte_fallback: Spell characters that the vocabulary lacks as the bytes of their UTF-8.
        dtype: Of the ids.
    """

    def __init__(self, vocabulary: dict[str, int], byte_fallback: bool, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._table = np.full(0x110000, -1, dtype=np.int32)
        for token, index in vocabulary.items():
            if len(token) == 1:
                self._table[ord(token)] = index
        self._byte_ids = None
        if byte_fallback:
            self._byte_ids = np.array([vocabulary[fallback_token(byte)] for byte in range(256)], dtype=dtype)

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`.

        Raises:
            UserError: the vocabulary lacks a character and has no byte fallback, or the text is not valid Unicode.
        """
        require_unicode(text)
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        ids = self._table[points]
        unknown = ids < 0
        if not unknown.any():
            return ids.astype(self._dtype)
        byte_ids = self._byte_ids
        if byte_ids is None:
            position = int(unknown.argmax())
            character = text[position]
            raise UserError(
                f"the vocabulary lacks the character {character!r} (U+{ord(character):04X}) at position {position}; "
                "train the tokenizer on text that has it, or with byte_fallback true"
            )
        return self._spell(text, points, ids, unknown, byte_ids)

    def _spell(
        self, text: str, points: np.ndarray, ids: np.ndarray, unknown: np.ndarray, byte_ids: np.ndarray
    ) -> np.ndarray:
        # A UTF-8 character is one byte longer from each of these code points on.
        widths = np.ones(len(points), dtype=np.int64)
        for start in (0x80, 0x800, 0x10000):
            widths += points >= start
        spelling = np.frombuffer(text.encode(), dtype=np.uint8)
        sources = (np.cumsum(widths) - widths)[unknown]
        ends = np.cumsum(np.where(unknown, widths, 1))
        out = np.empty(int(ends[-1]), dtype=self._dtype)
        out[ends[~unknown] - 1] = ids[~unknown]
        widths = widths[unknown]
        starts = ends[unknown] - widths
        for offset in range(int(widths.max())):
            long = widths > offset
            out[starts[long] + offset] = byte_ids[spelling[sources[long] + offset]]
        return out


class BytePairEncoder:
    """Byte-level BPE by tiktoken where it gives the ids of `tokenizers`, else by `tokenizers`.

    tiktoken is several times faster. Two things could make its ids differ, and both were looked into:

    - *The split into words.* Both run GPT-2's pattern, on different regular expression engines. Their classes
      (letter, number, white space, other) agree on each of the 1,112,064 code points of Unicode (tokenizers 0.23.3,
      tiktoken 0.14.0; the test marked slow repeats the sweep), so no text needs another path for its characters.
    - *The merges.* tokenizers merges the pairs it was given, in their order; tiktoken any two neighbours whose
      concatenation is a token, by that token's rank, and takes a word that is a token whole. They agree if each merge
      joins tokens that exist before it, makes a token that no other merge makes, and every token, encoded alone,
      gives itself (were tiktoken to make a token z from another pair, tokenizers would already have made the halves
      of z's own merge there, as it does in z alone). That is checked when the encoder is built.

    As a guard against other versions of either library, the first million characters are encoded by both, and a
    difference sends everything to `tokenizers`. tiktoken's engine panics on about a million white-space characters in
    a row: a chunk that has no place to be cut for `2 * _CHUNK` characters goes to `tokenizers`, which takes any.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, state: dict[str, Any], dtype: np.dtype) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._untried = _TRIAL_CHARACTERS
        self._fast = None
        vocabulary = state["model"]["vocab"]
        tokens = rank_order(state, tokenizer.model) if has_gpt2_form(state) else None
        if tokens is not None:
            import tiktoken

            self._ids_of_ranks = np.array([vocabulary[token] for token in tokens], dtype=dtype)
            # tiktoken's `encode` looks for special tokens even where none is allowed, and needs one to look for.
            self._fast = tiktoken.Encoding(
                "lit_llm",
                pat_str=GPT2_PATTERN,
                mergeable_ranks={byte_level_bytes(token): rank for rank, token in enumerate(tokens)},
                special_tokens={"<|endoftext|>": len(tokens)},
            )

    def encode(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """The ids of each text; specials are ordinary text.

        Raises:
            UserError: a text is not valid Unicode.
        """
        for text in texts:
            require_unicode(text)
        self._try(texts)
        if self._fast is None:
            return self._encode_slowly(texts)
        chunks = [(index, chunk) for index, text in enumerate(texts) for chunk in chunked(text)]
        encoded = self._encode_chunks([chunk for _, chunk in chunks], num_threads or available_cores())
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for (index, _), ids in zip(chunks, encoded, strict=True):
            parts[index].append(ids)
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def _try(self, texts: Sequence[str]) -> None:
        for text in texts:
            if self._fast is None or self._untried <= 0:
                return
            sample = text[: self._untried]
            self._untried -= len(sample)
            fast = np.concatenate([self._encode_chunk(chunk) for chunk in chunked(sample)])
            if not np.array_equal(fast, self._encode_slowly([sample])[0]):
                self._fast = None

    def _encode_chunks(self, chunks: list[str], num_threads: int) -> list[np.ndarray]:
        if num_threads == 1 or len(chunks) == 1:
            return [self._encode_chunk(chunk) for chunk in chunks]
        # Short texts are handed out many at a time: a task costs as much as a few hundred characters.
        per_task = max(1, min(256, len(chunks) // (4 * num_threads)))
        tasks = [chunks[start : start + per_task] for start in range(0, len(chunks), per_task)]
        with ThreadPoolExecutor(num_threads) as executor:
            done = executor.map(lambda task: [self._encode_chunk(chunk) for chunk in task], tasks)
            return [ids for task in done for ids in task]

    def _encode_chunk(self, chunk: str) -> np.ndarray:
        if self._fast is None or len(chunk) > 2 * _CHUNK:
            return self._encode_slowly([chunk])[0]
        return self._ids_of_ranks[self._fast.encode_to_numpy(chunk, disallowed_special=())]

    def _encode_slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunked(text: str) -> list[str]:
    """`text` in consecutive parts of some 65,536 characters, cut only where GPT-2's pattern cuts anyway."""
    cuts = [0]
    while len(text) - cuts[-1] > _CHUNK:
        match = SAFE_CUT.search(text, cuts[-1] + _CHUNK)
        if match is None:
            break
        cuts.append(match.end())
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def has_gpt2_form(state: dict[str, Any]) -> bool:
    """Whether a tokenizer's state says GPT-2's split, no normalisation and plain merges."""
    model, split = state["model"], state["pre_tokenizer"] or {}
    plain = not any(
        model.get(option) for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    )
    gpt2_split = split.get("type") == "ByteLevel" and not split["add_prefix_space"] and split.get("use_regex", True)
    special_only = all(token["special"] for token in state["added_tokens"])
    return plain and gpt2_split and state["normalizer"] is None and special_only


def rank_order(state: dict[str, Any], model: Any) -> list[str] | None:
    """The byte tokens, then what each merge makes, or None where the merges are not of the form that
    `BytePairEncoder` needs."""
    vocabulary = state["model"]["vocab"]
    tokens = dict.fromkeys(BYTE_TO_CHARACTER)
    if not all(token in vocabulary for token in tokens):
        return None
    for left, right in state["model"]["merges"]:
        merged = left + right
        if left not in tokens or right not in tokens or merged in tokens:
            return None
        if [token.id for token in model.tokenize(merged)] != [vocabulary[merged]]:
            return None
        tokens[merged] = None
    return list(tokens)
