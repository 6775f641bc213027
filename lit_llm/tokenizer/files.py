"""Reading the files of a tokenizer folder, with one readable error for whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from lit_llm.config import UserError
from lit_llm.config.json_text import parse_json
from lit_llm.config.model import MOST
from lit_llm.config.serialization import shown
from lit_llm.tokenizer.patterns import check_patterns

MOST_BYTES = 256 * 2**20
"""Size of a tokenizer's file at most; Gemma's, of 262,144 tokens, has 33 MB."""
MOST_ADDED_TOKENS = 100_000
"""Tokens beside the vocabulary at most: each is looked for in every text."""

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What tokenizer_config.json calls a token by, and a chat template may."""


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        UserError: it is missing, or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: more than {MOST_BYTES:,} bytes; that is no file of a tokenizer")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def parse_tokenizer(text: str, path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that the content of a tokenizer.json describes.

    Raises:
        UserError: it describes none, or one that could hang the process or fill its memory; the error names `path`.
    """
    try:
        state = parse_json(text)
        if not isinstance(state, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UserError(f"{path}: not a tokenizer ({error}); write the folder again") from None
    added = state.get("added_tokens")
    if isinstance(added, list) and len(added) > MOST_ADDED_TOKENS:
        raise UserError(f"{path}: {len(added):,} added tokens; there may be {MOST_ADDED_TOKENS:,}")
    try:
        check_patterns(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    try:
        with panics_as_errors():
            tokenizer = tokenizers.Tokenizer.from_str(text)
            beginning = tokenizer.encode("", add_special_tokens=True).ids
    except Exception as error:  # the only type that tokenizers raises
        raise UserError(f"{path}: not a tokenizer ({' '.join(str(error).split())}); write the folder again") from None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True).values()
    largest = max(vocabulary, default=-1)
    if largest >= MOST["vocab_size"]:
        raise UserError(f"{path}: a token has the id {largest}; ids must be below {MOST['vocab_size']:,}")
    if not set(beginning) <= set(vocabulary):
        raise UserError(f"{path}: its post_processor adds the ids {shown(beginning)}, which are not all of tokens")
    return tokenizer


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of `tokenizers`, which is no Exception, into a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"the tokenizer fails on this text ({reason}); use another tokenizer") from None


def parse_settings(text: str, path: Path) -> dict[str, Any]:
    """The content of a tokenizer_config.json.

    Raises:
        UserError: it is no JSON object, or what is read of it is of another type; the error names `path`.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: broken JSON ({error}); write the folder again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; write the folder again")
    for name in NAMED_TOKENS:
        token = values.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if content is not None and not isinstance(content, str):
            raise UserError(f"{path}: {name} is {shown(token)}; it must be the text of a token")
    check_template(values.get("chat_template"), path)
    added = values.get("added_tokens_decoder", {})
    if not isinstance(added, dict):
        raise UserError(f"{path}: added_tokens_decoder is {shown(added)}; it must be a group of tokens")
    return values


def check_template(template: Any, path: Path) -> None:
    """Refuse a chat_template that is neither text, nor a list of named ones, nor null.

    Raises:
        UserError: it is something else; the error names `path`.
    """
    named = template if isinstance(template, list) else []
    strange = [
        each
        for each in named
        if not (isinstance(each, dict) and all(isinstance(each.get(key), str) for key in ("name", "template")))
    ]
    if strange or not isinstance(template, str | list | None):
        raise UserError(
            f"{path}: chat_template is {shown(template)}; it must be text, or a list of texts, each with a name"
        )
