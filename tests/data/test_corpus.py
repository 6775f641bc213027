import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.corpus import Corpus
from lit_llm.tokenizer import train_bpe

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
# Of 0000.txt to 1999.txt, the first three whose blake2b is below 0.05, computed apart from the package.
STABLE_TEST_KEYS = ["0004.txt", "0023.txt", "0024.txt"]
ROWS = [{"text": f"row {index} é", "id": index} for index in range(40)]


def corpus(path, **options) -> Corpus:
    piece_bytes = options.pop("piece_bytes", None)
    config = CorpusConfig(path=str(path), **options)
    return Corpus(config) if piece_bytes is None else Corpus(config, piece_bytes)


def texts(source: Corpus, split: str | None = None) -> list[str]:
    return [document.text for document in source.documents() if split in (None, document.split)]


def write_rows(path: Path, rows=ROWS) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.parquet", "a.jsonl.gz"])
def test_rows(tmp_path, name):
    source = corpus(write_rows(tmp_path / name))
    documents = list(source.documents())
    assert [document.text for document in documents] == [row["text"] for row in ROWS]
    assert all(document.final for document in documents)
    assert len({document.key for document in documents}) == 40 and documents[0].key.startswith(f"{name}:")
    assert sum(source.counts.documents.values()) == 40
    assert source.counts.bytes == sum(len(row["text"].encode()) for row in ROWS)
    assert source.size_bytes() == (None if name[-2:] in ("et", "gz") else (tmp_path / name).stat().st_size)
    assert name in source.description and list(source.documents()) == documents


def test_rows_of_one_text_are_in_the_same_split_in_every_format(tmp_path):
    splits = []
    for name in ("a.jsonl", "b.json", "c.parquet", "d.jsonl.gz"):
        source = corpus(write_rows(tmp_path / name, ROWS + ROWS), validation_fraction=0.3, test_fraction=0.2)
        found = [document.split for document in source.documents()]
        assert found[:40] == found[40:] and len(set(found)) == 3
        splits.append(found)
    assert all(found == splits[0] for found in splits)


def test_hash_split_is_stable_and_of_the_right_size(tmp_path):
    for index in range(2000):
        (tmp_path / f"{index:04}.txt").write_text("some text")
    source = corpus(tmp_path, validation_fraction=0.1, test_fraction=0.05)
    splits = {document.key: document.split for document in source.documents()}
    counts = source.counts.documents
    # Three standard deviations of a binomial.
    assert abs(counts["validation"] - 200) < 41 and abs(counts["test"] - 100) < 30 and sum(counts.values()) == 2000
    # The numbers of another day and machine: blake2b of the name.
    assert [key for key, split in splits.items() if split == "test"][:3] == STABLE_TEST_KEYS
    (tmp_path / "0000.txt").unlink()
    again = {
        document.key: document.split
        for document in corpus(tmp_path, validation_fraction=0.1, test_fraction=0.05).documents()
    }
    del splits["0000.txt"]
    assert again == splits


