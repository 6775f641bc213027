"""The tokenizer that every stage uses."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lit_llm.config import UserError
from lit_llm.config.files import replace_files
from lit_llm.config.notices import tell_once
from lit_llm.tokenizer.alphabet import FALLBACK_TOKENS, byte_level_bytes
from lit_llm.tokenizer.bulk import BytePairEncoder, CharacterEncoder, id_dtype, require_unicode
from lit_llm.tokenizer.chat_template import CHATML_TEMPLATE
from lit_llm.tokenizer.files import NAMED_TOKENS, panics_as_errors, parse_settings, parse_tokenizer, read_text
from lit_llm.tokenizer.tokenizer_kinds import SPACE, Kind, kind_of, puts_space_first, without_prefix_space

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
"""End of a document, padding (never an end of text), and the start and end of a chat turn."""

CHAT_TEMPLATE = "chat_template.jinja"
"""File that transformers keeps the chat template in, instead of in tokenizer_config.json."""

_WOULD_WIN = (CHAT_TEMPLATE, "special_tokens_map.json", "added_tokens.json")
"""Files that transformers believes more than those that `save` writes; what was there before may have left them."""
_APART = "\ue000"
_LONG = 32_768  # characters


class Tokenizer:
    """A byte-level BPE, SentencePiece BPE (Llama 2, Mistral, Gemma) or character tokenizer.

    Args:
        tokenizer: What does the work. Its truncation, padding and dropout are switched off.
        config: The content of a tokenizer_config.json, kept and written again by `save`; None makes one.

    Raises:
        UserError: the tokenizer is of another kind (WordPiece, Unigram).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if dropout := getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None
            tell_once(f"the tokenizer's dropout {dropout:g} is left out: a text has the same tokens each time")
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._state: dict[str, Any] = json.loads(tokenizer.to_str())
        self.kind: Kind = kind_of(self._state)
        added = self._state["added_tokens"]
        self._added = {token["id"]: token["content"] for token in added}
        self.special_ids: dict[str, int] = {token["content"]: token["id"] for token in added if token["special"]}
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._config = config
        # A chat model names its end-of-turn token as eos: the end of a document is looked for by name first.
        self.eot_id: int | None = self._first_special("<|endoftext|>", "<|end_of_text|>", self._configured("eos_token"))
        self.pad_id: int | None = self._first_special("<|pad|>", self._configured("pad_token"))
        self.im_start_id: int | None = self.special_ids.get("<|im_start|>")
        self.im_end_id: int | None = self.special_ids.get("<|im_end|>")
        # What its own rule puts before a text, as Llama's and Gemma's do.
        self.rule_ids: list[int] = self._own_rule()
        # What the first token of a text can be predicted from: that, or what is named so, or the end of the document
        # before.
        named = self._first_special(self._configured("bos_token"))
        self.begin_id: int | None = next((index for index in (*self.rule_ids, named) if index is not None), self.eot_id)
        # Documents that it was made for follow one another in training, each after the end of the one before.
        first_special = {*list(self.special_ids)[: len(SPECIAL_TOKENS)]}
        self.trained_here = first_special == {*SPECIAL_TOKENS} and self._configured("bos_token") is None

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling what it wraps would forget that special-token strings are ordinary text.
        return _restore, (self._tokenizer.to_str(), self._config)

    @property
    def state(self) -> dict[str, Any]:
        """The content of tokenizer.json; do not change it."""
        return self._state

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pairs of tokens that are joined, each as its UTF-8 bytes, in the order in which they were learned."""
        return [(self._spelling(left), self._spelling(right)) for left, right in self._state["model"]["merges"]]

    @property
    def end_of_text(self) -> str | None:
        """The string of the token that ends a document, where there is one."""
        return None if self.eot_id is None else self._added[self.eot_id]

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation, where the tokenizer has one; of several, the default."""
        template = (self._config or {}).get("chat_template")
        if isinstance(template, list):
            return next((entry["template"] for entry in template if entry["name"] == "default"), None)
        return template

    @property
    def named_tokens(self) -> dict[str, str]:
        """The tokens that tokenizer_config.json gives a role, by that role, such as `eos_token`."""
        return {name: token for name in NAMED_TOKENS if (token := self._configured(name)) is not None}

    @cached_property
    def digest(self) -> str:
        """sha256 (hexadecimal) of what determines ids: vocabulary, merges, splitting, normalisation, added tokens."""
        # Options that are off are left out: releases of tokenizers differ in whether they write them.
        model = {key: value for key, value in self._state["model"].items() if value or key in ("vocab", "merges")}
        added = [[token["id"], token["content"], token["special"]] for token in self._state["added_tokens"]]
        parts = [model, self._state["normalizer"], self._state["pre_tokenizer"], sorted(added)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of `text`, with no beginning- or end-of-text added.

        Args:
            text: Any valid Unicode.
            allow_special: Read the strings of special tokens in `text` as those tokens; otherwise they are text like
                any other, so that a document cannot forge a token.

        Raises:
            UserError: the text has a lone surrogate, or a character that a character vocabulary without byte fallback
                lacks.
        """
        if self.kind == "character":
            return self._encode_characters(text, allow_special)
        require_unicode(text)
        tokenizer = self._special_tokenizer if allow_special else self._tokenizer
        with panics_as_errors():
            if len(text) > _LONG:  # `encode` holds the interpreter's lock, so that every other thread would stand still
                return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
            return tokenizer.encode(text, add_special_tokens=False).ids

    def encode_further(self, text: str) -> list[int]:
        """The ids of `text` where it goes on from other text: no space is put before it, as SentencePiece would, and
        GPT-2's splitting with `add_prefix_space`.

        Raises:
            UserError: as `encode`.
        """
        if not puts_space_first(self._state):
            return (self._unprefixed or self).encode(text)
        # A character that is in no merge, so that its ids are the same whatever follows.
        before = self.encode(_APART)
        return self.encode(_APART + text)[len(before) :]

    def extended(self, tokens: Sequence[str], **named: str) -> Tokenizer:
        """A copy with more special tokens, after the ids that are there.

        Args:
            tokens: Those that it lacks are added, in this order.
            named: What tokenizer_config.json is to call some of them, as pad_token="<|pad|>".

        Raises:
            UserError: there is no free id after the existing ones.
        """
        tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        missing = [token for token in tokens if token not in self.special_ids]
        tokenizer.add_special_tokens(missing)
        ids = [index for token in missing if (index := tokenizer.token_to_id(token)) is not None]
        if any(self.token_bytes(index) not in (b"", token.encode()) for index, token in zip(ids, missing, strict=True)):
            raise UserError(f"the tokenizer's ids have gaps, so that {', '.join(missing)} cannot be added after them")
        config = None if self._config is None else {**self._config, **named}
        if config is not None and "added_tokens_decoder" in config:  # wins over tokenizer.json in transformers 4
            entries = {entry["id"]: dict(entry) for entry in json.loads(tokenizer.to_str())["added_tokens"]}
            config["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in entries.values()}
        return Tokenizer(tokenizer, config)

    def encode_bulk(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """The ids of each text, as `encode` gives them without special tokens, on every core.

        Args:
            texts: Any number of texts of any length.
            num_threads: At most so many threads; None uses every core. (The slower library, which takes over where
                the faster does not give the same ids, has its own pool: RAYON_NUM_THREADS.)

        Returns:
            One array per text, uint16 where the vocabulary fits, else uint32.

        Raises:
            UserError: as `encode`.
        """
        if self.kind == "character":
            return [self._character_encoder.encode(text) for text in texts]
        if self.kind == "sentencepiece":
            for text in texts:
                require_unicode(text)
            with panics_as_errors():
                encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(encoding.ids, dtype=id_dtype(self.vocab_size)) for encoding in encodings]
        with panics_as_errors():
            return self._byte_pair_encoder.encode(texts, num_threads)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of `ids`; each invalid UTF-8 sequence becomes U+FFFD.

        Ids that no token has (a model's vocabulary may be padded) stand for nothing. The space that a SentencePiece
        tokenizer puts before a text is taken off again.
        """
        text = self._spell(ids, skip_special).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if puts_space_first(self._state) else text

    def stream_decoder(self, skip_special: bool = False) -> StreamDecoder:
        """Turns ids into text one at a time; the pieces joined are what `decode` gives.

        With a SentencePiece tokenizer the pieces go on from a text, and so keep the space before the first word.
        """
        return StreamDecoder(self, skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that one id stands for; for a special token, its name's; for an id without token, none."""
        return self._bytes_of_ids.get(int(token_id), b"")

    def byte_lengths(self) -> np.ndarray:
        """How many bytes of source text each id stands for: int64 [vocab_size], 0 for special tokens.

        The lengths of a text's ids sum to the length of its UTF-8, so they turn a loss per token into bits per byte.
        (Where a foreign tokenizer changes its input, as Qwen's NFC and SentencePiece's first space do, to the length
        of the changed text.)
        """
        return self._byte_lengths

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, a folder that `AutoTokenizer.from_pretrained` loads.

        Each file is replaced at once: a reader finds the old or the new one, never half of it. What another tokenizer
        has left there and would win over them is deleted.

        Raises:
            UserError: the disk is full, or the folder cannot be written; then nothing is replaced.
        """
        folder = Path(folder)
        config = self._default_config() if self._config is None else self._config
        if not config.get("chat_template") and self.im_start_id is not None and self.im_end_id is not None:
            config = {**config, "chat_template": CHATML_TEMPLATE}
        files = {
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            "tokenizer.json": self._tokenizer.to_str(pretty=True),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_files({folder / name: text for name, text in files.items()})
        except OSError as error:
            where = error.filename or folder
            raise UserError(f"cannot write {where}: {error.strerror}; what was there before is as it was") from error
        for name in _WOULD_WIN:
            (folder / name).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a folder that `save` or Hugging Face wrote (BPE as GPT-2's, Llama's, Qwen's, Mistral's, Gemma's).

        Raises:
            UserError: the folder or its tokenizer.json is missing, broken, or of another kind.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such tokenizer folder; train one first, or correct the path")
        path = folder / "tokenizer.json"
        if not path.is_file() and (folder / "tokenizer.model").is_file():
            raise UserError(
                f"{folder} has its tokenizer as tokenizer.model only, which is not read; write a tokenizer.json with "
                f"transformers: AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
            )
        tokenizer = parse_tokenizer(read_text(path), path)
        config_path = folder / "tokenizer_config.json"
        config = None
        if config_path.is_file():
            config = parse_settings(read_text(config_path), config_path)
        if (folder / CHAT_TEMPLATE).is_file():
            config = {**(config or {}), "chat_template": read_text(folder / CHAT_TEMPLATE)}
        try:
            return cls(tokenizer, config)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_gpt2_files(cls, vocab_path: str | Path, merges_path: str | Path, add_special: bool = False) -> Tokenizer:
        """GPT-2's own tokenizer from its vocab.json and merges.txt.

        Args:
            vocab_path: Token to id.
            merges_path: One merge per line.
            add_special: Add the special tokens that GPT-2 has not, after its 50,257 ids.

        Raises:
            UserError: a file is missing or broken.
        """
        for path in (vocab_path, merges_path):
            read_text(Path(path))
        try:
            model = models.BPE.from_file(str(vocab_path), str(merges_path))
        except Exception as error:  # the only type that tokenizers raises
            raise UserError(f"{vocab_path}, {merges_path}: not a BPE vocabulary and its merges ({error})") from None
        return cls(byte_level(model, SPECIAL_TOKENS if add_special else SPECIAL_TOKENS[:1]))

    @cached_property
    def _special_tokenizer(self) -> tokenizers.Tokenizer:
        # A copy, as the switch belongs to the tokenizer and other threads may be encoding ordinary text.
        tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.encode_special_tokens = False
        return tokenizer

    @cached_property
    def _unprefixed(self) -> Tokenizer | None:
        state = without_prefix_space(self._state)
        return None if state is None else Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)), self._config)

    @cached_property
    def _character_encoder(self) -> CharacterEncoder:
        model = self._state["model"]
        return CharacterEncoder(model["vocab"], model["byte_fallback"], id_dtype(self.vocab_size))

    @cached_property
    def _byte_pair_encoder(self) -> BytePairEncoder:
        return BytePairEncoder(self._tokenizer, self._state, id_dtype(self.vocab_size))

    @cached_property
    def _bytes_of_ids(self) -> dict[int, bytes]:
        table = {
            index: self._spelling(token)
            for token, index in self._state["model"]["vocab"].items()
            if index not in self._added
        }
        table.update({index: content.encode() for index, content in self._added.items()})
        return table

    def _spelling(self, token: str) -> bytes:
        """The bytes of text that an entry of the vocabulary stands for."""
        if self.kind == "bpe":
            return byte_level_bytes(token)
        if token in FALLBACK_TOKENS:
            return bytes([FALLBACK_TOKENS[token]])
        return (token.replace(SPACE, " ") if self.kind == "sentencepiece" else token).encode()

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for index, spelling in self._bytes_of_ids.items():
            lengths[index] = len(spelling)
        lengths[list(self.special_ids.values())] = 0
        lengths.flags.writeable = False
        return lengths

    @cached_property
    def _special_set(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    def _spell(self, ids: Iterable[int], skip_special: bool) -> bytes:
        table, skipped = self._bytes_of_ids, self._special_set if skip_special else ()
        return b"".join(table.get(index, b"") for index in map(int, ids) if index not in skipped)

    def _encode_characters(self, text: str, allow_special: bool) -> list[int]:
        if not allow_special or not self.special_ids:
            return self._character_encoder.encode(text).tolist()
        # Longest first: where one special token begins another, tokenizers takes the longer.
        names = sorted(self.special_ids, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            if part in self.special_ids:
                ids.append(self.special_ids[part])
            else:
                ids.extend(self._character_encoder.encode(part).tolist())
        return ids

    def _configured(self, name: str) -> str | None:
        value = (self._config or {}).get(name)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    def _own_rule(self) -> list[int]:
        """The ids that the post-processor puts before a text; like transformers, ignore tokenizer_config.json here."""
        encoded = self._tokenizer.encode("x", add_special_tokens=True)
        added = takewhile(lambda pair: pair[1], zip(encoded.ids, encoded.special_tokens_mask, strict=True))
        return [index for index, _ in added]

    def _first_special(self, *names: str | None) -> int | None:
        return next((self.special_ids[name] for name in names if name in self.special_ids), None)

    def _default_config(self) -> dict[str, Any]:
        names: dict[int | None, str] = {index: name for name, index in self.special_ids.items()}
        main = {"eos_token": names.get(self.eot_id), "pad_token": names.get(self.pad_id)}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": bool(self.rule_ids),
            "add_eos_token": False,
            "bos_token": names.get(self.rule_ids[0]) if self.rule_ids else None,
            **main,
            "additional_special_tokens": [name for name in self.special_ids if name not in main.values()],
        }


class StreamDecoder:
    """Ids to text as they come, a character at a time when its last byte is there.

    Args:
        tokenizer: Whose ids they are.
        skip_special: Leave special tokens out.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Take one more id; returns the text that it completes, which may be empty."""
        return self._decoder.decode(self._tokenizer._spell((token_id,), self._skip_special))

    def flush(self) -> str:
        """End the text: returns U+FFFD where the last character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)


def byte_level(model: models.BPE, special_tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """A byte-level tokenizer with GPT-2's split and no prefix space, its special tokens after the model's ids."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special_tokens))
    return tokenizer


def _restore(text: str, config: dict[str, Any] | None) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), config)
