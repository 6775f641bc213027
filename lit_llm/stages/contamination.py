"""Whether evaluations are in a corpus: which of their rows, and in which documents."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config import ContaminationConfig, UserError, to_plain
from lit_llm.config.extraction import ExtractConfig
from lit_llm.config.files import write_json
from lit_llm.config.progress import progress
from lit_llm.config.recipe import SourceConfig
from lit_llm.config.references import EvaluationTexts
from lit_llm.data.cleaning.evaluation_index import EvaluationIndex
from lit_llm.data.cleaning.extraction import Extraction
from lit_llm.data.corpus.recipes.tallies import ReadRecord
from lit_llm.data.corpus.recipes.workers import LocalWorkers, available_cores
from lit_llm.data.corpus.shard_documents import ShardDocuments, is_shard_folder
from lit_llm.data.sources.document import DocumentSource, Skipped, Unit
from lit_llm.data.sources.opening import open_source
from lit_llm.data.sources.web_pages import is_html

_NAMED_DOCUMENTS = 3
_TASKS_OF_WORKER = 8
_ALL_OF_A_PAGE = ExtractConfig(main_content=False, preformatted=False, comments=True)
"""A recipe may take any of it into its corpus."""


@dataclass(frozen=True)
class FoundRow:
    """A row of an evaluation that a corpus has.

    Attributes:
        row: Its number in the file.
        runs: Different runs of n words that the row has, or short texts as a whole.
        found: How many of them the corpus has.
        documents: The first few documents that have one.
    """

    row: int
    runs: int
    found: int
    documents: list[str]


@dataclass(frozen=True)
class FoundEvaluation:
    """What a corpus has of an evaluation.

    Attributes:
        file: Its name.
        rows: How many it has.
        looked_for: How many of them are long enough to be looked for.
        found: How many of them have a run of words in common with the corpus.
        mostly: How many the corpus has for the most part, by the `share` of the options.
        documents: Documents of the corpus that have something of the evaluation.
        found_rows: The rows, by number.
    """

    file: str
    rows: int
    looked_for: int
    found: int
    mostly: int
    documents: int
    found_rows: list[FoundRow]


@dataclass(frozen=True)
class Contamination:
    """What a corpus has of some evaluations.

    Attributes:
        corpus: What the corpus is, in words.
        documents: How many were read.
        bytes: Of their text in UTF-8.
        pages: How many documents were HTML, and were read without their tags.
        replaced: The files with bytes that were not valid UTF-8 and became U+FFFD, and how many each has.
        skipped: What could not be read: for each reason how often, and the first places; of files, the first hundred.
        runs: Different runs of words that were looked for.
        index_bytes: What their index takes in memory.
        evaluations: One for each file.
    """

    corpus: str
    documents: int
    bytes: int
    pages: int
    replaced: dict[str, int]
    skipped: dict[str, dict[str, Any]]
    runs: int
    index_bytes: int
    evaluations: list[FoundEvaluation]


def contamination(config: ContaminationConfig) -> Contamination:
    """Looks for every row of the evaluations in every document of the corpus.

    Raises:
        UserError: the corpus or an evaluation is missing, broken or empty; the output is there already.
    """
    if config.output is not None and Path(config.output).exists() and not config.overwrite:
        raise UserError(f"{config.output}: the file is there already; set overwrite true or choose another output")
    if not config.corpus.path:
        raise UserError(
            "corpus.path is empty; name the corpus: a file, a folder, a glob, hf:NAME or a folder of shards"
        )
    options = EvaluationTexts(**{name: getattr(config, name) for name in EvaluationTexts.__dataclass_fields__})
    keys = json.dumps(to_plain(options)), json.dumps(to_plain(config.corpus))
    try:
        index, source = _index(keys[0]), _corpus(keys[1])
        result = _merged(config, index, source, _scan_all(config, keys, source.units()))
    finally:
        _index.cache_clear()
        _corpus.cache_clear()
    if not result.documents:
        why = ReadRecord(skipped=result.skipped).skipped_in_words
        skipped = f" (skipped: {why})" if why else ""
        raise UserError(f"corpus.path {config.corpus.path!r}: no document could be read there{skipped}")
    if config.output is not None:
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.output), {"options": to_plain(config), **asdict(result)})
    return result


@lru_cache(maxsize=1)
def _index(options: str) -> EvaluationIndex:
    """The index of the evaluations, made once in each process."""
    return EvaluationIndex(EvaluationTexts(**json.loads(options)))


@lru_cache(maxsize=1)
def _corpus(config: str) -> DocumentSource:
    """The corpus, opened once in each process."""
    source = SourceConfig(**json.loads(config))
    return ShardDocuments(source) if is_shard_folder(source.path) else open_source(source)


@dataclass(frozen=True)
class _Task:
    """Units of the corpus for one process to look through, and where it leaves what it has found."""

    options: str
    corpus: str
    units: tuple[Unit, ...]
    record: Path


def _scan_all(config: ContaminationConfig, keys: tuple[str, str], units: list[Unit]) -> list[dict[str, Any]]:
    """What has been found in each share of the units, in order."""
    number = config.num_workers or available_cores()
    shares = [share for share in np.array_split(np.arange(len(units)), number * _TASKS_OF_WORKER) if len(share)]
    with tempfile.TemporaryDirectory() as folder, LocalWorkers(number) as workers:
        tasks = [
            _Task(*keys, tuple(units[unit] for unit in share), Path(folder) / f"{place}.json")
            for place, share in enumerate(shares)
        ]
        with progress("looking through the corpus", len(units), "files") as advance:
            workers.run(_scan, tasks, lambda place: advance(len(tasks[place].units)))
        return [json.loads(task.record.read_text()) for task in tasks]


def _scan(task: _Task) -> None:
    """Looks through the documents of some units."""
    index, source = _index(task.options), _corpus(task.corpus)
    read, contaminated, replaced = ReadRecord(), Counter[str](), Counter[str]()
    extraction, pages = Extraction(_ALL_OF_A_PAGE), 0
    runs: set[int] = set()
    named: defaultdict[str, list[str]] = defaultdict(list)
    for unit in task.units:
        for document in source.read(unit):
            if isinstance(document, Skipped):
                read.skip(document)
                continue
            if number := document.metadata.get("replaced_bytes"):
                replaced[unit.name] += number
            if is_html(document):
                pages += 1
                if reason := extraction(document):
                    read.skip(Skipped(document.id, reason))
                    continue
            read.documents, read.bytes = read.documents + 1, read.bytes + len(document.text.encode())
            matches = index.find(document.text)
            for file, own in ({} if matches is None else index.enough(matches)).items():
                contaminated[str(file)] += 1
                found = np.unique(matches.runs[own])  # type: ignore[union-attr]
                runs.update(found.tolist())
                rows = np.unique(index.rows_of(found)[1])
                for row in rows[index.file_of(rows) == file].tolist():
                    if len(named[str(row)]) < _NAMED_DOCUMENTS:
                        named[str(row)].append(document.id)
    counts = {"read": vars(read), "pages": pages, "replaced": replaced, "contaminated": contaminated}
    task.record.write_text(json.dumps({**counts, "runs": sorted(runs), "named": named}))


def _merged(
    config: ContaminationConfig, index: EvaluationIndex, source: DocumentSource, records: list[dict[str, Any]]
) -> Contamination:
    """What all shares have found together."""
    read, contaminated, replaced = ReadRecord(), Counter[str](), Counter[str]()
    named: defaultdict[int, list[str]] = defaultdict(list)
    for record in records:
        read.merge(ReadRecord(**record["read"]))
        contaminated.update(record["contaminated"])
        replaced.update(record["replaced"])
        for row, documents in record["named"].items():
            named[int(row)] = [*named[int(row)], *documents][:_NAMED_DOCUMENTS]
    runs = np.array(sorted({run for record in records for run in record["runs"]}), np.int64)
    often = np.bincount(index.rows_of(runs)[1], minlength=len(index.runs_of_row))
    evaluations = []
    for number, file in enumerate(index.files):
        rows = [row for row in range(file.first_row, file.first_row + file.rows) if row in named]
        found = [
            FoundRow(index.number_of(row), int(index.runs_of_row[row]), int(often[row]), named[row]) for row in rows
        ]
        mostly = sum(row.found >= config.share * row.runs for row in found)
        counts = (file.rows, file.looked_for, len(found), mostly, contaminated[str(number)])
        evaluations.append(FoundEvaluation(file.name, *counts, found))
    return Contamination(
        source.description,
        read.documents,
        read.bytes,
        sum(record["pages"] for record in records),
        dict(replaced),
        read.skipped,
        index.runs,
        index.bytes,
        evaluations,
    )
