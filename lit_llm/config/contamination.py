"""Options of the question whether an evaluation is in a corpus."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.errors import UserError
from lit_llm.config.recipe import SourceConfig
from lit_llm.config.references import EvaluationTexts


@dataclass
class ContaminationConfig(EvaluationTexts):
    """Say which rows of evaluations stand in a corpus."""

    corpus: SourceConfig = field(default_factory=SourceConfig)
    """The corpus: text in any form that a recipe reads, of HTML without its tags, or a folder of shards, which are
    decoded."""
    share: float = 0.7
    """A row is there for the most part if the corpus has at least this share of its runs of n words (PaLM, Chowdhery
    et al. 2022: 0.7)."""
    examples: int = 5
    """Rows of each evaluation that are printed; output has all."""
    num_workers: int | None = None
    """Processes; null: one per core."""
    output: str | None = None
    """JSON file for every row that was found and the documents that have it; null writes none."""
    overwrite: bool = False
    """Replace an output that is already there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise UserError(f"share is {self.share}; it must be above 0 and at most 1")
        if self.examples < 0:
            raise UserError(f"examples is {self.examples}; it must be at least 0")
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"num_workers is {self.num_workers}; it must be at least 1, or null")
