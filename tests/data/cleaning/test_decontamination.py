"""The step `decontaminate`: what it finds of an evaluation, and what it takes out."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_llm.config import UserError
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.cleaning.decontamination import Decontaminate, remaining_pieces
from lit_llm.data.cleaning.evaluation_index import EvaluationIndex
from lit_llm.data.cleaning.evaluations import passages
from lit_llm.data.cleaning.ngrams import WordHashes, normalized, window_hashes, word_pattern
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.sources.document import SourceDocument

QUESTION = (
    "Ann has three red apples and gives two of them to her brother Tom. How many apples does she keep for herself?"
)
ANSWER = "She keeps one."
SHORT = "Which gas do plants take from the air by day?"  # 10 words


def document(text: str) -> SourceDocument:
    return SourceDocument("d", "s", text, "0" * 32)


def step(folder: Path, rows: list[Any], **options: Any) -> Decontaminate:
    path = folder / "quiz.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    [(name, made)] = RecipeConfig(steps=[{"decontaminate": {"files": [str(path)], **options}}]).step_options()
    built = build_step(name, made)
    assert isinstance(built, Decontaminate)
    return built


def filler(words: int, seed: int = 0) -> str:
    return " ".join(f"w{random.Random(seed * 10_007 + place).randrange(10**9)}" for place in range(words))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (QUESTION, True),
        # case, punctuation, line ends and full-width letters do not matter
        ("ANN HAS THREE RED APPLES AND GIVES\nTWO OF THEM TO HER BROTHER TOM!", True),
        ("ann has three red \uff41pples and gives - two of them (to her) brother", True),
        (" ".join(QUESTION.split()[:12]), False),  # 12 words
        (" ".join(QUESTION.split()[:13]), True),
        (" ".join(QUESTION.split()[3:16]), True),
        (QUESTION.replace("two", "some").replace("keep", "have"), False),  # runs of 7, 11 and 2 words
        # the end of the question goes on in the answer
        ("brother Tom. How many apples does she keep for herself? She keeps one", True),
        ("does she keep for herself? She keeps one", False),
        # a short row is found as a whole, and not in parts
        (SHORT.lower(), True),
        (" ".join(SHORT.split()[:9]), False),
        ("True", False),
    ],
)
def test_what_is_found(text: str, found: bool, tmp_path: Path) -> None:
    decontaminate = step(tmp_path, [{"question": QUESTION, "answer": ANSWER}, {"question": SHORT, "answer": "True"}])
    for around in ("{}", filler(40) + " {} " + filler(40, 1)):
        reason = decontaminate(document(around.format(text)))
        assert reason == ("text of quiz.jsonl" if found else None)
    assert decontaminate.counts == ({"documents with text of quiz.jsonl": 2} if found else {})


def test_options_of_what_is_found(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "answer": ANSWER, "level": SHORT}]
    eight = document(" ".join(QUESTION.split()[:8]))
    assert step(tmp_path, rows, n=8)(eight) and not step(tmp_path, rows, n=9)(eight)
    assert step(tmp_path, rows)(document(SHORT)) and not step(tmp_path, rows, fields=["question"])(document(SHORT))
    assert not step(tmp_path, rows, short="ignore")(document(SHORT))
    assert not step(tmp_path, rows, min_words=11)(document(SHORT))
    # 15 words of the question are 3 runs of 13, and a run that is met again is no further one
    fifteen = " ".join(QUESTION.split()[:15])
    assert step(tmp_path, rows, min_matches=3)(document(f"{fifteen} x {fifteen}"))
    assert not step(tmp_path, rows, min_matches=4)(document(f"{fifteen} x {fifteen}"))
    assert step(tmp_path, rows, min_matches=4)(document(SHORT))  # whole, and so enough


def test_spans_are_taken_out(tmp_path: Path) -> None:
    before, after = filler(60), filler(60, 1)
    cut = step(tmp_path, [{"q": QUESTION}], remove="span", window=50)
    one = document(f"{before}\n{QUESTION}\n{after}")
    assert cut(one) is None
    left, right = one.text.split("\n\n")
    assert before.startswith(left) and after.endswith(right)
    # at least 50 characters more on either side, and no more than to the end of a word
    for whole, rest in ((before, left), (after, right)):
        assert 50 <= len(whole) - len(rest) <= 50 + len("w123456789 ")
    assert set(one.text.split()) <= {*before.split(), *after.split()}
    assert one.metadata == {"decontaminated": ["quiz.jsonl"]}
    removed = len(f"{before}\n{QUESTION}\n{after}") - len(one.text)
    assert cut.counts == {"documents with text of quiz.jsonl": 1, "spans removed": 1, "bytes removed": removed}
    untouched = document(before)
    assert cut(untouched) is None and untouched.text == before and not untouched.metadata


def test_documents_with_nothing_left_and_in_too_many_pieces_are_dropped(tmp_path: Path) -> None:
    cut = step(tmp_path, [{"q": QUESTION}], remove="span", window=0, min_piece=10, max_pieces=2)
    assert cut(document(f"so: {QUESTION}")) == "nothing left beside text of quiz.jsonl"
    pieces = [filler(20, seed) for seed in range(3)]
    two, three = (document(f" {QUESTION} ".join(pieces[:number])) for number in (2, 3))
    assert cut(two) is None and two.text == "\n\n".join(pieces[:2])
    assert cut(three) == "text of quiz.jsonl in more than 2 pieces"


@pytest.mark.parametrize(
    ("window", "min_piece", "pieces", "cuts"),
    [
        (0, 0, ["one", "four", "six"], 2),
        (1, 0, ["one", "four", "six"], 2),
        (2, 0, [], 1),  # into "one", "four" and "six", which go as a whole
        (0, 4, ["four"], 2),
        (0, 5, [], 2),
        (99, 0, [], 1),
    ],
)
def test_remaining_pieces(window: int, min_piece: int, pieces: list[str], cuts: int) -> None:
    text = "one two three four five six"
    spans = [(4, 7), (4, 13), (19, 23)]  # two, two three, five
    assert remaining_pieces(text, spans, window, min_piece) == (pieces, cuts)


def test_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    rows = [[QUESTION, "one", "two"], [SHORT, "CO2", "O2"]]
    names = ["question", "a", "b"]
    objects = [{"question": row[0], "choices": {"text": row[1:], "n": 2}} for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, objects)))
    (tmp_path / "b.json").write_text(json.dumps(objects))
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "c.parquet")
    for name, head in (("d.csv", []), ("e.csv", [names])):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([*head, *rows])
    (tmp_path / "f.txt").write_text("\n\n".join("\n".join(row) for row in rows) + "\n")
    expected = [[QUESTION, "one", "two"], [SHORT, "CO2", "O2"]]
    for name in "abcdef":
        [path] = tmp_path.glob(f"{name}.*")
        found = [[text.strip() for _, text in passage] for passage in passages(path, names if name == "e" else None)]
        assert found == expected, path
    assert [number for passage in passages(tmp_path / "f.txt", None) for number, _ in passage] == [1, 2, 3, 5, 6, 7]
    assert list(passages(tmp_path / "d.csv", ["3", "1"])) == [[(1, "two"), (1, QUESTION)], [(2, "O2"), (2, SHORT)]]
    assert list(passages(tmp_path / "a.jsonl", ["choices"]))[1] == [(2, "CO2"), (2, "O2")]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("gone.jsonl", None, {}, "files '.*gone.jsonl': no such file"),
        ("a.jsonl", "", {}, "a.jsonl: no row with text; leave it out"),
        ("a.jsonl", "{broken", {}, "a.jsonl:1: broken JSON"),
        ("a.jsonl", '{"q": 1}', {"fields": ["p"]}, "a.jsonl row 1: no field 'p'; set fields to some of: q"),
        ("a.csv", "q,a\nx,y", {"fields": ["p"]}, "a.csv: no column 'p'; set fields to some of: q, a"),
        ("a.csv", "x,y", {"fields": ["3"]}, "a.csv row 1: 2 columns, and fields names column 3"),
        ("a.txt", "too short", {}, "a.txt: none of its 1 rows is long enough to be looked for, with n 13"),
        ("a.txt", "so\ncaf\xe9s", {}, "a.txt, line 2: 1 bytes are not UTF-8; write the file again as UTF-8"),
        ("a.png", "x", {}, "no evaluation there"),
        ("a.txt", "x", {"files": []}, "files is empty; name the evaluations"),
        ("a.txt", "x", {"n": 0}, "n is 0; it must be at least 1"),
        ("a.txt", "x", {"fields": []}, "fields is empty"),
        ("a.txt", "x", {"max_pieces": 0}, "max_pieces is 0"),
        ("a.txt", "x", {"window": -1}, "window is -1"),
    ],
)
def test_bad_input_is_one_line(
    name: str, content: str | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message) as raised:
        recipe = RecipeConfig(steps=[{"decontaminate": {"files": [str(tmp_path / name)], **options}}])
        build_step(*recipe.step_options()[0])
    assert "\n" not in str(raised.value)


def test_same_names_of_files_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.txt").write_text(QUESTION if folder == "one" else SHORT)
    options = {"files": [str(tmp_path / "*" / "test.txt"), str(tmp_path / "one")]}
    [(name, made)] = RecipeConfig(steps=[{"decontaminate": options}]).step_options()
    decontaminate = build_step(name, made)
    assert isinstance(decontaminate, Decontaminate)
    assert decontaminate(document(SHORT)) == f"text of {(tmp_path / 'two' / 'test.txt').as_posix()}"


def test_scripts_without_spaces_are_compared_by_characters(tmp_path: Path) -> None:
    sentence = "\u6625\u7720\u4e0d\u89ba\u6681\u8655\u8655\u805e\u557c\u9ce5\u591c\u4f86\u98a8\u96e8\u8072"
    decontaminate = step(tmp_path, [sentence])
    assert decontaminate(document(f"\u524d{sentence[1:14]}\uff0c\u5f8c"))
    assert not decontaminate(document(f"\u524d{sentence[1:13]}\uff0c\u5f8c"))
    assert word_pattern("a\u6625").findall("it's caf\u0065\u0301_1 \u6625\u7720x") == [
        *("it", "s", "caf\u0065\u0301_1", "\u6625", "\u7720", "x")
    ]
    assert normalized("CAFE\u0301") == normalized("caf\u00e9")


@pytest.mark.parametrize("length", [1, 2, 3, 7, 13, 16])
def test_window_hashes_are_the_same_for_the_same_words_alone(length: int) -> None:
    numbers = np.random.default_rng(length)
    letters = [str(letter) for letter in numbers.integers(0, 3, 400)]
    hashes = window_hashes(WordHashes().of(letters), length)
    windows = [tuple(letters[place : place + length]) for place in range(400 - length + 1)]
    assert len(hashes) == len(windows) and len(set(hashes.tolist())) == len(set(windows))
    assert len({(window, value) for window, value in zip(windows, hashes.tolist(), strict=True)}) == len(set(windows))
    assert len(window_hashes(WordHashes().of(letters[: length - 1]), length)) == 0


def test_published_evaluations(shared_data: Path) -> None:
    """GSM8K, MMLU and BLiMP find themselves, a row of each in a document, and nothing in Shakespeare."""
    files = ["gsm8k_train.jsonl", "mmlu/test/*.csv", "blimp_sample.jsonl"]
    [(name, made)] = RecipeConfig(
        steps=[{"decontaminate": {"files": [str(shared_data / file) for file in files]}}]
    ).step_options()
    decontaminate = build_step(name, made)
    assert isinstance(decontaminate, Decontaminate)
    rows = [json.loads(line) for line in (shared_data / "gsm8k_train.jsonl").read_text().splitlines()[::50]]
    questions = [row["question"] for row in rows]
    assert {decontaminate(document(f"{filler(9)} {text} {filler(9, 1)}")) for text in questions} == {
        "text of gsm8k_train.jsonl"
    }
    with (shared_data / "mmlu" / "test" / "astronomy_test.csv").open(newline="") as file:
        cells = [" ".join(row) for row in csv.reader(file)]
    assert {decontaminate(document(text)) for text in cells} == {"text of astronomy_test.csv"}
    plays = (shared_data / "tinyshakespeare.txt").read_text()
    assert decontaminate(document(plays)) is None
    index = EvaluationIndex(made)
    assert index.files[0].rows == index.files[0].looked_for == 7473
    assert index.files[-1].rows == 3350
