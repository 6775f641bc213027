"""Options of the document steps that hold a text against files that the user names: evaluations, and a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lit_llm.config.errors import UserError


@dataclass
class EvaluationTexts:
    """Texts of evaluations, and what counts as one of them in another text.

    Words are compared without case and punctuation, as in GPT-3's appendix C (Brown et al. 2020).
    """

    files: list[str] = field(default_factory=list)
    """The evaluations: files (.jsonl, .json, .csv, .parquet, .txt, .md), folders or globs."""
    fields: list[str] | None = None
    """Fields of a row that are its text, in this order; of a .csv without a header, numbers of columns from 1. null:
    every field of text."""
    n: int = 13
    """Words in a row that a document has in common with an evaluation."""
    short: Literal["whole", "ignore"] = "whole"
    """A text of fewer than n words, a row or one field of it: look for all of it as it stands, or leave it out."""
    min_words: int = 8
    """A text of fewer words than this is left out in any case, as it says too little (the least n of GPT-3)."""
    min_matches: int = 1
    """Different runs of n words that it takes. A short text found whole is enough by itself."""

    def __post_init__(self) -> None:
        for name in ("n", "min_words", "min_matches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.fields == []:
            raise UserError("fields is empty; name the fields of a row that are its text, or give null for all")


@dataclass
class DecontaminateOptions(EvaluationTexts):
    """Remove what evaluations have in common with the corpus."""

    remove: Literal["document", "span"] = "document"
    """Drop the whole document, or take the words in common out of it."""
    window: int = 200
    """With remove span: characters taken out on either side as well (GPT-3: 200), up to the end of a word."""
    min_piece: int = 200
    """With remove span: what is left between two cuts goes as well if it is shorter, in characters (GPT-3: 200)."""
    max_pieces: int = 10
    """With remove span: a document cut into more pieces than this is dropped (GPT-3: 10)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "min_piece"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.max_pieces < 1:
            raise UserError(f"max_pieces is {self.max_pieces}; it must be at least 1")


@dataclass
class QualityClassifierOptions:
    """Drop what a trained classifier takes for the worse of two corpora."""

    model: str = ""
    """Folder of a classifier, made by train_classifier."""
    threshold: float = 0.5
    """A document whose probability of being of the better corpus is below this is dropped."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise UserError(f"threshold is {self.threshold}; it must be a probability, from 0 to 1")


REFERENCE_STEPS: dict[str, type[Any]] = {
    "quality_classifier": QualityClassifierOptions,
    "decontaminate": DecontaminateOptions,
}
"""The dataclass of options of each step, by the name that it has in a recipe."""
