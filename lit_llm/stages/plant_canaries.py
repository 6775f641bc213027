"""Writing secrets to be planted in training data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_llm.config import CanariesConfig, UserError
from lit_llm.config.files import replace_file, write_json
from lit_llm.evaluation.safety.canaries import (
    DOCUMENTS,
    FILE,
    canaries_as_json,
    canary_documents,
    documents_as_lines,
    make_canaries,
)


@dataclass(frozen=True)
class PlantedCanaries:
    """What was written.

    Attributes:
        documents_file: what is to be trained on.
        key_file: what is to be kept apart.
        canaries: number of secrets.
        unplanted: number of those that are in no document.
        documents: number of documents.
    """

    documents_file: Path
    key_file: Path
    canaries: int
    unplanted: int
    documents: int


def plant_canaries(config: CanariesConfig) -> PlantedCanaries:
    """Write documents.jsonl with the secrets, and canaries.json, which says which they are.

    Raises:
        UserError: the files are there already, or there are too many canaries.
    """
    folder = Path(config.output)
    for name in (DOCUMENTS, FILE):
        if (folder / name).exists() and not config.overwrite:
            raise UserError(f"{folder / name} is there already; give another --output, or --overwrite true")
    canaries = make_canaries(config.repeats, config.count, config.digits, config.seed)
    texts = canary_documents(canaries, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / DOCUMENTS, documents_as_lines(texts))
    write_json(folder / FILE, canaries_as_json(canaries, config.digits, config.seed))
    unplanted = sum(canary.repeats == 0 for canary in canaries)
    return PlantedCanaries(folder / DOCUMENTS, folder / FILE, len(canaries), unplanted, len(texts))