def test_folder_by_suffix_sorted_hidden_and_binary_left_out(tmp_path):
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    (tmp_path / "sub" / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / ".git").write_text("hidden")
    (tmp_path / "sub" / "code.py").write_text("print(1)\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "blank.md").write_text(" \n\t")
    (tmp_path / "empty.txt").write_text("")
    write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    (tmp_path / "z.txt.gz").write_bytes(gzip.compress("zipped ü".encode()))
    source = corpus(tmp_path)
    found = [(document.key, document.text) for document in source.documents()]
    assert found == [
        ("rows.jsonl:1", "row 0 é"),
        ("rows.jsonl:2", "row 1 é"),
        ("sub/code.py", "print(1)\n"),
        ("z.txt.gz", "zipped ü"),
    ]
    assert (source.counts.binary_files, source.counts.empty_documents) == (1, 2)


def test_glob(tmp_path):
    for name in ("a/x.txt", "a/b/y.txt", "a/b/z.md", "w.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    keys = [document.key for document in corpus(tmp_path / "a" / "**" / "*.txt").documents()]
    assert keys == ["b/y.txt", "x.txt"]
    assert texts(corpus(tmp_path / "?.txt", validation_fraction=0.0)) == ["w.txt"]


EXCLUDED = ("test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data")


def test_stdlib():
    source = corpus("stdlib")
    documents = list(source.documents())
    keys = [document.key for document in documents]
    assert {"json/decoder.py", "argparse.py"} <= set(keys) and keys == sorted(keys)
    assert not any(part in key.split("/") for key in keys for part in EXCLUDED)
    assert source.size_bytes() == source.counts.bytes > 5_000_000
    assert 0.02 < source.counts.documents["validation"] / len(documents) < 0.09


def test_hugging_face_folder(tmp_path):
    pytest.importorskip("datasets")
    write_rows(tmp_path / "train.jsonl")
    source = corpus(f"hf:{tmp_path}")
    assert texts(source) == [row["text"] for row in ROWS] == texts(source)
    assert source.size_bytes() is None
    with pytest.raises(UserError, match=r"row 0: no field 'content'; set corpus\.text_field to one of: text, id"):
        texts(corpus(f"hf:{tmp_path}", text_field="content"))
    with pytest.raises(UserError, match="cannot be loaded") as error:
        texts(corpus(f"hf:{tmp_path}", hf_split="nosuch"))
    assert "\n" not in str(error.value)


def test_text_is_not_altered(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\r\nb\rc\n\n\u2028 d".encode())
    assert texts(corpus(path, validation_fraction=0.0)) == ["\ufeffa\r\nb\rc\n\n\u2028 d"]


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, 64, 1000])
def test_pieces_join_to_the_document_and_invalid_bytes_are_counted(tmp_path, piece_bytes):
    # A stray continuation, a truncated character in the middle, a genuine U+FFFD, one cut off at the end.
    data = "naïve 日本 😀\n".encode() * 9 + b"\x80 \xe6\x97 x" + "\ufffd\n".encode() + b"end \xf0\x9f\x98"
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    source = corpus(path, validation_fraction=0.0, piece_bytes=piece_bytes)
    documents = list(source.documents())
    assert "".join(document.text for document in documents) == data.decode(errors="replace")
    assert source.counts.replaced_bytes == 1 + 2 + 3
    assert [document.final for document in documents] == [False] * (len(documents) - 1) + [True]
    assert all(document.text for document in documents) and (len(documents) > 1) == (piece_bytes < len(data))
    assert source.counts.documents["train"] == 1 and source.counts.empty_documents == 0


def test_pieces_are_cut_where_ids_do_not_change(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"def f{index}(x):\n\n    return  x + {index}\n" for index in range(400)) + "word " * 800
    path.write_text(text)
    tokenizer = train_bpe([text], 300, show_progress=False)
    documents = list(corpus(path, validation_fraction=0.0, piece_bytes=3000).documents())
    assert len(documents) > 4 and documents[0].text.endswith("\n")
    assert [index for document in documents for index in tokenizer.encode(document.text)] == tokenizer.encode(text)


def test_surrogates_that_json_spells_are_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n{"text": "b"}\n')
    source = corpus(tmp_path / "a.jsonl")
    assert texts(source) == ["a\ufffdb 😀", "b"] and source.counts.replaced_bytes == 3


def test_parquet_with_invalid_utf8(tmp_path):
    raw = pa.array([b"ok", b"a\xffb"], type=pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    source = corpus(tmp_path / "a.parquet")
    assert texts(source) == ["ok", "a\ufffdb"] and source.counts.replaced_bytes == 1


@pytest.mark.parametrize("skip", [0, 1, 17, 40, 50])
@pytest.mark.parametrize("split", ["hash", "tail"])
def test_skip_resumes(tmp_path, skip, split):
    source = corpus(write_rows(tmp_path / "a.jsonl"), split=split, validation_fraction=0.33)
    everything = list(source.documents())
    counts = source.counts
    assert list(source.documents(skip=skip)) == everything[skip:]
    assert source.counts == counts


@pytest.mark.skipif(not (DATA / "tinyshakespeare.txt").is_file(), reason="tinyshakespeare is not at ../shared/data")
@pytest.mark.parametrize("piece_bytes", [16 * 2**20, 100_000])
def test_tail_of_tinyshakespeare_is_nanogpts(piece_bytes):
    path = DATA / "tinyshakespeare.txt"
    text = path.read_text()
    source = corpus(path, split="tail", validation_fraction=0.1, piece_bytes=piece_bytes)
    cut = int(len(text) * 0.9)
    assert (len(text), cut) == (1_115_394, 1_003_854)
    assert "".join(texts(source, "train")) == text[:cut]
    assert "".join(texts(source, "validation")) == text[cut:]
    assert source.counts.documents == {"train": 1, "validation": 1, "test": 0}


@pytest.mark.parametrize("length", [1, 7, 10, 20, 100, 1000, 12_345])
@pytest.mark.parametrize("piece_bytes", [11, 10**6])
def test_tail_cuts_at_the_character(tmp_path, length, piece_bytes):
    text = ("ab é日\n" * length)[:length]
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    source = corpus(path, split="tail", validation_fraction=0.05, test_fraction=0.05, piece_bytes=piece_bytes)
    documents = list(source.documents())
    first, second = length * 90 // 100, length * 95 // 100
    for split, expected in (("train", text[:first]), ("validation", text[first:second]), ("test", text[second:])):
        pieces = [document for document in documents if document.split == split]
        assert "".join(document.text for document in pieces) == expected
        # Each split's share ends as a document, and only there.
        assert [document.final for document in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)
        assert source.counts.documents[split] == bool(expected)


def test_tail_over_many_documents(tmp_path):
    rows = [{"text": "abcde"}, {"text": ""}, {"text": "fghij"}, {"text": "klmno"}, {"text": "pqrst"}]
    source = corpus(write_rows(tmp_path / "a.jsonl", rows), split="tail", validation_fraction=0.25, test_fraction=0.15)
    found = [(document.text, document.split, document.final) for document in source.documents()]
    assert found == [
        ("abcde", "train", True),
        ("fghij", "train", True),
        ("kl", "train", True),
        ("mno", "validation", True),
        ("pq", "validation", True),
        ("rst", "test", True),
    ]
    assert source.counts.empty_documents == 1


def test_one_text_by_hash_advises_tail(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    for where in (path, tmp_path, tmp_path / "*.txt"):
        with pytest.raises(UserError, match=r"corpus\.split tail"):
            corpus(where)
    assert texts(corpus(path, validation_fraction=0.0)) == ["x" * 100]


def content_errors() -> list:
    good = '{"text": "a"}\n'
    return [
        ("a.jsonl", good + "{broken\n", r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", good + "\n" + '{"body": "a", "n": 1}\n', r"a\.jsonl:3: no field 'text'.*one of: body, n"),
        ("a.jsonl", good + '{"text": null}\n', r"a\.jsonl:2: field 'text' is NoneType, not a string"),
        ("a.jsonl", good + "[1]\n", r"a\.jsonl:2: the row is list"),
        ("a.json", '[{"text": "a"},\n{]', r"a\.json:2: broken JSON"),
        ("a.json", '{"text": "a"}', "not a list of rows"),
        ("a.json", '[{"text": "a"}, {"t": 1}]', r"a\.json row 2: no field 'text'"),
        ("a.parquet", "PAR1 not", "not a parquet file"),
        ("a.jsonl.gz", "not gzip", "cannot be read"),
        ("a.jsonl", '{"text": " "}\n', "no document has text .1 empty, 0 binary."),
    ]


@pytest.mark.parametrize(("name", "content", "message"), content_errors())
def test_errors_in_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    for split in ("hash", "tail"):
        with pytest.raises(UserError, match=message) as error:
            texts(corpus(tmp_path / name, split=split))
        assert "\n" not in str(error.value)


def test_errors_of_parquet_columns(tmp_path):
    write_rows(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'body'; set corpus\.text_field to one of: text, id"):
        texts(corpus(tmp_path / "a.parquet", text_field="body"))
    with pytest.raises(UserError, match="column 'id' is int64, not string"):
        texts(corpus(tmp_path / "a.parquet", text_field="id"))
    write_rows(tmp_path / "a.parquet", [{"text": "a"}, {"text": None}])
    with pytest.raises(UserError, match="row 1: field 'text' is NoneType"):
        texts(corpus(tmp_path / "a.parquet"))


def test_errors_of_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "missing.txt", "no such file, folder or glob"),
        (tmp_path / "*.txt", "no file found"),
        (tmp_path / "empty", "no file found"),
        ("hf:", "write hf:NAME"),
    ):
        with pytest.raises(UserError, match=message):
            corpus(path)
    truncated = gzip.compress(b"some text " * 1000)[:-20]
    (tmp_path / "a.txt.gz").write_bytes(truncated)
    with pytest.raises(UserError, match="cannot be read"):
        texts(corpus(tmp_path / "a.txt.gz", validation_fraction=0.0))
