"""The tokens that are put before a text or a prompt, and which strings in it are read as special tokens."""

from __future__ import annotations

from lit_llm.config import BeginToken, UserError
from lit_llm.tokenizer.tokenizer import Tokenizer


def begin_ids(tokenizer: Tokenizer, begin_token: BeginToken = "auto") -> list[int]:
    """The ids that are put before every text, often none.

    Args:
        tokenizer: of the model.
        begin_token: "auto" has what the tokenizer's own rule puts there, as transformers does; and for tokenizers
            trained here, whose documents follow one another in training, the end of the document before. "always" has
            the token that begins a text for tokenizers without such a rule, too.

    Raises:
        UserError: "always" is asked for, and there is no such token.
    """
    if begin_token == "never":
        return []
    if tokenizer.rule_ids:
        return list(tokenizer.rule_ids)
    if begin_token == "auto" and not tokenizer.trained_here:
        return []
    if tokenizer.begin_id is None:
        if begin_token == "auto":
            return []
        raise UserError("begin_token is always, and the tokenizer has no token that begins a text; use auto or never")
    return [tokenizer.begin_id]


def first_token_source(tokenizer: Tokenizer) -> int | None:
    """What the first token of a text is predicted from where nothing stands before it, or None.

    It is what is named the begin token, or else the end token, as lm-evaluation-harness has it; and for tokenizers that
    name neither, the token that begins a text.
    """
    named = (tokenizer.named_tokens.get(name, "") for name in ("bos_token", "eos_token"))
    known = (tokenizer.special_ids[name] for name in named if name in tokenizer.special_ids)
    return next(known, tokenizer.begin_id)


def prompt_ids(
    tokenizer: Tokenizer, text: str, begin_token: BeginToken = "auto", *, special_tokens: bool = True
) -> list[int]:
    """The ids of a prompt: a text that the model continues.

    It begins with the begin token once, even if that is written in it. Where nothing else is there to go on from, it
    does so under "auto" for every tokenizer.

    Args:
        tokenizer: of the model.
        text: may be empty.
        begin_token: see `begin_ids`.
        special_tokens: read the names of special tokens in the text as these tokens.

    Raises:
        UserError: the text cannot be encoded, or as `begin_ids`.
    """
    ids = tokenizer.encode(text, allow_special=special_tokens)
    begin = begin_ids(tokenizer, begin_token)
    if not ids and not begin and begin_token == "auto" and tokenizer.begin_id is not None:
        begin = [tokenizer.begin_id]
    return ids if begin and ids[: len(begin)] == begin else begin + ids


def conversation_ids(tokenizer: Tokenizer, ids: list[int], begin_token: BeginToken = "auto") -> list[int]:
    """A rendered conversation with or without a begin token; "auto" keeps what its template wrote.

    Raises:
        UserError: as `begin_ids`.
    """
    if begin_token == "auto" or not ids:
        return ids
    if begin_token == "never" and tokenizer.begin_id is None:
        return ids
    begin = begin_ids(tokenizer, "always")
    rest = ids[len(begin) :] if ids[: len(begin)] == begin else ids
    return begin + rest if begin_token == "always" else rest


def read_as_letters(tokenizer: Tokenizer, text: str, what: str) -> str:
    """A line that tells the user that special tokens named in `text` are read as letters; empty if there are none."""
    names = [name for name in tokenizer.special_ids if name in text]
    if not names:
        return ""
    one = "the name of a special token" if len(names) == 1 else "names of special tokens"
    return f"{what} has {', '.join(names)}, {one}, which the model reads as letters"


def joined_with_next(tokenizer: Tokenizer, prompt: str, what: str) -> str:
    """A line that tells the user that the white space at the end of a prompt is part of longer tokens elsewhere.

    A model rarely saw it as a token of its own before what comes next, such as the end of a line before an indented
    one. Empty if there is none, if no longer token begins with it, or if the prompt has special tokens, as those of a
    conversation end like that in training.
    """
    if not prompt or not prompt[-1].isspace() or any(name in prompt for name in tokenizer.special_ids):
        return ""
    last = tokenizer.token_bytes(tokenizer.encode(prompt)[-1])
    tokens = (tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
    if not any(len(token) > len(last) and token.startswith(last) for token in tokens):
        return ""
    return f"{what} ends with white space, which this tokenizer joins with what follows: it goes on better without"
