"""Options of the step that takes repeated text out of documents."""

from __future__ import annotations

from dataclasses import dataclass

from lit_llm.config.errors import UserError


@dataclass
class SubstringsOptions:
    """Take text out that stands earlier in the corpus already, word for word (Lee et al. 2022, ExactSubstr).

    A token is a word or a punctuation mark here, which is near to what a token of BPE is in prose; white space between
    them is not compared. The first occurrence in the order of the corpus stays, all others go.
    """

    length: int = 50
    """Tokens in a row that two places have in common (Lee et al.: 50 tokens of BPE)."""
    within_documents: bool = True
    """Whether a document that repeats itself loses the repetition, as far as it does not overlap what it repeats."""
    min_characters: int = 200
    """A document of which less is left, once something is taken out, is dropped."""

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UserError(f"length is {self.length}; it must be at least 2")
        if self.min_characters < 0:
            raise UserError(f"min_characters is {self.min_characters}; it must be at least 0")
