import datetime
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.corpus.documents import Corpus
from lit_llm.data.sources.encoding import read_text
from lit_llm.data.sources.parquet import parquet_rows
from lit_llm.data.sources.rows import iterate_rows
from lit_llm.tokenizer import train_bpe

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
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
    source = corpus(tmp_path, validation_fraction=0.0)
    found = [(document.key, document.text) for document in source.documents()]
    assert found == [
        ("rows.jsonl:1", "row 0 é"),
        ("rows.jsonl:2", "row 1 é"),
        ("sub/code.py", "print(1)\n"),
        ("z.txt.gz", "zipped ü"),
    ]
    assert (source.counts.binary_files.number, source.counts.empty_documents) == (1, 2)


def test_glob(tmp_path):
    for name in ("a/x.txt", "a/b/y.txt", "a/b/z.md", "w.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    keys = [document.key for document in corpus(tmp_path / "a" / "**" / "*.txt", split="tail").documents()]
    assert list(dict.fromkeys(keys)) == ["b/y.txt", "x.txt"]
    assert texts(corpus(tmp_path / "?.txt", validation_fraction=0.0)) == ["w.txt"]


def test_links_that_do_not_lead_to_a_file_are_said(tmp_path, capsys):
    folder = tmp_path / "links"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("one")
    for name, target in {"b.txt": tmp_path / "a.txt", "d": folder, "c.txt": "gone", "sub/e": "e", ".f": "gone"}.items():
        (folder / name).symlink_to(target)
    for path, names in ((folder, "3 links: c.txt, d, sub/e"), (folder / "*", "2 links: c.txt, d")):
        assert texts(corpus(path, validation_fraction=0.0)) == ["one"]
        number, _, listed = names.partition(" links: ")
        line = f"{number} links that do not lead to a file were left out of {path}: {listed}\n"
        assert capsys.readouterr().err == line
    texts(corpus(folder, validation_fraction=0.0))
    assert capsys.readouterr().err == ""


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
    write_rows(tmp_path / "test.jsonl", ROWS[:3])
    source = corpus(f"hf:{tmp_path}")
    assert texts(source) == [row["text"] for row in ROWS] == texts(source)
    assert source.size_bytes() is None and source.description == f"hf:{tmp_path} (train)"
    for name in ("::test", ":default:test"):
        assert texts(corpus(f"hf:{tmp_path}{name}", validation_fraction=0.0)) == [row["text"] for row in ROWS[:3]]
    with pytest.raises(UserError, match=r"row 0: no field 'content'; set corpus\.text_field to one of: text, id"):
        texts(corpus(f"hf:{tmp_path}", text_field="content"))
    with pytest.raises(UserError, match="cannot be loaded") as error:
        texts(corpus(f"hf:{tmp_path}::nosuch"))
    assert "\n" not in str(error.value)


def test_text_is_not_altered(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\nb\rc\n\n\u2028 \ufeffd".encode())
    assert texts(corpus(path, validation_fraction=0.0)) == ["a\r\nb\rc\n\n\u2028 \ufeffd"]


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, 64, 1000])
def test_pieces_join_to_the_document_and_invalid_bytes_are_counted(tmp_path, piece_bytes):
    # A stray continuation, a truncated character in the middle, a genuine U+FFFD, one cut off at the end.
    data = "naïve 日本 😀\n".encode() * 9 + b"\x80 \xe6\x97 x" + "\ufffd\n".encode() + b"end \xf0\x9f\x98"
    (tmp_path / "a.txt").write_bytes(data)
    source = corpus(tmp_path, validation_fraction=0.0, piece_bytes=piece_bytes)
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
    source = corpus(tmp_path / "a.parquet", validation_fraction=0.0)
    assert texts(source) == ["ok", "a\ufffdb"] and source.counts.replaced_bytes == 1


