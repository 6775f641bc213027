"""What became of the documents of a part at a step, kept beside the part; sums of these are the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_llm.config.files import whole_file
from lit_llm.config.json_text import parse_json
from lit_llm.data.sources.document import Skipped, SourceDocument
from lit_llm.data.sources.making import LOST_FILES

EXAMPLES = 3
"""How many examples of each reason are kept."""
_EXAMPLE_CHARACTERS = 300
_NAMED_FILES = 100
"""How many files that could not be read, or not to their ends, are named."""


@dataclass
class Dropped:
    """The documents that were dropped for one reason."""

    documents: int = 0
    bytes: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Tally:
    """Documents and bytes of text that came to a step and went on, and why the others did not.

    Attributes:
        documents_in: Documents that came to the step.
        bytes_in: UTF-8 bytes of their texts.
        documents_out: Documents that went on.
        bytes_out: UTF-8 bytes of their texts after the step.
        seconds: What the step itself took, summed over processes.
        dropped: For each reason what was dropped.
        counts: What the step has counted.
    """

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def keep(self, bytes_in: int, bytes_out: int) -> None:
        """Counts a document that goes on."""
        self.documents_in += 1
        self.bytes_in += bytes_in
        self.documents_out += 1
        self.bytes_out += bytes_out

    def drop(self, document: SourceDocument, text: str, num_bytes: int, reason: str) -> None:
        """Counts a document that is dropped, with the text that it came with."""
        self.documents_in += 1
        self.bytes_in += num_bytes
        dropped = self.dropped.setdefault(reason, Dropped())
        dropped.documents += 1
        dropped.bytes += num_bytes
        if len(dropped.examples) < EXAMPLES:
            cut = text[:_EXAMPLE_CHARACTERS]
            dropped.examples.append({"id": document.id, "source": document.source, "text": cut})

    def merge(self, other: Tally) -> None:
        """Adds the tally of what comes after."""
        for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counts.update(other.counts)
        for reason, more in other.dropped.items():
            dropped = self.dropped.setdefault(reason, Dropped())
            dropped.documents += more.documents
            dropped.bytes += more.bytes
            dropped.examples += more.examples[: EXAMPLES - len(dropped.examples)]

    def reasons(self) -> list[tuple[str, Dropped]]:
        """Why documents were dropped, the most frequent reason first."""
        return sorted(self.dropped.items(), key=lambda item: (-item[1].documents, item[0]))

    def to_plain(self) -> dict[str, Any]:
        """Fit for JSON, the most frequent reason first, counts by name."""
        values = asdict(self)
        values["dropped"] = {reason: asdict(dropped) for reason, dropped in self.reasons()}
        values["counts"] = dict(sorted(self.counts.items()))
        return values

    def save(self, path: Path) -> None:
        """Writes the tally so that it is there whole or not at all."""
        save_record(path, self.to_plain())

    @classmethod
    def load(cls, path: Path) -> Tally:
        """Reads what `save` has written."""
        values = load_record(path)
        dropped = {reason: Dropped(**each) for reason, each in values.pop("dropped").items()}
        return cls(**{**values, "dropped": dropped, "counts": Counter(values["counts"])})


@dataclass
class ReadRecord:
    """What reading some units of a source has given.

    Attributes:
        parts: Names of the parts, in order.
        documents: Documents that were read.
        bytes: UTF-8 bytes of their texts.
        skipped: For each reason how many things could not be read, and the first of them; of files, the first hundred.
    """

    parts: list[str] = field(default_factory=list)
    documents: int = 0
    bytes: int = 0
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)

    def skip(self, skipped: Skipped) -> None:
        """Counts something that could not be read."""
        example = {"where": skipped.where, "detail": skipped.detail[:_EXAMPLE_CHARACTERS]}
        self._add(skipped.reason, 1, [example])

    def merge(self, other: ReadRecord) -> None:
        """Adds what was read after."""
        self.parts += other.parts
        self.documents += other.documents
        self.bytes += other.bytes
        for reason, more in other.skipped.items():
            self._add(reason, more["number"], more["examples"])

    def _add(self, reason: str, number: int, examples: list[dict[str, str]]) -> None:
        entry = self.skipped.setdefault(reason, {"number": 0, "examples": []})
        entry["number"] += number
        kept = _NAMED_FILES if reason in LOST_FILES else EXAMPLES
        entry["examples"] += examples[: kept - len(entry["examples"])]

    @property
    def skipped_in_words(self) -> str:
        """The most frequent reasons in a line, each with one example; empty if nothing was skipped."""
        ordered = sorted(self.skipped.items(), key=lambda item: (-item[1]["number"], item[0]))
        return ", ".join(
            f"{entry['number']:,} {reason}, as {skipped_place(entry['examples'][0])}"
            for reason, entry in ordered[:EXAMPLES]
        )


def skipped_place(example: Mapping[str, str]) -> str:
    """Where something was that could not be read, and what was wrong with it; control characters are spelled out."""
    text = f"{example['where']} ({example['detail']})" if example["detail"] else example["where"]
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def save_record(path: Path, values: dict[str, Any]) -> None:
    """Writes a small JSON file that several processes may write at once."""
    with whole_file(path, shared=True) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load_record(path: Path) -> dict[str, Any]:
    """Reads what `save_record` has written."""
    values: dict[str, Any] = parse_json(path.read_bytes())
    return values
