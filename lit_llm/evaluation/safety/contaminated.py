"""What a model's training data has of evaluations, by the counts of the command `contamination`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from lit_llm.evaluation.safety.finding import About, Finding, Table, rate, shown_rate

ABOUT = About(
    "Contamination",
    "How many rows of each evaluation share a run of words with the text that the model was trained on. Of these rows "
    "a right answer may be memory.",
    "Rows in other words, in translation or with their answers elsewhere are not found, and short rows are not looked "
    "for. A shared run may be a common phrase. What an earlier stage or the model that training began from has read is "
    "not in these shards.",
)


class FoundRows(Protocol):
    """The counts of one evaluation; see `lit_llm.stages.contamination.FoundEvaluation`."""

    file: str
    rows: int
    looked_for: int
    found: int
    mostly: int
    found_rows: list[Any]


class Found(Protocol):
    """The counts of all evaluations in one corpus."""

    evaluations: list[Any]


def contaminated(folders: Sequence[str], found: Sequence[Found]) -> Finding:
    """Put the counts of each corpus into a table.

    Args:
        folders: names of the corpora.
        found: of each, what it has of the evaluations.
    """
    entries, rows = [], []
    for folder, result in zip(folders, found, strict=True):
        for each in result.evaluations:
            shared = rate(each.found, each.rows)
            entries.append({"shards": folder, **asdict(each), "share": shared})
            rows.append([each.file, folder, shown_rate(shared), f"{each.mostly:,}", f"{each.looked_for:,}"])
    parts = [f"{entry['found']:,} of {entry['rows']:,} rows of {entry['file']}" for entry in entries]
    header = ["evaluation", "shards", "rows with a shared run", "for the most part", "looked for"]
    summary = f"{'; '.join(parts)} share a run of words with the training text"
    return Finding(ABOUT, summary, {"evaluations": entries}, [Table(header, rows)])
