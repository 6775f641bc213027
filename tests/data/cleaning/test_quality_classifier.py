"""The quality classifier: its training, its folder, and the step that uses it."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_llm.cli.commands import run_command
from lit_llm.config import ClassifierConfig, SourceConfig, UserError
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.cleaning.classifier_training import (
    SparseRows,
    area_under_curve,
    fit_logistic,
    precision_and_recall,
)
from lit_llm.data.cleaning.quality_classifier import QualityClassifier
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.text_features import TextClassifier, TextFeatures
from lit_llm.data.sources.document import SourceDocument
from lit_llm.stages.classifier import train_classifier

GOOD = ["because", "therefore", "evidence", "shows", "that", "the", "result", "follows", "from", "theory"]
BAD = ["click", "here", "buy", "now", "cheap", "best", "offer", "free", "login", "subscribe"]
PLAIN = [f"word{number}" for number in range(300)]


def rows(kind: list[str], share: float, seed: int, number: int = 300) -> list[str]:
    """Documents of 40 words, each of which is of `kind` with a probability."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(kind) if draw.random() < share else draw.choice(PLAIN) for _ in range(40))
        for _ in range(number)
    ]


def corpus(path: Path, texts: list[str]) -> SourceConfig:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return SourceConfig(path=str(path))


def config(folder: Path, share: float = 0.3, **options: Any) -> ClassifierConfig:
    positives = corpus(folder / "good.jsonl", rows(GOOD, share, 1))
    negatives = corpus(folder / "bad.jsonl", rows(BAD, share, 2))
    return ClassifierConfig(
        positives, negatives, str(folder / "classifier"), **{"bits": 14, "held_out": 0.3, **options}
    )


def test_two_corpora_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = config(tmp_path)
    trained = train_classifier(made)
    assert trained.area_under_curve > 0.99
    [middle] = [each for each in trained.measures if each.threshold == 0.5]
    assert middle.precision > 0.95 and middle.recall > 0.95 and middle.negatives_kept < 0.05
    recalls = [each.recall for each in trained.measures]
    assert recalls == sorted(recalls, reverse=True)
    for kind in ("positives", "negatives"):
        held_out = trained.documents[f"held-out {kind}"]
        assert 60 < held_out < 120 and held_out + trained.documents[f"training {kind}"] == 300
    # the step takes the same classifier, and its score is what was measured
    model = str(tmp_path / "classifier")
    [(name, options)] = RecipeConfig(steps=[{"quality_classifier": {"model": model}}]).step_options()
    step = build_step(name, options)
    assert isinstance(step, QualityClassifier)
    kept = {}
    for kind, texts in (("good", rows(GOOD, 0.3, 3)), ("bad", rows(BAD, 0.3, 4))):
        documents = [SourceDocument("d", "s", text, "") for text in texts]
        reasons = [step(document) for document in documents]
        assert set(reasons) <= {None, "quality below 0.5"}
        assert [document.metadata["quality"] >= 0.5 for document in documents] == [why is None for why in reasons]
        kept[kind] = reasons.count(None)
    assert kept["good"] > 285 and kept["bad"] < 15
    strict = QualityClassifier(replace(options, threshold=1.0))
    assert strict(SourceDocument("d", "s", " ".join(GOOD), "")) == "quality below 1.0"
    # said to the user in numbers
    words = ["--positives.path", made.positives.path, "--negatives.path", made.negatives.path, "--output", model]
    run_command("train_classifier", [*words, "--overwrite", "true", "--bits", "14", "--held_out", "0.3"])
    shown = capsys.readouterr().out
    assert f"held-out  {trained.documents['held-out positives']} documents of {made.positives.path}" in shown
    assert f"area under the curve, held out: {trained.area_under_curve:.4f}" in shown
    assert re.search(rf"0\.50 +{middle.precision:.4f} +{middle.recall:.4f} +{middle.negatives_kept:.4f}", shown)


def test_what_cannot_be_told_apart_is_not(tmp_path: Path) -> None:
    trained = train_classifier(config(tmp_path, share=0.0))
    assert 0.35 < trained.area_under_curve < 0.65


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = config(tmp_path, seed=seed, epochs=1)
        folder = train_classifier(replace(made, output=str(tmp_path / name))).folder
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0]["weights.npy"] == contents[1]["weights.npy"] != contents[2]["weights.npy"]
    described = [json.loads(content["classifier.json"]) for content in contents]
    for each in described:
        each["training"].pop("output")
    assert described[0] == described[1]
    assert set(contents[0]) == {"classifier.json", "weights.npy"}
    assert described[0]["held_out"]["precision"] > 0.9 and described[0]["documents"]["training positives"] > 150


