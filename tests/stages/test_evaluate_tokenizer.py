"""Tokenizers measured on texts; and one trained on the train split of a corpus of documents in parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_llm.cli.commands import run_command
from lit_llm.config import (
    CorpusConfig,
    PrepareConfig,
    TokenizerEvaluationConfig,
    TokenizerTrainingConfig,
    UserError,
)
from lit_llm.data.corpus.tokenizer_record import TokenizerRecord
from lit_llm.evaluation.tokenizer_scores import TokenizerScores
from lit_llm.stages.evaluate_tokenizer import evaluate_tokenizer
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.tokenizer import Tokenizer, train_character

ENGLISH = ["the cat sat on the mat", "the dog sat on the log and the cat ran"]
GERMAN = ["die Katze saß auf der Matte", "größer als die Tür ist das Haus"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus as recipes write it: documents/part-00000.parquet and so on."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "documents").mkdir()
    for part in range(3):
        texts = [f"{text} {part} {number}" for number in range(20) for text in ENGLISH + GERMAN]
        languages = ["en", "en", "de", None] * 20
        ids = [f"{part}:{number}" for number in range(len(texts))]
        table = pa.table({"text": texts, "id": ids, "language": pa.array(languages, pa.string())})
        pq.write_table(table, folder / "documents" / f"part-{part:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = CorpusConfig(str(documents), split="hash", validation_fraction=0.2)
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=335, output=str(folder)))
    return folder


def test_a_tokenizer_of_the_train_split_of_documents(documents: Path, trained: Path, tmp_path: Path) -> None:
    corpus = CorpusConfig(str(documents), split="hash", validation_fraction=0.2)
    manifests = prepare_data(PrepareConfig(corpus, str(trained), str(tmp_path / "shards")))
    record = TokenizerRecord.load(trained, Tokenizer.load(trained).digest)
    assert record is not None
    assert sum(manifest.documents for manifest in manifests.values()) == 240
    assert (record.documents, record.bytes) == (manifests["train"].documents, manifests["train"].bytes)
    assert 10 <= manifests["validation"].documents <= 100


def test_counts_by_hand() -> None:
    """Ten characters are known; ß is two bytes, which byte fallback spells."""
    tokenizer = train_character(["die Katze saf"], byte_fallback=True)
    scores = TokenizerScores(tokenizer)
    scores.add(["die Katze saß", "das"])
    numbers = scores.numbers()
    assert [numbers[name] for name in ("documents", "bytes", "words", "tokens", "changed")] == [2, 17, 4, 17, 0]
    assert (numbers["bytes_per_token"], numbers["tokens_per_word"]) == (1.0, 17 / 4)
    assert (numbers["byte_share"], numbers["unknown_share"]) == (2 / 17, 0.0)
    # d i e K a t z s and the space, and two bytes; f and 254 bytes do not occur
    assert numbers["vocabulary_used"] == pytest.approx(11 / 266)


def test_by_corpus_and_language_beside_others(
    documents: Path, trained: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer.save(tmp_path / "other")
    (tmp_path / "text.txt").write_text("the cat sat on the log")
    texts = [str(documents), str(tmp_path / "text.txt")]
    arguments = ["--tokenizer", str(trained), "--against", f"[{tmp_path / 'other'}]", "--texts", json.dumps(texts)]
    run_command("evaluate_tokenizer", [*arguments, "--output", str(tmp_path / "out" / "numbers.json")])
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "numbers.json").read_text())
    rows = written["tokenizers"][str(trained)]
    names = [(row["texts"], row["language"]) for row in rows]
    assert names == [(texts[0], name) for name in ("", "en", "not said", "de")] + [(texts[1], "")]
    assert [row["documents"] for row in rows] == [240, 120, 60, 60, 1]
    assert all(rows[0][name] == sum(row[name] for row in rows[1:4]) for name in ("bytes", "words", "tokens"))
    other = written["tokenizers"][str(tmp_path / "other")]
    for mine, theirs in zip(rows[:4], other, strict=False):
        assert mine["bytes"] == theirs["bytes"] and mine["bytes_per_token"] > theirs["bytes_per_token"]
    ids = Tokenizer.load(trained).encode("the cat sat on the log")
    assert (rows[4]["tokens"], rows[4]["tokens_per_word"]) == (len(ids), len(ids) / 6)
    assert f"| {texts[0]}: de" in out and f"{rows[3]['bytes_per_token']:.2f}" in out
    assert f"{trained} was trained on text of {documents}, and may do better on it than on other text" in out


def test_gpt2_from_its_own_files(shared_data: Path, tmp_path: Path) -> None:
    """GPT-2 has 50,256 ordinary tokens, and spells any text."""
    (tmp_path / "a.txt").write_text("Hello world, grüße 漢字!")
    folder = str(shared_data / "gpt2")
    result = evaluate_tokenizer(TokenizerEvaluationConfig(folder, texts=[str(tmp_path / "a.txt")]))
    (numbers,) = (scores.numbers() for scores in result.scores[folder].values())
    ids = Tokenizer.from_gpt2_files(f"{folder}/vocab.json", f"{folder}/merges.txt").encode("Hello world, grüße 漢字!")
    assert (numbers["tokens"], numbers["changed"], numbers["unknown_share"]) == (len(ids), 0, 0.0)
    assert numbers["byte_share"] > 0  # GPT-2 has no token of either Han character
    assert numbers["vocabulary_used"] == pytest.approx(len(set(ids)) / 50_256)


def test_what_cannot_be_measured_says_why(documents: Path, trained: Path, tmp_path: Path) -> None:
    def message(**options: object) -> str:
        with pytest.raises(UserError) as caught:
            evaluate_tokenizer(TokenizerEvaluationConfig(**{"tokenizer": str(trained), **options}))
        return str(caught.value)

    assert message().startswith("texts is empty; give corpora")
    assert message(texts=["nowhere"]).startswith("texts 'nowhere': no such file")
    assert message(texts=[str(documents)], text_field="body").endswith(
        "row 1 has no text in 'body'; set text_field to its name"
    )
    assert message(tokenizer="nowhere", texts=[str(documents)]).startswith("nowhere: no such tokenizer folder")
    train_character(["abc"], byte_fallback=False).save(tmp_path / "letters")
    assert message(against=[str(tmp_path / "letters")], texts=[str(documents)]).startswith(
        f"{tmp_path / 'letters'} cannot encode {documents}: the vocabulary lacks the character"
    )
    with pytest.raises(UserError, match="max_bytes is 0"):
        TokenizerEvaluationConfig(max_bytes=0)


@pytest.mark.parametrize(
    ("most", "documents_read", "bytes_read"),
    [
        (30, 2, 30),
        (len(f"{ENGLISH[0]} 0 0"), 1, len(f"{ENGLISH[0]} 0 0")),  # up to the end of a document
        (81, 3, 80),  # the 81st byte is the first half of a letter of the third
        (10**6, 240, None),
    ],
)
def test_max_bytes_cuts_the_last_document(
    most: int, documents_read: int, bytes_read: int | None, documents: Path, trained: Path
) -> None:
    corpus, folder = str(documents), str(trained)
    result = evaluate_tokenizer(TokenizerEvaluationConfig(folder, texts=[corpus], max_bytes=most))
    read = result.scores[folder][corpus, None]
    whole = evaluate_tokenizer(TokenizerEvaluationConfig(folder, texts=[corpus, corpus])).scores[folder][corpus, None]
    assert whole.documents == 240  # a corpus that is given twice is read once
    assert (read.documents, read.bytes) == (documents_read, bytes_read or whole.bytes)
