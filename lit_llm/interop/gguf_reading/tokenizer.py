"""The tokenizer that the metadata of a GGUF file describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.serialization import shown
from lit_llm.interop.gguf_reading.container import GgufFile, open_gguf
from lit_llm.interop.gguf_reading.pre_tokenizers import SPLITTINGS
from lit_llm.interop.gguf_reading.scores import merges_of_scores
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.alphabet import BYTE_TO_CHARACTER, CHARACTER_TO_BYTE, FALLBACK_TOKENS
from lit_llm.tokenizer.files import check_template, parse_tokenizer
from lit_llm.tokenizer.tokenizer import SPECIAL_TOKENS
from lit_llm.tokenizer.tokenizer_kinds import SPACE

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_KINDS = {"gpt2": "byte-level BPE", "llama": "SentencePiece's BPE"}
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_GEMMA = ("gemma2", "gemma3")


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """Build the tokenizer of a GGUF file.

    Raises:
        UserError: the file is damaged or has no tokenizer, or one of a kind or with a way to split text that is not
            read.
    """
    fields = _Fields(open_gguf(path))
    kind = fields.values.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        kinds = ", ".join(f"{name} ({what})" for name, what in _KINDS.items())
        raise UserError(f"{path} has a tokenizer of kind {shown(kind)}; what is read is {kinds}")
    state = _byte_level(fields) if kind == "gpt2" else _sentencepiece(fields)
    tokenizer = parse_tokenizer(json.dumps(state), path)
    try:
        return Tokenizer(tokenizer, _config(fields))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class _Fields:
    """What a file says of its tokenizer, checked."""

    def __init__(self, file: GgufFile) -> None:
        self.path = file.path
        self.values = file.values
        self.architecture = file.values.get("general.architecture")
        self.tokens: list[str] = self.listed("tokens", str)
        if not self.tokens:
            raise UserError(f"{self.path} has no tokenizer (tokenizer.ggml.tokens)")
        self.types: list[int] = self.listed("token_type", int, len(self.tokens)) or [_NORMAL] * len(self.tokens)

    def listed(self, name: str, kind: type, length: int | None = None) -> list[Any]:
        """Take a list of the tokenizer's; an empty one where there is none."""
        values = self.values.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(values, list) or (values and not isinstance(values[0], kind)):
            raise UserError(f"{self.path} is damaged: tokenizer.ggml.{name} is no list of {kind.__name__}")
        if values and length is not None and len(values) != length:
            raise UserError(f"{self.path} is damaged: {length:,} tokens, and {len(values):,} in tokenizer.ggml.{name}")
        return values

    def switch(self, name: str, default: bool) -> bool:
        value = self.values.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path} is damaged: tokenizer.ggml.{name} is {shown(value)}, not true or false")
        return value

    def token(self, role: str) -> str | None:
        """Give the token of a role, where there is one."""
        index = self.values.get(f"tokenizer.ggml.{role}_token_id")
        if index is None or index in (-1, 2**32 - 1):
            return None
        if type(index) is not int or not 0 <= index < len(self.tokens):
            raise UserError(
                f"{self.path} is damaged: tokenizer.ggml.{role}_token_id is {shown(index)}, and there are "
                f"{len(self.tokens):,} tokens"
            )
        return self.tokens[index]

    def merges(self) -> list[list[str]]:
        pairs = [merge.split(" ") for merge in self.listed("merges", str)]
        wrong = next((pair for pair in pairs if len(pair) != 2), None)
        if wrong is not None:
            raise UserError(f"{self.path} is damaged: the merge {shown(' '.join(wrong))} is not of two tokens")
        return pairs

    def is_filler(self, index: int) -> bool:
        """Whether a token only names a row of the embedding that no token has, as the writers of GGUF do."""
        return self.types[index] == _UNUSED and self.tokens[index] == f"[PAD{index}]"


