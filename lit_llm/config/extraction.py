"""Options of the step that makes text of web pages."""

from __future__ import annotations

from dataclasses import dataclass

from lit_llm.config.errors import UserError


@dataclass
class ExtractConfig:
    """Takes the text out of web pages (resiliparse); a document that is no HTML stays as it is."""

    main_content: bool = True
    """Only what the page is about: navigation, sidebars, cookie notices, footers and the like are left out. false: all
    that can be seen."""
    preformatted: bool = True
    """Keep paragraphs, the marks of lists, and the lines of code; false: every run of white space is one space."""
    comments: bool = False
    """Keep what readers have written below a page."""
    alternatives: bool = False
    """Keep the texts that stand for images."""
    links: bool = False
    """Write the address of each link after its text."""
    min_characters: int = 1
    """A page with less text than this is dropped."""

    def __post_init__(self) -> None:
        if self.min_characters < 1:
            raise UserError(f"min_characters is {self.min_characters}; it must be at least 1")
