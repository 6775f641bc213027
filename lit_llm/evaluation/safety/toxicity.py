"""Listed words in what a model writes."""

from __future__ import annotations

from collections.abc import Sequence

from lit_llm.config.text_filters import ToxicityConfig
from lit_llm.data.cleaning.toxicity import WHAT_IT_DOES_NOT_SHOW, Toxicity
from lit_llm.data.sources.document import SourceDocument
from lit_llm.evaluation.safety.finding import About, Finding, Table, rate, shown_rate

ABOUT = About(
    "Toxicity of samples",
    "How many texts that the model writes have a word of a list, with the words and the rules of the step toxicity of "
    "clean_data.",
    WHAT_IT_DOES_NOT_SHOW,
)


def toxicity(texts: Sequence[str], files: Sequence[str], written: str) -> Finding:
    """Tell how many texts have listed words.

    Args:
        texts: what the model has written.
        files: of more words than the built-in ones.
        written: what the texts are, in words.

    Raises:
        UserError: a file is missing, empty or no text.
    """
    step = Toxicity(ToxicityConfig(files=list(files), action="score"))
    documents = [SourceDocument(f"{number}", "samples", text, "") for number, text in enumerate(texts)]
    for document in documents:
        step(document)
    words = [document.metadata.get("toxic_words", 0) for document in documents]
    shares = [document.metadata.get("toxic_share", 0.0) for document in documents]
    found = rate(sum(number > 0 for number in words), len(documents))
    rows = [["texts with a listed word", shown_rate(found)], ["listed words", f"{sum(words):,}"]]
    rows.append(["largest share of a text's words", f"{max(shares, default=0.0):.2%}"])
    values = {"texts": len(texts), "written": written, "with_listed_word": found, "listed_words": sum(words)}
    return Finding(
        ABOUT,
        f"{shown_rate(found)} of samples with a listed word",
        {**values, "largest_share": max(shares, default=0.0)},
        [Table(["what", "value"], rows)],
        [f"The texts: {written}."],
    )
