"""What a tokenizer was trained on, so that it can be told when it has read text that is held out from the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_llm.config import CorpusConfig, UserError, from_plain, to_plain
from lit_llm.config.files import write_json
from lit_llm.config.json_text import parse_json
from lit_llm.config.serialization import check_types
from lit_llm.data.corpus.documents import Corpus
from lit_llm.data.corpus.splits import wanted_splits
from lit_llm.data.sources.files import content_suffix, find_files
from lit_llm.data.sources.hub import HubDataset
from lit_llm.data.sources.rows import ROW_SUFFIXES

RECORD = "training.json"
"""Name of the file in a tokenizer's folder."""


@dataclass
class TokenizerRecord:
    """What a tokenizer was trained on."""

    tokenizer_digest: str
    """`Tokenizer.digest` of the tokenizer that this is said of."""
    corpus: CorpusConfig
    """Options of the corpus, of which the train split was read; "auto" is replaced by what it came to."""
    documents: int
    """Documents that were read."""
    bytes: int
    """UTF-8 bytes of their text that were read."""

    def save(self, folder: Path) -> None:
        """Write the record into the tokenizer's folder.

        Raises:
            UserError: the file cannot be written.
        """
        write_json(folder / RECORD, to_plain(self))

    @classmethod
    def load(cls, folder: Path, tokenizer_digest: str) -> TokenizerRecord | None:
        """The record in a tokenizer's folder; None where there is none, or it is of another tokenizer.

        Raises:
            UserError: the record is damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            values = parse_json(path.read_bytes())
            record = from_plain(cls, values)
            check_types(record, "")
            check_types(record.corpus, "corpus.")
        except (UserError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it, or train the tokenizer again") from None
        return record if record.tokenizer_digest == tokenizer_digest else None

    def held_out_text_read(self, corpus: Corpus) -> str | None:
        """Why the tokenizer may have been trained on text that `corpus` holds out from training, in words.

        The train split of one corpus and the held-out ones of another are apart only where both are split in the same
        way, and the other holds out no more. None where that is so, or the two have no text in common.
        """
        ours, theirs = corpus.config, self.corpus
        if len(wanted_splits(ours)) == 1 or not _have_text_in_common(ours, theirs):
            return None
        differences = []
        if _held_out(theirs) < _held_out(ours):
            names = ("validation_fraction", "test_fraction")
            differences += [(name, getattr(theirs, name), getattr(ours, name)) for name in names]
        if _held_out(theirs) and theirs.split != corpus.split:
            differences.append(("split", theirs.split, corpus.split))
        if corpus.split == "hash" and _keys_differ(ours, theirs):
            differences.append(("path", theirs.path, ours.path))
        if ours.document_separator != theirs.document_separator:
            differences.append(("document_separator", theirs.document_separator, ours.document_separator))
        told = [f"corpus.{name} {there} there, {here} here" for name, there, here in differences if there != here]
        return ", ".join(told) or None


def _held_out(config: CorpusConfig) -> float:
    return config.validation_fraction + config.test_fraction


def _have_text_in_common(ours: CorpusConfig, theirs: CorpusConfig) -> bool:
    if ours.path == theirs.path:
        return True
    if ours.path.startswith("hf:") or theirs.path.startswith("hf:"):
        datasets = [HubDataset.parse(each.path, "corpus.path") for each in (ours, theirs) if each.path[:3] == "hf:"]
        return len(datasets) == 2 and datasets[0] == datasets[1]
    try:
        files = [{file.resolve() for file in find_files(each.path, "corpus.path")[1]} for each in (ours, theirs)]
    except UserError:  # what the tokenizer was trained on is not there any more
        return False
    return not files[0].isdisjoint(files[1])


def _keys_differ(ours: CorpusConfig, theirs: CorpusConfig) -> bool:
    """Whether a hash may put a file that both corpora have into another split, as its path from their roots differs."""
    if ours.path == theirs.path or ours.path.startswith("hf:"):
        return False
    (our_root, files, _), (their_root, _, _) = (find_files(each.path, "corpus.path") for each in (ours, theirs))
    has_texts = any(content_suffix(file) not in ROW_SUFFIXES for file in files)
    return has_texts and our_root.resolve() != their_root.resolve()
