"""A text as the numbers of its n-grams of words, and a linear classifier on them, in a folder without pickle."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config import UserError, from_plain, to_plain
from lit_llm.config.files import whole_file, write_json
from lit_llm.config.json_text import parse_json
from lit_llm.config.serialization import check_types
from lit_llm.data.cleaning.ngrams import WordHashes, normalized, window_hashes, word_pattern

FORMAT_VERSION = 1
DESCRIPTION_FILE, WEIGHTS_FILE = "classifier.json", "weights.npy"


class TextFeatures:
    """The different n-grams of the words of a text, by hash.

    Args:
        ngrams: Words of the longest.
        bits: The numbers are below 2 to the power of this.
    """

    def __init__(self, ngrams: int, bits: int) -> None:
        self._ngrams, self._shift = ngrams, np.uint64(64 - bits)
        self._words = WordHashes(normalized)

    def __call__(self, text: str) -> np.ndarray:
        """Returns the numbers of the n-grams of a text in order, each once: [k], int32."""
        words = self._words.of(word_pattern(text).findall(text))
        hashes = [window_hashes(words, length) >> self._shift for length in range(1, self._ngrams + 1)]
        return np.unique(np.concatenate(hashes)).astype(np.int32)


@dataclass
class ClassifierDescription:
    """What `classifier.json` says."""

    ngrams: int
    """Words of the longest n-gram."""
    bits: int
    """There are 2 to the power of this many weights."""
    bias: float
    """What is added to the weighted sum."""
    sha256: str
    """Digest of the file with the weights."""
    training: dict[str, Any] = field(default_factory=dict)
    """The options of its training."""
    documents: dict[str, int] = field(default_factory=dict)
    """Numbers of documents that it was trained on, and that were held out, of either kind."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Measures on the held-out documents."""
    format_version: int = FORMAT_VERSION
    """Version of this format."""


@dataclass(frozen=True)
class TextClassifier:
    """The probability that a text is one of the positives: a logistic function of the mean weight of its n-grams.

    The sum of weights is divided by the square root of their number, which is to say that every text is a vector of
    length one (0 where it lacks an n-gram).

    Attributes:
        description: What is known of it.
        weights: One for each number of an n-gram, [2^bits], float32.
    """

    description: ClassifierDescription
    weights: np.ndarray

    def features(self) -> TextFeatures:
        """What makes numbers of a text."""
        return TextFeatures(self.description.ngrams, self.description.bits)

    def probability(self, numbers: np.ndarray) -> float:
        """The probability for a text with these numbers of n-grams; on any machine the same."""
        total = math.fsum(self.weights[numbers].tolist()) / math.sqrt(max(1, len(numbers)))
        return 1 / (1 + math.exp(-min(max(total + self.description.bias, -700.0), 700.0)))

    def save(self, folder: Path) -> None:
        """Writes the folder; the digest of the weights is put into the description.

        Raises:
            OSError: it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / WEIGHTS_FILE) as partial, partial.open("wb") as file:
            np.save(file, self.weights.astype("<f4"), allow_pickle=False)
        self.description.sha256 = _digest(folder / WEIGHTS_FILE)
        write_json(folder / DESCRIPTION_FILE, to_plain(self.description))

    @classmethod
    def load(cls, folder: Path, option: str) -> TextClassifier:
        """Reads the folder; the weights are mapped into memory, so that all processes have them once.

        Args:
            folder: As `save` has written it.
            option: What gave the folder, for errors.

        Raises:
            UserError: there is no classifier, or it is damaged.
        """
        path = folder / DESCRIPTION_FILE
        if not path.is_file():
            raise UserError(
                f"{option} '{folder}': no classifier there ({DESCRIPTION_FILE} is missing); make one with "
                "experiments/train_classifier.py --output FOLDER"
            )
        try:
            description = from_plain(ClassifierDescription, parse_json(path.read_bytes()))
            check_types(description, "")
            if description.format_version != FORMAT_VERSION:
                raise UserError(f"format version {description.format_version}, and this code reads {FORMAT_VERSION}")
            if _digest(folder / WEIGHTS_FILE) != description.sha256:
                raise UserError(f"{WEIGHTS_FILE} has another digest")
            weights = np.load(folder / WEIGHTS_FILE, mmap_mode="r", allow_pickle=False)
            if not (8 <= description.bits <= 30 and 1 <= description.ngrams <= 100):
                raise UserError(f"bits {description.bits} or ngrams {description.ngrams} are impossible")
            if weights.shape != (1 << description.bits,) or weights.dtype != np.float32:
                raise UserError(f"{WEIGHTS_FILE} has not {1 << description.bits} weights in float32")
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{option} '{folder}': damaged ({error}); train it again") from None
        return cls(description, weights)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
