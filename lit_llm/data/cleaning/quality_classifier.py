"""Documents held against a trained classifier: the step `quality_classifier`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lit_llm.config import UserError
from lit_llm.config.references import QualityClassifierOptions
from lit_llm.data.cleaning.text_features import TextClassifier
from lit_llm.data.sources.document import SourceDocument


class QualityClassifier:
    """Drops documents that the classifier takes for the worse of two corpora; the others have their score as `quality`.

    Args:
        options: The classifier, and from where on a document is good enough.

    Attributes:
        counts: Is empty.

    Raises:
        UserError: no classifier is named, or there is none, or it is damaged.
    """

    def __init__(self, options: QualityClassifierOptions) -> None:
        self.counts: Counter[str] = Counter()
        if not options.model:
            raise UserError("quality_classifier.model is empty; name the folder that train_classifier has written")
        self._classifier = TextClassifier.load(Path(options.model), "quality_classifier.model")
        self._features = self._classifier.features()
        self._options = options

    def __call__(self, document: SourceDocument) -> str | None:
        """Puts the probability, to six places, into the metadata, and compares it with the threshold."""
        score = round(self._classifier.probability(self._features(document.text)), 6)
        document.metadata["quality"] = score
        return None if score >= self._options.threshold else f"quality below {self._options.threshold}"
