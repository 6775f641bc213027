"""Training a classifier of quality on two corpora."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_llm.config import ClassifierConfig, UserError, to_plain
from lit_llm.config.progress import progress
from lit_llm.config.recipe import SourceConfig
from lit_llm.data.cleaning.classifier_training import (
    SparseRows,
    area_under_curve,
    fit_logistic,
    precision_and_recall,
)
from lit_llm.data.cleaning.text_features import (
    DESCRIPTION_FILE,
    ClassifierDescription,
    TextClassifier,
    TextFeatures,
)
from lit_llm.data.sources.document import Skipped
from lit_llm.data.sources.opening import open_source

THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Thresholds at which precision and recall are measured."""


@dataclass(frozen=True)
class ThresholdMeasures:
    """What a threshold would do to the held-out documents.

    Attributes:
        threshold: Documents whose probability is below it are dropped.
        precision: Share of positives among those that stay; NaN if none does.
        recall: Share of the positives that stay.
        negatives_kept: Share of the negatives that stay.
    """

    threshold: float
    precision: float
    recall: float
    negatives_kept: float


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier, and what it is worth on documents that it was not trained on.

    Attributes:
        folder: Where it is.
        documents: Numbers of documents by split and kind, "training positives" and so on.
        area_under_curve: The probability that a held-out positive has a higher score than a held-out negative.
        measures: Of each of `THRESHOLDS`.
    """

    folder: Path
    documents: dict[str, int]
    area_under_curve: float
    measures: list[ThresholdMeasures]


@dataclass(frozen=True)
class _Sample:
    """The features of some documents of a corpus, and which of them are held out."""

    rows: list[np.ndarray]
    held_out: list[bool]


def train_classifier(config: ClassifierConfig) -> TrainedClassifier:
    """Trains on two corpora, measures on a part of them that is held out, and writes the classifier to `config.output`.

    Raises:
        UserError: there is a classifier already and `overwrite` is off; a corpus is missing, or too small to hold
            documents out.
    """
    folder = Path(config.output)
    if (folder / DESCRIPTION_FILE).exists() and not config.overwrite:
        raise UserError(f"{folder}: a classifier is there already; set overwrite true or choose another output")
    samples = {name: _read(config, name) for name in ("negatives", "positives")}
    labels = np.repeat([0, 1], [len(sample.rows) for sample in samples.values()])
    rows = [row for sample in samples.values() for row in sample.rows]
    held_out = np.array([held for sample in samples.values() for held in sample.held_out])
    documents = _counted(labels, held_out)
    training = SparseRows.of([row for row, held in zip(rows, held_out, strict=True) if not held])
    with progress("training", config.epochs * len(training), "documents") as advance:
        weights, bias = fit_logistic(
            training,
            labels[~held_out],
            1 << config.bits,
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=config.seed,
            advance=advance,
        )
    description = ClassifierDescription(config.ngrams, config.bits, bias, "", to_plain(config), documents)
    classifier = TextClassifier(description, weights.astype(np.float32))
    scores = np.array([classifier.probability(row) for row, held in zip(rows, held_out, strict=True) if held])
    area, measures = area_under_curve(scores, labels[held_out]), _measures(scores, labels[held_out])
    middle = measures[THRESHOLDS.index(0.5)]
    description.held_out = {"area under curve": area, "recall": middle.recall}
    if middle.precision == middle.precision:
        description.held_out["precision"] = middle.precision
    classifier.save(folder)
    return TrainedClassifier(folder, documents, area, measures)


def _read(config: ClassifierConfig, name: str) -> _Sample:
    """The features of documents of one of the two corpora, taken from its units in equal numbers."""
    corpus: SourceConfig = getattr(config, name)
    if not corpus.path:
        raise UserError(f"{name}.path is empty; name the corpus: a file, a folder, a glob or hf:NAME")
    source = open_source(corpus)
    units = source.units()
    features = TextFeatures(config.ngrams, config.bits)
    sample, skipped = _Sample([], []), Counter[str]()
    with progress(f"reading {name}", None, "documents") as advance:
        for place, unit in enumerate(units):
            left = config.max_documents - len(sample.rows)
            quota = -(-left // (len(units) - place))
            for document in source.read(unit) if quota else ():
                if isinstance(document, Skipped):
                    skipped[document.reason] += 1
                    continue
                sample.rows.append(features(document.text))
                sample.held_out.append(int(document.digest[:16], 16) < config.held_out * 2**64)
                advance(1)
                quota -= 1
                if not quota:
                    break
    if skipped:
        reasons = ", ".join(f"{reason} ({number:,})" for reason, number in skipped.items())
        print(f"{name}: {skipped.total():,} documents left out: {reasons}", file=sys.stderr)
    if not 0 < sum(sample.held_out) < len(sample.rows):
        raise UserError(
            f"{name}: of {len(sample.rows):,} documents in {source.description}, {sum(sample.held_out):,} are held "
            "out; there must be some to train on and some to measure with: use more documents, or another held_out"
        )
    return sample


def _counted(labels: np.ndarray, held_out: np.ndarray) -> dict[str, int]:
    return {
        f"{split} {kind}": int(np.count_nonzero((held_out == held) & (labels == label)))
        for split, held in (("training", False), ("held-out", True))
        for kind, label in (("positives", 1), ("negatives", 0))
    }


def _measures(scores: np.ndarray, labels: np.ndarray) -> list[ThresholdMeasures]:
    return [
        ThresholdMeasures(
            threshold,
            *precision_and_recall(scores, labels, threshold),
            float((scores[labels == 0] >= threshold).mean()),
        )
        for threshold in THRESHOLDS
    ]
