"""Texts and shards as windows of tokens, in which every token is a target once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_llm.config import CorpusConfig, RemoteConfig, UserError
from lit_llm.config.notices import tell_once
from lit_llm.config.remote import is_url
from lit_llm.data.corpus.documents import Corpus, Document
from lit_llm.data.corpus.remote_shards import open_split
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.tokenizer import Tokenizer

SAMPLE_BYTES = 4 * 2**20
"""Number of bytes of each text that are kept for the compressors to be compared with."""

_READ_TOKENS = 1 << 22


@dataclass(frozen=True)
class Window:
    """A window of tokens, which the model reads at once.

    Attributes:
        tokens: int64 [t].
        targets: what follows each of them [t], IGNORE_INDEX where it is scored in another window or not at all.
        documents: number of the document that each target belongs to [t].
    """

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class WindowOptions:
    """How documents are cut into windows, and how many of them.

    Attributes:
        context: most tokens of a window.
        stride: tokens that it is moved on by; from 1 to context.
        max_documents: leave out what follows the first so many documents; None: nothing.
        max_tokens: score at most so many tokens; None: all.
    """

    context: int
    stride: int
    max_documents: int | None = None
    max_tokens: int | None = None

    @property
    def reads_all(self) -> bool:
        """Whether all documents and tokens of a source are read."""
        return self.max_documents is None and self.max_tokens is None


class TextSource:
    """Documents of text, each alone, behind the token that the first one of a text is predicted from.

    Args:
        path: a file, folder, glob or hf:NAME[:CONFIG[:SPLIT]].
        text_field: field of a row that holds the text.
        end_of_text: predict the end-of-text token after each document, too.
        begin_token: whether there is such a token; without, the first token of a document is not scored.

    Attributes:
        name: the path.
        num_bytes: UTF-8 bytes of the text whose tokens were given out in the last pass.
        sample: the first of them.

    Raises:
        UserError: there is no such file.
    """

    kind = "texts"
    mask_id: int | None = None

    def __init__(self, path: str, text_field: str = "text", end_of_text: bool = True, begin_token: bool = True) -> None:
        self.name = path
        self.end_of_text, self.begin_token = end_of_text, begin_token
        options = CorpusConfig(path, text_field, validation_fraction=0.0)
        with _options_renamed():
            self._corpus = Corpus(options)
        if path.startswith("hf:") and path.count(":") < 3:
            tell_once(f"texts {path}: its split train is read; write hf:NAME::test for the split test")
        self.num_bytes, self.sample, self._room = 0, bytearray(), 0

    @property
    def total_bytes(self) -> int | None:
        """Size of the files in bytes, or None where it does not say how much text there is."""
        return self._corpus.size_bytes()

    def beginning(self, length: int) -> str:
        """Return the first characters of the documents; this reads them in a pass of its own.

        Raises:
            UserError: something cannot be read, or no document has text.
        """
        text = ""
        with _options_renamed():
            for piece in self._corpus.documents():
                text += piece.text[: length - len(text)]
                if len(text) == length:
                    break
        return text

    def say_what_was_met(self) -> None:
        """Say on stderr what was noticed in the documents of the last pass; see `CorpusCounts.say`."""
        self._corpus.counts.say()

    def windows(self, tokenizer: Tokenizer, options: WindowOptions) -> Iterator[Window]:
        """Yield the windows of each document in turn.

        Raises:
            UserError: something cannot be read, no document has text, or its text cannot be encoded.
        """
        self.num_bytes, self.sample = 0, bytearray()
        self._room = -1 if options.max_tokens is None else options.max_tokens
        with _options_renamed():
            self._corpus.end_of_text = tokenizer.end_of_text
            pieces = self._corpus.documents()
            for number, first in enumerate(pieces):
                ids = self._ids(first, pieces, tokenizer)
                for _, tokens, targets in sliding_windows(ids, options.context, options.stride):
                    yield Window(tokens, targets, np.full(len(targets), number))
                if self._room == 0 or number + 1 == options.max_documents:
                    return

    def _ids(self, piece: Document, more: Iterator[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yield the ids of a document whose first piece is `piece`, until it ends or `max_tokens` is reached."""
        lengths = tokenizer.byte_lengths()
        begin = tokenizer.begin_id if self.begin_token else None
        if begin is not None:
            yield np.array([begin])
        unread = begin is None  # then nothing comes before the first token, to predict it from
        while self._room:
            whole = tokenizer.encode_bulk([piece.text])[0].astype(np.int64)
            ids = whole if self._room < 0 else whole[: self._room + unread]
            spelled = piece.text.encode()
            if len(ids) < len(whole):
                spelled = spelled[: int(lengths[ids].sum())]
            self.num_bytes += len(spelled) - (int(lengths[ids[0]]) if unread and len(ids) else 0)
            self.sample += spelled[: SAMPLE_BYTES - len(self.sample)]
            self._take(len(ids) - (unread and len(ids) > 0))
            unread = unread and not len(ids)
            yield ids
            if piece.final:
                break
            piece = next(more)
        if piece.final and self.end_of_text and self._room and tokenizer.eot_id is not None:
            self._take(1)
            yield np.array([tokenizer.eot_id])

    def _take(self, tokens: int) -> None:
        if self._room > 0:
            self._room -= tokens


