"""Text that is held to a regular expression or a JSON schema, through the library outlines-core."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.generation.request import AllowedTokens
from lit_llm.tokenizer import Tokenizer


class TextConstraint:
    """A regular expression, compiled for a tokenizer; made once and used for any number of texts.

    Args:
        regex: what the whole of a text must match.
        tokenizer: whose tokens texts are made of.
        vocab_size: width of the model's logits.
        stop_tokens: ids that may end a text that matches; none of them is part of one.

    Raises:
        UserError: outlines-core is not installed, the expression is not valid, no token ends a text, or no text of
            these tokens can match.
    """

    def __init__(self, regex: str, tokenizer: Tokenizer, vocab_size: int, stop_tokens: Iterable[int]) -> None:
        library = _outlines_core()
        self._stop_tokens = sorted(set(stop_tokens))
        if not self._stop_tokens:
            raise UserError("constrained text needs a token that ends it, and the model has none")
        special = {*self._stop_tokens, *tokenizer.special_ids.values()}
        spellings: dict[bytes, list[int]] = {}
        for token in range(min(tokenizer.vocab_size, vocab_size)):
            spelling = b"" if token in special else tokenizer.token_bytes(token)
            if spelling:
                spellings.setdefault(spelling, []).append(token)
        self._vocab_size = vocab_size
        vocabulary = library.Vocabulary(self._stop_tokens[0], spellings)
        try:
            self._index = library.Index(regex, vocabulary)
        except ValueError as error:
            raise UserError(
                f"the expression {_short(regex)} cannot be followed: {' '.join(str(error).split())}"
            ) from None
        self._guide = library.Guide
        self._masks: dict[int, Tensor] = {}

    @classmethod
    def of_schema(
        cls, schema: str, tokenizer: Tokenizer, vocab_size: int, stop_tokens: Iterable[int]
    ) -> TextConstraint:
        """A constraint to the JSON texts that a schema (itself JSON) allows.

        Raises:
            UserError: the schema is not valid, or uses what the library does not know; and as the class.
        """
        _outlines_core()
        from outlines_core.json_schema import build_regex_from_schema

        try:
            regex = build_regex_from_schema(schema)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"the JSON schema {_short(schema)} cannot be followed: {' '.join(str(error).split())}"
            ) from None
        return cls(regex, tokenizer, vocab_size, stop_tokens)

    def start(self) -> AllowedTokens:
        """The hook for one text, for `Engine.submit`."""
        guide = self._guide(self._index)
        followed = 0

        def allowed(written: list[int]) -> Tensor:
            nonlocal followed
            for token in written[followed:]:
                guide.advance(token, return_tokens=False)
            followed = len(written)
            return self._mask(guide)

        return allowed

    def _mask(self, guide: Any) -> Tensor:
        state = guide.get_state()
        if state not in self._masks:
            mask = torch.zeros(self._vocab_size, dtype=torch.bool)
            mask[guide.get_tokens()] = True
            mask[self._stop_tokens] = guide.is_finished()
            self._masks[state] = mask
        return self._masks[state]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _outlines_core() -> Any:
    try:
        import outlines_core
    except ModuleNotFoundError:
        raise UserError(
            "constrained text needs the package outlines-core; install it with: pip install 'lit-llm[constrained]'"
        ) from None
    return outlines_core
