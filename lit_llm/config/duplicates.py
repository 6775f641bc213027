"""Options of the steps that compare documents with each other, or with evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lit_llm.config.errors import UserError
from lit_llm.config.substrings import SubstringsOptions


@dataclass
class ExactDocumentsConfig:
    """Remove every document whose text an earlier one has already had."""

    normalize: Literal["none", "whitespace+case"] = "none"
    """What is done to a text before it is compared; whitespace+case: runs of whitespace count as one space, and case
    does not matter. The documents themselves stay as they are."""


@dataclass
class ExactLinesConfig:
    """Remove lines that many documents share, such as menus and notices; meant for text of the web, not for code.

    The first documents that have a line keep it, as C4 keeps one of each repeated span (Raffel et al. 2020) and CCNet
    one of each paragraph (Wenzek et al. 2020). A line that one document repeats counts once.
    """

    max_documents: int = 1
    """Documents that may have the same line."""
    keep: Literal["first", "none"] = "first"
    """Who keeps a line that more documents have: the first max_documents of them, or none."""
    min_line_characters: int = 30
    """A shorter line stays, however many documents have it; blanks at either end do not count."""
    min_characters: int = 300
    """A document that has lost lines and is left with fewer characters is dropped (300 as in CCNet)."""

    def __post_init__(self) -> None:
        if self.max_documents < 1:
            raise UserError(f"max_documents is {self.max_documents}; it must be at least 1")
        if self.min_line_characters < 1:
            raise UserError(f"min_line_characters is {self.min_line_characters}; it must be at least 1")
        if self.min_characters < 0:
            raise UserError(f"min_characters is {self.min_characters}; it must not be negative")


@dataclass
class NearDuplicatesConfig:
    """Remove all but one of every group of documents that share most of their word n-grams (MinHash-LSH).

    A pair whose n-grams have the Jaccard similarity s is found with the probability 1 - (1 - s^rows)^bands; the
    defaults are those of FineWeb (Penedo et al. 2024): 77% at 0.75, 92% at 0.8, 98.8% at 0.85.
    """

    ngram: int = 5
    """Words of an n-gram."""
    bands: int = 14
    """Bands of the signature; documents that agree in one are candidates."""
    rows: int = 8
    """Hashes of a band."""
    keep: Literal["longest", "first"] = "longest"
    """Which document of a group stays; of equally long ones the first."""
    verify: float | None = None
    """Least Jaccard similarity, estimated from the signatures, between a document that is removed and the one that
    stays; what is less similar forms a group of its own. null: belonging to the group is enough."""
    seed: int = 1
    """Seed of the hash functions."""

    def __post_init__(self) -> None:
        for name in ("ngram", "bands", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.verify is not None and not 0 < self.verify <= 1:
            raise UserError(f"verify is {self.verify}; it must be above 0 and at most 1, or null")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")


CORPUS_STEPS: dict[str, type[Any]] = {
    "exact_documents": ExactDocumentsConfig,
    "exact_lines": ExactLinesConfig,
    "near_duplicates": NearDuplicatesConfig,
    "substrings": SubstringsOptions,
}
"""The dataclass of options of each step, by the name that it has in a recipe."""
