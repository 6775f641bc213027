"""This file holds text to a regular expression or a JSON schema, through the library outlines-core."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.generation.automata import Automaton, Compilation
from lit_llm.generation.request import AllowedTokens
from lit_llm.tokenizer import Tokenizer

# One constraint keeps this many masks and forgets the oldest.
_KEPT_BYTES = 2**24


class Spellings:
    """The bytes of every token that text is made of; they are collected once for a model.

    Args:
        tokenizer: of the model.
        vocab_size: width of the model's logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        special = set(tokenizer.special_ids.values())
        self.vocab_size = vocab_size
        self.of_token: list[bytes] = [
            b"" if token in special else tokenizer.token_bytes(token)
            for token in range(min(tokenizer.vocab_size, vocab_size))
        ]
        """The bytes of each token by id; empty for tokens that are no text."""
        joined = b"".join(self.of_token)
        self.usable = frozenset(joined)
        """Every byte that occurs in a token."""
        self._bytes = np.frombuffer(joined, dtype=np.uint8)
        self._lengths = np.array([len(spelling) for spelling in self.of_token], dtype=np.int64)
        self._begins = np.cumsum(self._lengths) - self._lengths

    def followed(self, automaton: Automaton, state: int) -> np.ndarray:
        """Give the ids of the tokens that may come in a state, following all tokens together, byte by byte."""
        tokens = np.flatnonzero(self._lengths)
        states = np.full(len(tokens), state)
        whole = []
        place = 0
        while len(tokens):
            read = automaton.classes[self._bytes[self._begins[tokens] + place]]
            states = automaton.table[read, states]
            place += 1
            ended = self._lengths[tokens] == place
            live = states != automaton.dead
            whole.append(tokens[live & ended])
            tokens, states = tokens[live & ~ended], states[live & ~ended]
        return np.concatenate(whole) if whole else tokens


class TextConstraint:
    """An automaton that texts of a model are held to; one serves any number of texts.

    Args:
        automaton: of an expression or a schema.
        spellings: of the model's tokens.
        stop_tokens: ids that may end a text that matches; none of them is part of one.

    Raises:
        UserError: no token ends a text, or no text of these tokens can match.
    """

    def __init__(self, automaton: Automaton, spellings: Spellings, stop_tokens: Iterable[int]) -> None:
        self._automaton, self._spellings = automaton, spellings
        self._stop_tokens = sorted(set(stop_tokens))
        if not self._stop_tokens:
            raise UserError("constrained text needs a token that ends it, and the model has none")
        self._mask = lru_cache(maxsize=max(8, _KEPT_BYTES // spellings.vocab_size))(self._make_mask)
        self._mask(0)

    @classmethod
    def of_regex(cls, regex: str, tokenizer: Tokenizer, vocab_size: int, stop_tokens: Iterable[int]) -> TextConstraint:
        """Make a constraint to the texts that match a regular expression as a whole.

        Raises:
            UserError: outlines-core is not installed, or the expression is not valid or takes too much to compile; and
                as the class.
        """
        return cls._compiled(regex, False, Spellings(tokenizer, vocab_size), stop_tokens)

    @classmethod
    def of_schema(
        cls, schema: str, tokenizer: Tokenizer, vocab_size: int, stop_tokens: Iterable[int]
    ) -> TextConstraint:
        """Make a constraint to the JSON texts that a schema (itself JSON) allows.

        Raises:
            UserError: as `of_regex`, or the schema uses what the library does not know.
        """
        return cls._compiled(schema, True, Spellings(tokenizer, vocab_size), stop_tokens)

    @classmethod
    def _compiled(cls, text: str, is_schema: bool, spellings: Spellings, stop_tokens: Iterable[int]) -> TextConstraint:
        automaton = Compilation(text, is_schema=is_schema, usable=spellings.usable).run()
        return cls(automaton, spellings, stop_tokens)

    def start(self) -> AllowedTokens:
        """Make the hook that restricts one text, for `Engine.submit`."""
        state = followed = 0

        def allowed(written: list[int]) -> Tensor:
            nonlocal state, followed
            for token in written[followed:]:
                state = self._automaton.after(state, self._spellings.of_token[token])
            followed = len(written)
            return self._mask(state)

        return allowed

    def _make_mask(self, state: int) -> Tensor:
        mask = torch.zeros(self._spellings.vocab_size, dtype=torch.bool)
        mask[torch.from_numpy(self._spellings.followed(self._automaton, state))] = True
        mask[self._stop_tokens] = bool(self._automaton.final[state])
        if not mask.any():  # the expression needs a byte that no token has
            raise UserError("no token of the model goes on with a text of the form that it is held to")
        return mask