def _byte_level(fields: _Fields) -> dict[str, Any]:
    name = fields.values.get("tokenizer.ggml.pre", "gpt-2" if fields.architecture == "gpt2" else None)
    splitting = SPLITTINGS.get(name) if isinstance(name, str) else None
    if splitting is None:
        raise UserError(
            f"{fields.path}: how its tokenizer splits text (tokenizer.ggml.pre) is {shown(name)}; what is read is "
            f"{', '.join(SPLITTINGS)}"
        )
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(fields.tokens):
        if fields.types[index] not in (_CONTROL, _USER_DEFINED) and not fields.is_filler(index):
            plain = all(character in CHARACTER_TO_BYTE for character in token)
            token = token if plain else "".join(BYTE_TO_CHARACTER[byte] for byte in token.encode())
        elif fields.is_filler(index):
            continue
        vocabulary.setdefault(token, index)
    vocabulary = _without_last_added(fields, vocabulary)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": splitting.ignore_merges,
        "vocab": vocabulary,
        "merges": fields.merges(),
    }
    return {
        **_common(fields, splitting.begins),
        "normalizer": None if splitting.normal_form is None else {"type": splitting.normal_form},
        "pre_tokenizer": splitting.pre_tokenizer(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }


def _without_last_added(fields: _Fields, vocabulary: dict[str, int]) -> dict[str, int]:
    """Leave out the added tokens after all others, which in a tokenizer.json stand beside the vocabulary."""
    end = len(vocabulary)
    while end and fields.types[end - 1] in (_CONTROL, _USER_DEFINED):
        end -= 1
    kept = {token: index for token, index in vocabulary.items() if index < end}
    return kept if len(kept) == end else vocabulary  # else they would get other ids


def _sentencepiece(fields: _Fields) -> dict[str, Any]:
    """Spaces stand for themselves in what users defined, and as ▁ everywhere else."""
    tokens = [
        token.replace(" ", SPACE) if kind == _USER_DEFINED else token
        for token, kind in zip(fields.tokens, fields.types, strict=True)
    ]
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if not fields.is_filler(index):
            vocabulary.setdefault(token, index)
    merges = fields.merges()
    if not merges:
        scores = fields.listed("scores", float, len(tokens))
        # the scores of Gemma's are not those that it was made with; the order of its tokens is
        scores = [float(-index) for index in range(len(tokens))] if fields.architecture in _GEMMA else scores
        if not scores:
            raise UserError(f"{fields.path} is damaged: its tokenizer has neither merges nor scores")
        joined = [kind in (_NORMAL, _USER_DEFINED) for kind in fields.types]
        merges = merges_of_scores(vocabulary, [(tokens[i], scores[i]) for i, each in enumerate(joined) if each])
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": fields.token("unknown"),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": all(token in vocabulary for token in FALLBACK_TOKENS),
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    first = fields.switch("add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepended = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if first:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **_common(fields, begins=True),
        "normalizer": prepended if first else spaces,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _common(fields: _Fields, begins: bool) -> dict[str, Any]:
    """Write the parts of a tokenizer.json that both kinds have."""
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": fields.types[index] == _CONTROL,
        }
        for index, token in enumerate(fields.tokens)
        if fields.types[index] in (_CONTROL, _USER_DEFINED) and token.strip(" ")
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _post_processor(fields, begins),
    }


def _post_processor(fields: _Fields, begins: bool) -> dict[str, Any] | None:
    """Write the rule of which tokens stand before and after a text."""
    begin = fields.token("bos") if fields.switch("add_bos_token", begins) else None
    end = fields.token("eos") if fields.switch("add_eos_token", False) else None
    if begin is None and end is None:
        return None

    def around(*names: str) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            tokens = [{"SpecialToken": {"id": token, "type_id": number}} for token in (begin, end) if token is not None]
            text = {"Sequence": {"id": name, "type_id": number}}
            pieces += [*tokens[: begin is not None], text, *tokens[len(tokens) - (end is not None) :]]
        return pieces

    special = {
        token: {"id": token, "ids": [fields.tokens.index(token)], "tokens": [token]}
        for token in (begin, end)
        if token is not None
    }
    return {"type": "TemplateProcessing", "single": around("A"), "pair": around("A", "B"), "special_tokens": special}


def _config(fields: _Fields) -> dict[str, Any]:
    """Write the content of the tokenizer_config.json."""
    roles = {name: fields.token(role) for name, role in _ROLES.items()}
    if set(SPECIAL_TOKENS) <= set(fields.tokens) and not fields.switch("add_bos_token", False):
        roles["bos_token"] = None  # of a tokenizer trained here, whose texts begin after the end of another one
    template = fields.values.get("tokenizer.chat_template")
    check_template(template, fields.path)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": fields.switch("add_bos_token", False),
        "add_eos_token": fields.switch("add_eos_token", False),
        **roles,
        **({} if template is None else {"chat_template": template}),
    }
