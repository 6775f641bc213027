"""Measuring tokenizers on texts, by corpus and by language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lit_llm.config import CorpusConfig, TokenizerEvaluationConfig, UserError
from lit_llm.config.files import write_json
from lit_llm.config.progress import progress
from lit_llm.data.corpus.documents import Corpus
from lit_llm.data.corpus.tokenizer_record import TokenizerRecord
from lit_llm.data.sources.files import content_suffix, find_files
from lit_llm.data.sources.rows import ROW_SUFFIXES, iterate_rows
from lit_llm.evaluation.tables import markdown_table
from lit_llm.evaluation.tokenizer_scores import TokenizerScores
from lit_llm.interop import load_tokenizer
from lit_llm.tokenizer import Tokenizer

_AT_ONCE = 256  # documents

Group = tuple[str, str | None]
"""A corpus, and a language in it; None: all of it."""


@dataclass
class TokenizerEvaluation:
    """What was measured.

    Attributes:
        scores: of each tokenizer, by its folder, and in it of each corpus and language.
        notes: lines about what a reader should know.
    """

    scores: dict[str, dict[Group, TokenizerScores]]
    notes: list[str]

    @property
    def markdown(self) -> str:
        """The numbers as a table: a corpus or language has a line for each tokenizer."""
        rows = []
        for group in next(iter(self.scores.values())):
            for name, of_groups in self.scores.items():
                rows.append([_name(group), name, *_cells(of_groups[group].numbers())])
        header = ["texts", "tokenizer", "bytes/token", "tokens/word", "vocabulary used", "parts of characters"]
        return markdown_table([*header, "unknown", "tokens"], rows, aligned=True)

    def numbers(self) -> dict[str, Any]:
        """Everything, for JSON: tokenizer, corpus and language by their names; the language "" is all of a corpus."""
        return {
            name: [{"texts": path, "language": language or "", **scores.numbers()} for (path, language), scores in each]
            for name, each in ((name, of_groups.items()) for name, of_groups in self.scores.items())
        }


def evaluate_tokenizer(config: TokenizerEvaluationConfig) -> TokenizerEvaluation:
    """Measure a tokenizer and others on the same texts; write the numbers to `config.output` where that is given.

    Raises:
        UserError: there are no texts, or no such tokenizer; or a text cannot be read, or not be encoded.
    """
    if not config.texts:
        raise UserError("texts is empty; give corpora to measure on, as --texts '[held_out.txt]'")
    folders = list(dict.fromkeys([config.tokenizer, *config.against]))
    tokenizers = {folder: load_any(folder) for folder in folders}
    scores: dict[str, dict[Group, TokenizerScores]] = {folder: {} for folder in folders}
    for path in dict.fromkeys(config.texts):
        for group, texts in _batches(path, config):
            for folder, tokenizer in tokenizers.items():
                try:
                    scores[folder].setdefault(group, TokenizerScores(tokenizer)).add(texts)
                except UserError as error:
                    raise UserError(f"{folder} cannot encode {path}: {error}") from error
    result = TokenizerEvaluation(
        {folder: _with_sums(of_groups, config.texts, tokenizers[folder]) for folder, of_groups in scores.items()},
        [line for folder in folders for line in _trained_on(Path(folder), tokenizers[folder], config.texts)],
    )
    changed = {folder: sum(each.changed for each in scores[folder].values()) for folder in folders}
    result.notes += [
        f"{folder} does not spell {number:,} documents as they were" for folder, number in changed.items() if number
    ]
    if config.output is not None:
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.output), {"notes": result.notes, "tokenizers": result.numbers()})
    return result


def load_any(folder: str) -> Tokenizer:
    """The tokenizer of a folder; GPT-2's own, where it has vocab.json and merges.txt alone.

    Raises:
        UserError: there is none.
    """
    path = Path(folder)
    files = path / "vocab.json", path / "merges.txt"
    if not (path / "tokenizer.json").is_file() and all(file.is_file() for file in files):
        return Tokenizer.from_gpt2_files(*files)
    return load_tokenizer(path)


def _batches(path: str, config: TokenizerEvaluationConfig) -> Iterator[tuple[Group, list[str]]]:
    """Some texts of one language at a time, until `max_bytes` of the corpus have been read; the last one is cut."""
    left = config.max_bytes
    with progress(f"reading {path}", config.max_bytes, unit="bytes") as advance:
        documents = _documents(path, config)
        while some := list(islice(documents, _AT_ONCE)):
            by_language: dict[str | None, list[str]] = {}
            for language, text in some:
                encoded = text.encode(errors="surrogatepass")
                if left is not None and len(encoded) >= left:
                    encoded, left = _begin(encoded, left), 0
                elif left is not None:
                    left -= len(encoded)
                advance(len(encoded))
                if encoded:
                    by_language.setdefault(language, []).append(encoded.decode(errors="surrogatepass"))
                if left == 0:
                    break
            for language, texts in by_language.items():
                yield (path, language), texts
            if left == 0:
                return


def _begin(encoded: bytes, size: int) -> bytes:
    """The first bytes of a text in UTF-8, at most `size` of them and whole characters alone."""
    while size < len(encoded) and encoded[size] & 0xC0 == 0x80:  # amid a character
        size -= 1
    return encoded[:size]


def _documents(path: str, config: TokenizerEvaluationConfig) -> Iterator[tuple[str | None, str]]:
    """The language, where it is said, and the text of each document; a piece of a long file is one, too."""
    if not path.startswith("hf:") and not all(content_suffix(file) in ROW_SUFFIXES for file in _files(path)):
        try:
            corpus = Corpus(CorpusConfig(path, config.text_field, validation_fraction=0.0))
            yield from ((None, piece.text) for piece in corpus.documents())
        except UserError as error:
            raise UserError(str(error).replace("corpus.path", "texts").replace("corpus.", "")) from error
        return
    for file, number, row in iterate_rows(path, "texts"):
        text = row.get(config.text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{file}: row {number} has no text in {config.text_field!r}; set text_field to its name")
        language = row.get(config.language_field)
        if text.strip():
            yield (str(language) if language else None), text


def _files(path: str) -> list[Path]:
    return find_files(path, "texts")[1]


def _with_sums(
    groups: dict[Group, TokenizerScores], paths: list[str], tokenizer: Tokenizer
) -> dict[Group, TokenizerScores]:
    """The scores of each corpus, followed by those of its languages where it names some."""
    result: dict[Group, TokenizerScores] = {}
    for path in dict.fromkeys(paths):
        of_path = {language: scores for (corpus, language), scores in groups.items() if corpus == path}
        if not of_path:
            raise UserError(f"texts {path!r} has no text")
        whole = result[path, None] = TokenizerScores(tokenizer)
        for scores in of_path.values():
            whole.merge(scores)
        if set(of_path) != {None}:
            ordered = sorted(of_path.items(), key=lambda pair: (-pair[1].bytes, pair[0] or ""))
            result.update({(path, language or "not said"): scores for language, scores in ordered})
    return result


def _trained_on(folder: Path, tokenizer: Tokenizer, paths: list[str]) -> list[str]:
    record = TokenizerRecord.load(folder, tokenizer.digest)
    return [
        f"{folder} was trained on text of {path}, and may do better on it than on other text"
        for path in dict.fromkeys(paths)
        if record is not None and record.corpus.path == path
    ]


def _name(group: Group) -> str:
    path, language = group
    return path if language is None else f"{path}: {language}"


def _cells(numbers: dict[str, Any]) -> list[str]:
    return [
        f"{numbers['bytes_per_token']:.2f}",
        f"{numbers['tokens_per_word']:.2f}",
        f"{numbers['vocabulary_used']:.1%}",
        f"{numbers['byte_share']:.1%}",
        f"{numbers['unknown_share']:.1%}",
        f"{numbers['tokens']:,}",
    ]
