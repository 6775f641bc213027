"""The last stage: what is left of the documents, in parts of even size, and what is to be said of them."""

from __future__ import annotations

import hashlib
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lit_llm.config.files import sync_folder
from lit_llm.data.corpus.recipes.chain import Link
from lit_llm.data.corpus.recipes.parts import PartWriter, read_part, text_bytes
from lit_llm.data.corpus.recipes.stages import StageRunner
from lit_llm.data.corpus.recipes.tallies import load_record, save_record
from lit_llm.data.corpus.recipes.workspace import PAGES, Workspace
from lit_llm.data.sources.document import SourceDocument

UNKNOWN = "unknown"
"""The language or licence of documents that have none."""
LENGTHS = (100, 200, 500, *(n * 10**power for power in (3, 4, 5) for n in (1, 2, 5)), 10**6, 10**7)
"""What parts the classes of documents by the number of their characters; the first class is below the first bound."""
_MOST_DOMAINS = 50
_DOMAINS_OF_PART = 500
_DOMAINS_IN_MEMORY = 200_000


@dataclass(frozen=True)
class ResultTask:
    """Parts that become one part of the corpus.

    Attributes:
        inputs: Files of the parts.
        output: File of the part.
        record: File that says what it holds.
    """

    inputs: tuple[Path, ...]
    output: Path
    record: Path


@dataclass
class Contents:
    """What documents there are.

    Attributes:
        documents: Number of documents.
        bytes: UTF-8 bytes of their texts.
        sources: For each source the number of documents and bytes.
        languages: Documents in each language.
        licenses: Documents under each licence.
        domains: Documents of each host of an address; where there are very many, of the most frequent ones.
        lengths: Documents in each class of `LENGTHS`.
        digest: Of the documents in their order.
    """

    documents: int
    bytes: int
    sources: dict[str, dict[str, int]]
    languages: Counter[str]
    licenses: Counter[str]
    domains: Counter[str]
    lengths: list[int]
    digest: str

    @classmethod
    def empty(cls) -> Contents:
        """No document."""
        return cls(0, 0, {}, Counter(), Counter(), Counter(), [0] * (len(LENGTHS) + 1), "")

    def add(self, document: SourceDocument, num_bytes: int) -> None:
        """Counts a document."""
        self.documents += 1
        self.bytes += num_bytes
        source = self.sources.setdefault(document.source, {"documents": 0, "bytes": 0})
        source["documents"] += 1
        source["bytes"] += num_bytes
        self.languages[document.language or UNKNOWN] += 1
        self.licenses[document.license or UNKNOWN] += 1
        if domain := domain_of(document.url):
            self.domains[domain] += 1
        self.lengths[bisect_right(LENGTHS, len(document.text))] += 1

    def merge(self, other: Contents) -> None:
        """Counts the documents of a part that follows."""
        self.documents += other.documents
        self.bytes += other.bytes
        for name, more in other.sources.items():
            source = self.sources.setdefault(name, {"documents": 0, "bytes": 0})
            for key, value in more.items():
                source[key] += value
        for counter, more_counts in (
            (self.languages, other.languages),
            (self.licenses, other.licenses),
            (self.domains, other.domains),
        ):
            counter.update(more_counts)
        if len(self.domains) > _DOMAINS_IN_MEMORY:
            self.domains = Counter(dict(most_common(self.domains, _DOMAINS_IN_MEMORY // 2)))
        self.lengths = [a + b for a, b in zip(self.lengths, other.lengths, strict=True)]
        self.digest = hashlib.blake2b((self.digest + other.digest).encode(), digest_size=16).hexdigest()

    def to_plain(self) -> dict[str, Any]:
        """As in the report."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "digest": self.digest,
            "sources": self.sources,
            "languages": dict(most_common(self.languages, len(self.languages))),
            "licenses": dict(most_common(self.licenses, _MOST_DOMAINS)),
            "domains": dict(most_common(self.domains, _MOST_DOMAINS)),
            "lengths": {"bounds": list(LENGTHS), "documents": self.lengths},
        }


def most_common(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    """The most frequent names; equally frequent ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]


def domain_of(url: str | None) -> str | None:
    """The host of an address, without www."""
    if not url:
        return None
    try:
        host = urlsplit(url).hostname
    except ValueError:  # an address of IPv6 with half of its brackets
        return None
    return host.removeprefix("www.") if host else None


def write_result(task: ResultTask) -> None:
    """Writes a part of the corpus, and what it holds."""
    contents, digest = Contents.empty(), hashlib.blake2b(digest_size=16)
    with PartWriter(task.output) as writer:
        for path in task.inputs:
            for document in read_part(path):
                size = text_bytes(document.text)
                writer.add(document, size)
                contents.add(document, size)
                for value in (document.source, document.id, document.text):
                    encoded = value.encode()
                    digest.update(len(encoded).to_bytes(8, "little"))
                    digest.update(encoded)
    contents.digest = digest.hexdigest()
    contents.domains = Counter(dict(most_common(contents.domains, _DOMAINS_OF_PART)))
    save_record(task.record, vars(contents))


def make_result(runner: StageRunner, workspace: Workspace, last: Link, part_bytes: int) -> Contents:
    """Writes the documents that the last step has left, and gives them their place in the output.

    Args:
        runner: Has done all stages.
        workspace: The folders.
        last: The last step.
        part_bytes: Text of a part of the corpus.
    """
    sizes = [tally.bytes_out for tally in runner.tallies(last)]
    groups = _groups(sizes, part_bytes)
    folder = workspace.unfinished if workspace.unfinished.exists() else workspace.output / "documents"
    tasks = [
        ResultTask(
            tuple(last.part(runner.parts[part]) for part in group),
            folder / f"part-{number:05d}.parquet",
            workspace.documents / f"part-{number:05d}.json",
        )
        for number, group in enumerate(groups)
    ]
    missing = [number for number, task in enumerate(tasks) if not (task.record.exists() and task.output.exists())]
    runner.work(
        "writing the documents",
        write_result,
        [tasks[number] for number in missing],
        [sum(sizes[part] for part in groups[number]) for number in missing],
    )
    contents = Contents.empty()
    for task in tasks:
        values = load_record(task.record)
        for name in ("languages", "licenses", "domains"):
            values[name] = Counter(values[name])
        contents.merge(Contents(**values))
    return contents


def publish(workspace: Workspace) -> None:
    """Puts the finished documents where those of an earlier recipe may be; until the report is written, all is undone.

    An interruption at any point is made good by a further call.
    """
    if not workspace.unfinished.exists():
        return
    workspace.report.unlink(missing_ok=True)
    for name in PAGES:
        (workspace.output / name).unlink(missing_ok=True)
    documents = workspace.output / "documents"
    if documents.exists():
        shutil.rmtree(documents)
    workspace.unfinished.rename(documents)
    sync_folder(workspace.output)


def _groups(sizes: Sequence[int], part_bytes: int) -> list[list[int]]:
    """Numbers of the parts that have text, in groups that are no larger than a part unless they are a single one."""
    groups: list[list[int]] = []
    size_of_group = 0
    for part, size in enumerate(sizes):
        if not size:
            continue
        if not groups or size_of_group + size > part_bytes:
            groups.append([])
            size_of_group = 0
        groups[-1].append(part)
        size_of_group += size
    return groups
