"""Options of training a classifier that tells better text from worse."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.errors import UserError
from lit_llm.config.recipe import SourceConfig


@dataclass
class ClassifierConfig:
    """Train a classifier of quality for the step quality_classifier: logistic regression on hashed n-grams of words."""

    positives: SourceConfig = field(default_factory=SourceConfig)
    """Text as it should be, such as a folder of encyclopedia articles."""
    negatives: SourceConfig = field(default_factory=SourceConfig)
    """Text as it comes, such as unfiltered web pages."""
    output: str = "checkpoints/classifier"
    """Folder that the classifier is written to."""
    overwrite: bool = False
    """Replace a classifier that is already there."""
    max_documents: int = 50_000
    """Documents of either corpus that are used at most, spread evenly over its files; they are held in memory as 4
    bytes for each different n-gram."""
    ngrams: int = 2
    """Words of the longest n-gram."""
    bits: int = 20
    """The weights are 2 to the power of this many; n-grams with the same hash share one."""
    epochs: int = 5
    """How often the documents are gone through."""
    batch_size: int = 64
    """Documents of a step."""
    learning_rate: float = 0.2
    """Step size of Adagrad (Duchi et al. 2011)."""
    weight_decay: float = 1e-5
    """Pull of the weights of a step's n-grams towards zero."""
    held_out: float = 0.1
    """Share of the documents, chosen by their digest, that are not trained on, but measured with."""
    seed: int = 0
    """Seed of the order of the documents."""

    def __post_init__(self) -> None:
        for name in ("max_documents", "ngrams", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 8 <= self.bits <= 30:
            raise UserError(f"bits is {self.bits}; it must be from 8 to 30")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if not 0.0 < self.held_out < 1.0:
            raise UserError(f"held_out is {self.held_out}; it must be above 0 and below 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be at least 0")
