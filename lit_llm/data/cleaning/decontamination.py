"""Taking out of a corpus what evaluations ask: the step `decontaminate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from lit_llm.config.references import DecontaminateOptions
from lit_llm.data.cleaning.evaluation_index import EvaluationIndex, Matches
from lit_llm.data.cleaning.ngrams import inside_word, word_pattern
from lit_llm.data.sources.document import SourceDocument


class Decontaminate:
    """Drops documents that have n words in a row in common with an evaluation, or takes the words out of them.

    Args:
        options: The evaluations, and what becomes of a document.

    Attributes:
        counts: Documents with text of each evaluation, and what has been taken out.

    Raises:
        UserError: an evaluation is missing, broken or empty.
    """

    def __init__(self, options: DecontaminateOptions) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options
        self._index = EvaluationIndex(options)

    def __call__(self, document: SourceDocument) -> str | None:
        """Looks for the evaluations; the reason for dropping names the first of them that was found."""
        matches = self._index.find(document.text)
        files = {} if matches is None else self._index.enough(matches)
        if matches is None or not files:
            return None
        names = [self._index.files[file].name for file in files]
        self.counts.update(f"documents with text of {name}" for name in names)
        if self._options.remove == "document":
            return f"text of {names[0]}"
        spans = character_spans(document.text, matches, np.unique(np.concatenate(list(files.values()))))
        pieces, cuts = remaining_pieces(document.text, spans, self._options.window, self._options.min_piece)
        if not pieces:
            return f"nothing left beside text of {names[0]}"
        if len(pieces) > self._options.max_pieces:
            return f"text of {names[0]} in more than {self._options.max_pieces} pieces"
        text = "\n\n".join(pieces)
        self.counts["spans removed"] += cuts
        self.counts["bytes removed"] += len(document.text.encode()) - len(text.encode())
        document.text = text
        document.metadata["decontaminated"] = names
        return None


def character_spans(text: str, matches: Matches, chosen: np.ndarray) -> list[tuple[int, int]]:
    """Where the chosen matches begin and end in a text, in characters, by their beginning."""
    words = [match.span() for match in word_pattern(text).finditer(text)]
    places, lengths = matches.places[chosen].tolist(), matches.lengths[chosen].tolist()
    return sorted(
        (words[place][0], words[place + length - 1][1]) for place, length in zip(places, lengths, strict=True)
    )


def remaining_pieces(text: str, spans: Iterable[tuple[int, int]], window: int, min_piece: int) -> tuple[list[str], int]:
    """What is left of a text without some spans of it.

    Args:
        text: The text.
        spans: Beginning and end of each in characters, by their beginning; they may overlap.
        window: Characters that go with each on either side, and then all up to the end of the word.
        min_piece: What is left between two cuts and is shorter goes as well.

    Returns:
        The pieces without white space around them, and the number of cuts.
    """
    cuts: list[tuple[int, int]] = []
    for begin, end in spans:
        begin, end = max(0, begin - window), min(len(text), end + window)
        while inside_word(text, begin):
            begin -= 1
        while inside_word(text, end):
            end += 1
        if cuts and begin <= cuts[-1][1]:
            cuts[-1] = (cuts[-1][0], max(end, cuts[-1][1]))
        else:
            cuts.append((begin, end))
    edges = [0, *(edge for cut in cuts for edge in cut), len(text)]
    pieces = [text[begin:end].strip() for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return [piece for piece in pieces if piece and len(piece) >= min_piece], len(cuts)