def test_parquet_with_a_date_beyond_the_year_9999(tmp_path):
    late = [253402300800 * 10**6, 0]
    columns = {"text": ["one", "two"], "date": pa.array(late, pa.timestamp("us"))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = corpus(tmp_path / "a.parquet", validation_fraction=0.0)
    assert [document.provenance.date for document in source.documents()] == [None, "1970-01-01T00:00:00"]
    epoch = datetime.datetime(1970, 1, 1)
    assert [row["date"] for row in parquet_rows(tmp_path / "a.parquet")] == [None, epoch]
    columns["date"] = pa.array([[each] for each in late], pa.list_(pa.timestamp("us")))
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet: column 'date', rows 1 to 2: cannot be read \(date value out of"):
        list(parquet_rows(tmp_path / "b.parquet"))


@pytest.mark.parametrize("skip", [0, 1, 17, 40, 50])
@pytest.mark.parametrize("split", ["hash", "tail"])
def test_skip_resumes(tmp_path, skip, split):
    source = corpus(write_rows(tmp_path / "a.jsonl"), split=split, validation_fraction=0.33)
    everything = list(source.documents())
    counts = source.counts
    assert list(source.documents(skip=skip)) == everything[skip:]
    assert source.counts == counts


SEPARATED = (
    "<|endoftext|>first é\n<|endoftext|>\nsecond\r\n<|endoftext|>\r\n  third <|endoft ext|> <|<|endoftext|>fourth"
    "<|endoftext|>\n \n<|endoftext|><|endoftext|>\n\nfifth <|end\n" + "a long sixth\n" * 40 + "<|endoftext|>\r \n"
)
DOCUMENTS = [
    "first é\n",
    "second\r\n",
    "  third <|endoft ext|> <|",
    "fourth",
    "\nfifth <|end\n" + "a long sixth\n" * 40,
]


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 13, 14, 15, 40, 10**6])
def test_documents_in_a_text_file_are_told_apart(tmp_path, piece_bytes, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(SEPARATED.encode())
    source = corpus(path, validation_fraction=0.0, piece_bytes=piece_bytes)
    found: list[list] = []
    for document in source.documents():
        if not found or found[-1][0] != document.key:
            found.append([document.key, "", 0])
        found[-1][1] += document.text
        found[-1][2] += document.final
        assert document.text
    assert found == [
        [key, text, 1] for key, text in zip(["a.txt", *(f"a.txt:{n}" for n in range(1, 5))], DOCUMENTS, strict=True)
    ]
    counts = source.counts
    assert (counts.documents["train"], counts.separated_documents, counts.empty_documents) == (5, 5, 0)
    counts.say()
    assert capsys.readouterr().err == "5 documents were found in text files that hold several: a.txt\n"
    # As one document where that is asked for; the marker is then text, which is said.
    whole = corpus(path, validation_fraction=0.0, piece_bytes=piece_bytes, document_separator=None)
    assert "".join(texts(whole)) == SEPARATED
    assert (whole.counts.documents["train"], whole.counts.separated_documents) == (1, 0)
    if piece_bytes > len(SEPARATED):
        whole.counts.say()
        assert capsys.readouterr().err.startswith(
            "1 documents hold the name of the end-of-text token, which is learned"
        )


@pytest.mark.parametrize("separator", ["\n\n", "aa", "---\n", "日"])
def test_any_string_may_separate_documents(tmp_path, separator):
    text = "naaaaab\n\n\nc日d---\n---\n\ne日aaa\n--\n-"
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    expected = [part for part in text.split(separator) if part.strip()]
    if separator in ("aa", "日"):  # a line end right after it goes with it
        expected = [part.removeprefix("\n") for part in expected]
    for piece_bytes in (1, 2, 3, 4, 5, 100):
        found: dict[str, str] = {}
        source = corpus(tmp_path, validation_fraction=0.0, document_separator=separator, piece_bytes=piece_bytes)
        for document in source.documents():
            found[document.key] = found.get(document.key, "") + document.text
        assert list(found.values()) == expected


def test_hash_deals_out_the_documents_of_one_text_file(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"story {number}\n<|endoftext|>\n" for number in range(1000)))
    source = corpus(path, validation_fraction=0.1, piece_bytes=100)
    documents = list(source.documents())
    assert [document.text for document in documents] == [f"story {number}\n" for number in range(1000)]
    assert 70 < source.counts.documents["validation"] < 130 and source.counts.documents["test"] == 0
    # By the place in the file, whatever the pieces are.
    again = corpus(path, validation_fraction=0.1)
    assert list(again.documents()) == documents and list(again.documents(skip=990)) == documents[990:]
    tail = corpus(path, split="tail", validation_fraction=0.1, piece_bytes=100)
    assert 1000 <= len(texts(tail)) <= 1001 and tail.counts.documents["validation"] > 90
    assert "".join(texts(tail)) == "".join(document.text for document in documents)


