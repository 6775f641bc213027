"""The command `contamination`: which rows of an evaluation a corpus has."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lit_llm.cli.commands import run_command
from lit_llm.config import ContaminationConfig, CorpusConfig, PrepareConfig, SourceConfig, UserError
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.corpus.shard_documents import ShardDocuments
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.sources.document import SourceDocument
from lit_llm.stages.clean_data import clean_data
from lit_llm.stages.contamination import FoundRow, contamination
from lit_llm.stages.prepare import prepare_data


def words(number: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(['an', 'be', 'co', 'du'])}{draw.randrange(10**6)}" for _ in range(number))


QUIZ = [{"question": words(20, seed), "answer": words(5, -1 - seed)} for seed in range(6)]
"""Rows of 25 words, which are 13 runs of 13."""


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    path = tmp_path / "quiz.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*QUIZ, {"question": "too short", "answer": "yes"}]))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Row 2 twice with its answer, row 4 without, row 5 cut to its first fifteen words; and other text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    second, fourth = QUIZ[1]["question"], QUIZ[3]["question"]
    (folder / "a.txt").write_text(f"{words(30, 100)} {second}\n{QUIZ[1]['answer'].upper()} {words(30, 101)}")
    rows = [words(40, 102), f"{fourth}.", f"{second} {QUIZ[1]['answer']}", " ".join(QUIZ[4]["question"].split()[:15])]
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    (folder / "c.jsonl").write_text(json.dumps({"other": "text"}))
    (folder / "d.txt.gz").write_bytes(b"\x1f\x8bjunk")
    return folder


def look(quiz: Path, folder: Path, **options: Any) -> Any:
    return contamination(ContaminationConfig([str(quiz)], corpus=SourceConfig(path=str(folder)), **options))


FOUND = [
    FoundRow(2, 13, 13, ["a.txt", "b.jsonl:3"]),
    FoundRow(4, 13, 8, ["b.jsonl:2"]),
    FoundRow(5, 13, 3, ["b.jsonl:4"]),
]


def test_rows_and_documents(quiz: Path, folder: Path) -> None:
    results = [look(quiz, folder, num_workers=number) for number in (1, 2)]
    assert results[0] == results[1]
    [found] = results[0].evaluations
    assert found.found_rows == FOUND
    assert (found.file, found.rows, found.looked_for, found.found, found.documents) == ("quiz.jsonl", 7, 6, 3, 4)
    assert found.mostly == 1
    assert (results[0].documents, results[0].runs) == (5, 6 * 13)
    assert results[0].skipped["no field 'text'"] == {
        "number": 1,
        "examples": [{"where": "c.jsonl:1", "detail": "there are other"}],
    }
    assert results[0].skipped["broken file"]["examples"][0]["where"] == "d.txt.gz"
    # options of the step decontaminate, and that of what counts as most of a row
    [found] = look(quiz, folder, share=0.6, min_matches=4).evaluations
    assert (found.found, found.mostly, found.documents) == (2, 2, 3)


def test_more_documents_than_are_named(quiz: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({"text": QUIZ[0]["question"], "name": f"n{place}"}) for place in range(9)))
    source = SourceConfig(path=str(path), id_field="name")
    [found] = contamination(ContaminationConfig([str(quiz)], corpus=source)).evaluations
    assert found.documents == 9 and found.found_rows == [FoundRow(1, 13, 8, ["n0", "n1", "n2"])]


def test_names_of_documents_are_no_orders_to_the_terminal(
    quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "named.jsonl"
    path.write_text(json.dumps({"text": QUIZ[0]["question"], "name": "\x1b[2Jn"}))
    run_command("contamination", [str(quiz), "--corpus.path", str(path), "--corpus.id_field", "name"])
    printed = capsys.readouterr().out
    assert "8 of 13 runs, in \u241b[2Jn\n" in printed and "\x1b" not in printed


def test_the_command_says_it_and_writes_it(
    quiz: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "found.json"
    command = [str(quiz), "--corpus.path", str(folder), "--num_workers", "1", "--output", str(output)]
    run_command("contamination", [*command, "--examples", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"corpus  folder {folder}, 4 files: 5 documents, 0.0 MB"
    assert lines.pop(1).startswith("left out  broken file (1): d.txt.gz (Compressed file ended")
    assert lines[1] == "left out  no field 'text' (1)"
    assert lines[3:] == [
        "quiz.jsonl: 3 of 7 rows in the corpus (42.86%), 1 of them for at least 70%, in 4 documents",
        "    too short to be looked for: 1",
        "    row 2: 13 of 13 runs, in a.txt, b.jsonl:3",
        "    row 4: 8 of 13 runs, in b.jsonl:2",
        "    and 1 more",
        f"rows  {output}",
    ]
    written = json.loads(output.read_text())
    assert written["evaluations"][0]["found_rows"] == [vars(row) for row in FOUND]
    assert written["options"]["n"] == 13 and written["documents"] == 5
    with pytest.raises(SystemExit):
        run_command("contamination", command)
    assert "the file is there already; set overwrite true" in capsys.readouterr().err
    run_command("contamination", [*command, "--overwrite", "true", "--n", "16"])
    assert json.loads(output.read_text())["evaluations"][0]["found"] == 2


@pytest.mark.parametrize("number", [1, 2])
def test_pages_and_other_encodings(number: int, quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words are found between tags, and what is no UTF-8, so that its words are not found, is said."""
    folder = tmp_path / "pages"
    folder.mkdir()
    words = QUIZ[0]["question"].split()
    nav, body = "<nav>home</nav>", "".join(f'<li class="item"><b>{word}</b></li>' for word in words)
    (folder / "a.html").write_text(f"<html><body>{nav}<ol>{body}</ol></body></html>")
    (folder / "b.jsonl").write_text(json.dumps({"text": f"<!DOCTYPE html><p>{'<i> </i>'.join(words)}"}))
    (folder / "c.html").write_text("<html><body></body></html>")
    for name in "defg":
        (folder / f"{name}.txt").write_bytes(f"\xe9\xe8 {QUIZ[1]['question']}".encode("latin-1"))
    run_command("contamination", [str(quiz), "--corpus.path", str(folder), "--num_workers", str(number)])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left out  no text left (1)",
        "read without their tags  3 pages of HTML",
        "8 bytes were not valid UTF-8 and became U+FFFD: d.txt, e.txt, f.txt and 1 more",
        "looked for  78 runs of words (0.0 MB of memory)",
        "quiz.jsonl: 2 of 7 rows in the corpus (28.57%), 0 of them for at least 70%, in 6 documents",
        "    too short to be looked for: 1",
        "    row 1: 8 of 13 runs, in a.html, b.jsonl:1",
        "    row 2: 8 of 13 runs, in d.txt, e.txt, f.txt",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ["gone.csv"]}, "files 'gone.csv': no such file"),
        ({"corpus": SourceConfig()}, "corpus.path is empty; name the corpus"),
        ({"corpus": SourceConfig(path="gone")}, "'gone'"),
        ({"corpus": "without"}, r"no document could be read there \(skipped: 7 no field 'text', as quiz"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], message: str, quiz: Path, folder: Path) -> None:
    if options.get("corpus") == "without":
        options = {"corpus": SourceConfig(path=str(quiz))}
    given = {"files": [str(quiz)], "corpus": SourceConfig(path=str(folder)), "num_workers": 1, **options}
    with pytest.raises(UserError, match=message) as raised:
        contamination(ContaminationConfig(**given))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"), [("share", 0.0), ("share", 1.5), ("examples", -1), ("num_workers", 0), ("n", 0)]
)
def test_impossible_options(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; it must be"):
        ContaminationConfig(**{name: value})


def test_shards_are_decoded(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Document by document, whatever shards and blocks they are in."""
    monkeypatch.setattr("lit_llm.data.corpus.shard_documents._BLOCK_TOKENS", 1000)
    texts = [f"{words(30, seed)}\n\u00e9" for seed in range(40)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    output = tmp_path / "shards"
    corpus = CorpusConfig(path=str(rows), validation_fraction=0.2)
    prepare_data(PrepareConfig(corpus, str(shards / "tokenizer"), str(output), shard_tokens=700))
    assert len(ShardedTokens(output / "train").files) > 3
    evaluation = tmp_path / "test.txt"
    evaluation.write_text("\n\n".join(texts[::3]))
    [found] = look(evaluation, output).evaluations
    assert found.found == found.mostly == found.documents == len(texts[::3])
    source = ShardDocuments(SourceConfig(path=str(output)))
    read = {}
    for unit in source.units():
        documents = [document for document in source.read(unit) if isinstance(document, SourceDocument)]
        assert [document.id for document in documents] == [f"{unit.name}:{place}" for place in range(len(documents))]
        read[unit.name] = [document.text for document in documents]
    assert list(read) == ["train", "validation"]
    assert sorted(read["train"] + read["validation"]) == sorted(texts)
    assert look(evaluation, output / "train").documents == len(read["train"])
    (output / "tokenizer").rename(output / "elsewhere")
    with pytest.raises(UserError, match="these are shards, and their tokenizer is not at"):
        look(evaluation, output)


def test_a_corpus_that_was_decontaminated_is_clean(quiz: Path, folder: Path, tmp_path: Path) -> None:
    """The recipe's step and the command agree, and what was dropped is listed by evaluation in the report."""
    common = words(60, 200)
    (folder / "d.jsonl").write_text("\n".join(json.dumps({"text": f"{words(40, at)} {common}"}) for at in (300, 301)))
    (folder / "c.jsonl").unlink()
    steps = [{"decontaminate": {"files": [str(quiz)]}}, {"substrings": {}}]
    reports = []
    for number in (1, 2):
        output = tmp_path / f"corpus{number}"
        recipe = RecipeConfig([SourceConfig(path=str(folder))], steps, str(output), num_workers=number)
        reports.append(clean_data(recipe).report)
    assert reports[0]["corpus"]["digest"] == reports[1]["corpus"]["digest"]
    decontaminate, substrings = reports[0]["steps"]
    assert decontaminate["dropped"]["text of quiz.jsonl"]["documents"] == 4
    assert decontaminate["counts"] == {"documents with text of quiz.jsonl": 4}
    assert len(decontaminate["dropped"]["text of quiz.jsonl"]["examples"]) == 3
    assert substrings["facts"]["tokens repeated"] == 60 and substrings["counts"]["documents cut"] == 1
    assert reports[0]["corpus"]["documents"] == 3
    result = look(quiz, tmp_path / "corpus1")
    assert result.documents == 3 and result.evaluations[0].found == 0