class ShardSource:
    """A split of shards, read as pretraining reads it: one stream, in which windows go on over the ends of documents.

    Nothing comes before the first token, which therefore is not scored.

    Args:
        folder: written by prepare_data, or its URL; or the folder of a split itself.
        split: which one.
        mask_documents: keep attention and positions inside each document of a window; its first token is not scored.

    Attributes:
        name: the folder of the split.
        tokens: what it holds.

    Raises:
        UserError: there are no such shards, or they are not as their manifest says.
    """

    kind = "shards"

    def __init__(self, folder: str, split: str, mask_documents: bool = False) -> None:
        self.tokens = self._open(folder, split)
        self.name = str(self.tokens.folder)
        self.mask_id = self.tokens.manifest.eot_id if mask_documents else None

    @staticmethod
    def _open(folder: str, split: str) -> ShardedTokens:
        if is_url(folder):
            tokens = open_split(folder, split, RemoteConfig())
            if tokens is None:
                raise UserError(f"{folder} has no {split} split")
            return tokens
        path = Path(folder)
        if not (path / "manifest.json").is_file():
            splits = [each for each in ("train", "validation", "test") if (path / each / "manifest.json").is_file()]
            if splits and split not in splits:
                raise UserError(f"{folder} has no {split} split; set split to {' or '.join(splits)}")
            path = path / split
        return ShardedTokens(path)

    @property
    def total_bytes(self) -> int:
        """Number of UTF-8 bytes of the text that was encoded."""
        return self.tokens.manifest.bytes

    def windows(self, tokenizer: Tokenizer, options: WindowOptions) -> Iterator[Window]:
        """Yield the windows of the stream.

        Raises:
            UserError: the shards were encoded with another tokenizer.
        """
        self.tokens.check_tokenizer(tokenizer)
        eot, before, last, last_start = self.tokens.manifest.eot_id, 0, np.empty(0, np.int64), 0
        for start, tokens, targets in sliding_windows(self._ids(options), options.context, options.stride):
            before += int(np.count_nonzero(last[: start - last_start] == eot))
            last, last_start = tokens, start
            ends = tokens == eot
            if self.mask_id is not None:
                targets[ends] = IGNORE_INDEX
            yield Window(tokens, targets, before + np.cumsum(ends))

    def _ids(self, options: WindowOptions) -> Iterator[np.ndarray]:
        length, eot = len(self.tokens), self.tokens.manifest.eot_id
        if options.max_tokens is not None:
            length = min(length, options.max_tokens + 1)
        documents = 0
        for start in range(0, length, _READ_TOKENS):
            ids = self.tokens.read(start, min(_READ_TOKENS, length - start)).astype(np.int64)
            if options.max_documents is not None:
                ends = np.flatnonzero(ids == eot)
                if documents + len(ends) >= options.max_documents:
                    yield ids[: ends[options.max_documents - documents - 1] + 1]
                    return
                documents += len(ends)
            yield ids


Source = TextSource | ShardSource


@contextmanager
def _options_renamed() -> Iterator[None]:
    """Rename the corpus reader's options in its error messages to the names that they have in evaluate.py."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("corpus.path", "texts").replace("corpus.", "")) from error


def sliding_windows(
    pieces: Iterable[np.ndarray], context: int, stride: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Cut a text into windows in which every token but the first is a target exactly once.

    Args:
        pieces: the ids, in order.
        context: most tokens of a window.
        stride: tokens that it is moved on by, from 1 to context.

    Yields:
        Place of a window's first token, its tokens [t], and the targets [t], IGNORE_INDEX where an earlier window has
        them.
    """
    rest, start, done = np.empty(0, np.int64), 0, 0

    def window(length: int) -> tuple[int, np.ndarray, np.ndarray]:
        targets = rest[1 : length + 1].copy()
        targets[:done] = IGNORE_INDEX
        return start, rest[:length], targets

    for piece in pieces:
        rest = np.concatenate([rest, piece])
        while len(rest) > context:
            yield window(context)
            rest, start, done = rest[stride:], start + stride, context - stride
    if len(rest) - 1 > done:
        yield window(len(rest) - 1)