def test_the_tokenizers_own_end_of_text_ends_documents_in_prose_alone(tmp_path):
    for name in ("a.md", "b.py", "LICENSE"):
        (tmp_path / name).write_text("one</s>\ntwo<|endoftext|>three")
    write_rows(tmp_path / "rows.jsonl", [{"text": "four</s>five"}, {"text": "six"}])
    source = Corpus(CorpusConfig(str(tmp_path), validation_fraction=0.0), end_of_text="</s>")
    whole = "one</s>\ntwo<|endoftext|>three"
    assert texts(source) == ["one", "two", "three", "one", "two", "three", whole, "four</s>five", "six"]
    assert source.counts.marked_documents == 2 and source.counts.separated_documents == 6
    assert str(source.counts.separated_files) == "LICENSE, a.md"


def test_separators_that_could_do_nothing_are_refused(tmp_path):
    write_rows(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"document_separator is given, but .*a\.jsonl has rows alone"):
        corpus(tmp_path / "a.jsonl", document_separator="\n\n")
    with pytest.raises(UserError, match="each row of hf: is a document"):
        corpus("hf:data", document_separator="\n\n")
    with pytest.raises(UserError, match="document_separator is empty"):
        corpus(tmp_path, document_separator="")
    assert CorpusConfig(document_separator="none").document_separator is None


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def marked(text: str, encoding: str) -> bytes:
    """With a byte order mark, which Python writes for some of the names only."""
    return (
        text.encode(encoding) if encoding in ("utf-8-sig", "utf-16", "utf-32") else ("\ufeff" + text).encode(encoding)
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_says_how_a_file_is_read(tmp_path, encoding, suffix):
    pack = gzip.compress if suffix else bytes
    text = "First Citizen:\r\nnaïve 日本 😀\n"
    rows = [{"text": text}, {"text": "\u2028 b"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(marked(text * 3 + "<|endoftext|>\nlast", encoding)))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(marked(lines, encoding)))
    (tmp_path / f"c.json{suffix}").write_bytes(pack(marked(json.dumps(rows, ensure_ascii=False), encoding)))
    for piece_bytes in (1, 7, 10**6):
        source = corpus(tmp_path, validation_fraction=0.0, piece_bytes=piece_bytes)
        found: dict[str, str] = {}
        for document in source.documents():
            found[document.key] = found.get(document.key, "") + document.text
        assert list(found.values()) == [text * 3, "last", text, "\u2028 b", text, "\u2028 b"]
        assert (source.counts.replaced_bytes, source.counts.binary_files.number) == (0, 0)
    assert read_text(tmp_path / f"a.txt{suffix}") == text.replace("\r", "") * 3 + "<|endoftext|>\nlast"
    assert [row for _, _, row in iterate_rows(str(tmp_path / f"b.jsonl{suffix}"), "data")] == rows
    # Half a character at the end is as invalid there as in UTF-8.
    if encoding.startswith("utf-16"):
        (tmp_path / f"a.txt{suffix}").write_bytes(pack(marked("cut 😀", encoding)[:-2]))
        source = corpus(tmp_path / f"a.txt{suffix}", validation_fraction=0.0)
        assert texts(source) == ["cut \ufffd"] and source.counts.replaced_bytes == 2


def test_what_is_no_text_is_refused_where_it_is_named_and_told_by_name_where_it_is_not(tmp_path, capsys):
    prose = "Das Wörterbuch für größere Ämter. " * 40
    (tmp_path / "folder").mkdir()
    for name in ("e.bin", "d.bin", "c.bin", "b.bin", "a.bin"):
        (tmp_path / "folder" / name).write_bytes(b"\x7fELF\0\0")
    (tmp_path / "folder" / "latin.txt").write_bytes(prose.encode("latin-1"))
    (tmp_path / "folder" / "rows.jsonl").write_bytes(json.dumps({"text": prose}, ensure_ascii=False).encode("latin-1"))
    (tmp_path / "folder" / "text.txt").write_text(prose, encoding="utf-8")
    source = corpus(tmp_path / "folder", validation_fraction=0.0)
    assert len(texts(source)) == 3
    source.counts.say()
    assert capsys.readouterr().err.splitlines() == [
        "400 bytes were not valid UTF-8 and became U+FFFD: latin.txt, rows.jsonl",
        "5 binary files were left out: a.bin, b.bin, c.bin and 2 more",
    ]
    for name, message in (
        ("a.bin", r"a\.bin: not text, as it has NUL bytes and no byte order mark"),
        ("latin.txt", r"latin\.txt: 200 bytes in 1,360 characters are not UTF-8, .*Latin-1.*iconv"),
        ("rows.jsonl", r"rows\.jsonl: 200 bytes in 1,360 characters are not UTF-8"),
    ):
        for split in ("hash", "tail"):
            with pytest.raises(UserError, match=message) as error:
                texts(corpus(tmp_path / "folder" / name, validation_fraction=0.0, split=split))
            assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not text, as it has NUL bytes"):
        read_text(tmp_path / "folder" / "a.bin")
    with pytest.raises(UserError, match=r"latin\.txt: cannot be read .*write it again as UTF-8"):
        read_text(tmp_path / "folder" / "latin.txt")
    # A large file is not read to its end first; a stray byte or a character cut off at the end spoils none.
    (tmp_path / "large.txt").write_bytes(prose.encode("latin-1") * 2000)
    with pytest.raises(UserError, match=r"bytes in 1,\d\d\d,\d\d\d characters are not UTF-8"):
        texts(corpus(tmp_path / "large.txt", validation_fraction=0.0, piece_bytes=2**18))
    (tmp_path / "good.txt").write_bytes(prose.encode()[:-3] + b"\xf0\x9f\x98")
    assert texts(corpus(tmp_path / "good.txt", validation_fraction=0.0))[0].endswith("\ufffd")


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


@pytest.mark.parametrize("length", [20, 27, 100, 1000, 12_345])
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


@pytest.mark.parametrize("piece_bytes", [3, 10**6])
def test_tail_cuts_every_file_and_its_documents_stay_whole_elsewhere(tmp_path, piece_bytes):
    written = {"a.txt": "é" * 100 + "1234567890" * 2, "b.txt": "x" * 290 + "y" * 110, "c.md": "one two<|endoftext|>end"}
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    source = corpus(tmp_path, split="tail", validation_fraction=0.1, test_fraction=0.05, piece_bytes=piece_bytes)
    documents = list(source.documents())
    parts: dict[str, dict[str, str]] = {}
    for document in documents:
        of_file = parts.setdefault(document.key.partition(":")[0], {})
        of_file[document.split] = of_file.get(document.split, "") + document.text
    plain = {name: text.replace("<|endoftext|>", "") for name, text in written.items()}
    for name, shares in parts.items():
        length = len(plain[name])
        assert list(shares) == ["train", "validation", "test"] and "".join(shares.values()) == plain[name]
        for split, share in (("train", 0.85), ("validation", 0.1), ("test", 0.05)):
            assert abs(len(shares[split]) - share * length) <= 1, (name, split)
    total = sum(map(len, plain.values()))
    found = {split: sum(len(shares[split]) for shares in parts.values()) for split in ("train", "validation", "test")}
    # Exact over the whole corpus, as if it were one text.
    assert found == {"train": total * 85 // 100, "validation": total * 95 // 100 - total * 85 // 100, "test": 27}
    assert total == 530 and sum(found.values()) == total
    # Each file's share of a split ends as a document does: 2 + 2 + 3, as one of the last file's two is cut.
    assert source.counts.documents == {"train": 4, "validation": 3, "test": 3}
    assert sum(document.final for document in documents) == 10
    for skip in (1, 5, len(documents) - 1):
        assert list(source.documents(skip=skip)) == documents[skip:]


def test_text_that_comes_after_the_cuts_were_found_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    (tmp_path / "b.txt").write_text(" ")
    for held_out in ("validation", "test"):
        source = corpus(tmp_path, split="tail", **{"validation_fraction": 0.0, f"{held_out}_fraction": 0.2})
        (tmp_path / "a.txt").write_text("x" * 100 + "y" * 50)
        (tmp_path / "b.txt").write_text("y" * 50)
        assert texts(source, "train") == ["x" * 80]
        assert texts(source, held_out) == ["x" * 20 + "y" * 50, "y" * 50]
        (tmp_path / "a.txt").write_text("x" * 100)
        (tmp_path / "b.txt").write_text(" ")


def test_tail_is_exact_over_files_that_are_too_short_to_be_cut_exactly(tmp_path):
    for number in range(60):
        (tmp_path / f"{number:02}.txt").write_text("abcdefg"[: 1 + number % 7])
    source = corpus(tmp_path, split="tail", validation_fraction=0.05, test_fraction=0.4)
    documents = list(source.documents())
    whole = "".join(document.text for document in documents)
    total = sum(1 + number % 7 for number in range(60))
    assert len(whole) == total == 234
    counts = {split: sum(len(each.text) for each in documents if each.split == split) for split in ("train", "test")}
    assert counts["train"] == int(total * 0.55) and abs(counts["test"] - total * 0.4) <= 1


def test_auto_is_hash_where_there_are_documents_enough_and_tail_where_not(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} " * 500)
    source = corpus(tmp_path, test_fraction=0.1)
    assert source.split == "tail" and source.counts.bytes == 0
    for name in ("a", "b"):
        assert "".join(texts(source, "validation")).count(name) == pytest.approx(25, abs=1)
    source.say_split()
    assert capsys.readouterr().err == (
        "corpus.split auto is tail: the last 5% of every file are validation, then 10% of every file are test, as "
        "there are too few documents to choose whole ones\n"
    )
    # Ten documents in each split are enough, and no more are read to know: the last line is not JSON.
    rows = [{"text": f"row {number}"} for number in range(1000)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    path.write_text(path.read_text() + "{broken\n")
    many = corpus(path)
    assert many.split == "hash"
    many.say_split()
    assert capsys.readouterr().err == "corpus.split auto is hash: whole documents are chosen by a hash for validation\n"
    with pytest.raises(UserError, match="broken JSON"):
        texts(many)
    write_rows(path, rows)
    by_hash = [document.split for document in corpus(path, split="hash").documents()]
    assert [document.split for document in many.documents()] == by_hash
    held_out = next(n for n in range(1000) if by_hash[: n + 1].count("validation") == 10) + 1
    for number, split in ((held_out - 1, "tail"), (held_out, "hash")):
        assert corpus(write_rows(path, rows[:number])).split == split
    # Where nothing is held out or it was not left to auto there is nothing to tell, and nothing is read.
    path.write_text("{broken")
    corpus(path, validation_fraction=0.0).say_split()
    corpus(tmp_path / "*.txt", split="tail").say_split()
    assert capsys.readouterr().err == ""


def test_too_few_documents_are_refused_at_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    for where in (path, tmp_path, tmp_path / "*.txt"):
        with pytest.raises(UserError, match=r"is one document.*set corpus\.split tail"):
            corpus(where, split="hash")
    assert texts(corpus(path, validation_fraction=0.0)) == ["x" * 100]
    (tmp_path / "b.txt").write_text("x" * 100)
    with pytest.raises(
        UserError, match=r"^the validation split of .* is empty \(2 documents in all\); use corpus\.split tail"
    ):
        corpus(tmp_path, split="hash")
    for length in (1, 7, 10):
        path.write_text("x" * length)
        for split in ("auto", "tail"):
            with pytest.raises(UserError, match=rf"is empty \({length} characters in all\); use more text, or other"):
                corpus(path, split=split, validation_fraction=0.05, test_fraction=0.05)


def content_errors() -> list:
    good = '{"text": "a"}\n'
    return [
        ("a.jsonl", good + "{broken\n", r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", good + "\n" + '{"body": "a", "n": 1}\n', r"a\.jsonl:3: no field 'text'.*one of: body, n"),
        ("a.jsonl", good + '{"text": null}\n', r"a\.jsonl:2: field 'text' is NoneType, not a string"),
        ("a.jsonl", good + "[1]\n", r"a\.jsonl:2: the row is list"),
        ("a.json", '[{"text": "a"},\n{]', r"a\.json:2: broken JSON"),
        ("a.json", '{"text": "a"}', r"a\.json: an object, not a list of rows; write the rows as \[\{\.\.\.\}, "),
        ("a.json", "3", r"a\.json: a single value, not a list of rows"),
        ("a.json", "\n" + good + "{broken", r"a\.json: it has a row per line, as \.jsonl has; name it \.jsonl"),
        ("a.json", '{"text":\n"a"}\n' * 2, r"a\.json:3: broken JSON \(Extra data\); repair the file"),
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