def test_documents_are_taken_evenly_from_the_files(tmp_path: Path) -> None:
    made = config(tmp_path, max_documents=60)
    folder = tmp_path / "files"
    folder.mkdir()
    for place, number in enumerate((200, 5, 200)):
        corpus(folder / f"{place}.jsonl", rows(GOOD, 0.3, place, number))
    documents = train_classifier(replace(made, positives=SourceConfig(path=str(folder)))).documents
    assert documents["training positives"] + documents["held-out positives"] == 60  # 20, 5 and 35
    assert documents["training negatives"] + documents["held-out negatives"] == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: {"positives": SourceConfig()}, "positives.path is empty; name the corpus"),
        (lambda made: {"negatives": SourceConfig(path="gone.jsonl")}, "gone.jsonl"),
        (lambda made: {"max_documents": 1}, "negatives: of 1 documents in .*bad.jsonl, . are held out"),
        (lambda made: {"output": str(Path(made.output).parent / "old")}, "old: a classifier is there already"),
    ],
)
def test_bad_training_is_one_line(change: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "classifier.json").touch()
    made = config(tmp_path)
    with pytest.raises(UserError, match=message):
        train_classifier(replace(made, **change(made)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_documents", 0), ("ngrams", 0), ("epochs", 0), ("batch_size", 0), ("bits", 31), ("learning_rate", 0.0),
     ("weight_decay", -1.0), ("held_out", 1.0), ("seed", -1)],
)  # fmt: skip
def test_impossible_options(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; it must be"):
        ClassifierConfig(**{name: value})
    with pytest.raises(UserError, match=r"threshold is 1\.5; it must be a probability"):
        RecipeConfig(steps=[{"quality_classifier": {"model": "x", "threshold": 1.5}}])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small classifier."""
    return train_classifier(config(tmp_path_factory.mktemp("trained"), bits=8, epochs=1)).folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda copy: (copy / "classifier.json").unlink(), "no classifier there"),
        (lambda copy: (copy / "classifier.json").write_text("{"), "damaged"),
        (lambda copy: (copy / "classifier.json").write_text("[]"), "damaged"),
        (lambda copy: _change(copy, bits="8"), "damaged .*bits is '8'"),
        (lambda copy: _change(copy, bits=9), "damaged .*has not 512 weights"),
        (lambda copy: _change(copy, bits=60), "damaged .*bits 60"),
        (lambda copy: _change(copy, ngrams=0), "damaged .*ngrams 0"),
        (lambda copy: _change(copy, format_version=2), "format version 2, and this code reads 1"),
        (lambda copy: _change(copy, extra=2), "no option extra"),
        (lambda copy: (copy / "weights.npy").unlink(), "damaged .*weights.npy"),
        (lambda copy: (copy / "weights.npy").write_bytes(b"x"), "weights.npy has another digest"),
    ],
)
def test_a_damaged_folder_is_one_line(damage: Any, message: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    TextClassifier.load(copy, "model")
    damage(copy)
    with pytest.raises(UserError, match=message) as raised:
        TextClassifier.load(copy, "quality_classifier.model")
    assert str(raised.value).startswith("quality_classifier.model '") and "\n" not in str(raised.value)


def _change(folder: Path, **values: Any) -> None:
    path = folder / "classifier.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_step_without_a_folder_says_how_to_make_one() -> None:
    for model, message in (("", "model is empty; name the folder"), ("gone", "make one with .*train_classifier.py")):
        [(name, options)] = RecipeConfig(steps=[{"quality_classifier": {"model": model}}]).step_options()
        with pytest.raises(UserError, match=message):
            build_step(name, options)


def test_features_and_probability_are_as_defined() -> None:
    features = TextFeatures(2, 16)
    numbers = features("The cat! the cat, the CAT")
    assert len(numbers) == 4 and set(numbers) == set(features("the cat the cat"))  # the, cat, the cat, cat the
    assert set(TextFeatures(1, 16)("the cat")) < set(numbers)
    assert len(features("")) == 0
    classifier = TextClassifier(_description(bits=16, bias=-0.25), np.arange(1 << 16, dtype=np.float32) / 2**16)
    expected = 1 / (1 + math.exp(-(sum(numbers.tolist()) / 2**16 / 2 - 0.25)))
    assert classifier.probability(numbers) == pytest.approx(expected, rel=1e-12)
    assert classifier.probability(features("")) == pytest.approx(1 / (1 + math.exp(0.25)), rel=1e-12)


def _description(**values: Any) -> Any:
    from lit_llm.data.cleaning.text_features import ClassifierDescription

    return ClassifierDescription(**{"ngrams": 2, "sha256": "", **values})


def test_measures_by_hand() -> None:
    scores, labels = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([1, 1, 0, 0, 1])
    # pairs: 0.9 beats both, 0.8 ties with one and beats one, 0.1 beats none
    assert area_under_curve(scores, labels) == pytest.approx(3.5 / 6)
    assert precision_and_recall(scores, labels, 0.8) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    precision, recall = precision_and_recall(scores, labels, 0.95)
    assert math.isnan(precision) and recall == 0


def test_training_reaches_the_optimum_of_logistic_regression() -> None:
    """Two features with known rates: the weights are their log odds, whatever the classes' sizes are."""
    kinds = [([0], 1, 240), ([0], 0, 20), ([1], 1, 60), ([1], 0, 80)]  # positives 4:1, negatives 1:4
    made = [(np.array(features, np.int32), label) for features, label, often in kinds for _ in range(often)]
    labels = np.array([label for _, label in made])
    weights, bias = fit_logistic(
        SparseRows.of([features for features, _ in made]), labels, 2,
        epochs=150, batch_size=len(made), learning_rate=0.3, weight_decay=0.0, seed=0,
    )  # fmt: skip
    assert weights + bias == pytest.approx([math.log(4), -math.log(4)], abs=1e-3)
