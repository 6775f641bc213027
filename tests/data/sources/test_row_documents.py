import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from source_reading import read_all, reasons

ROWS = [
    {
        "text": f"row {number} é",
        "key": f"k{number}",
        "url": f"https://example.org/{number}",
        "date": "2024-05-06T07:08:09Z",
        "license": "MIT" if number % 2 else None,
        "title": f"title {number}",
        "stars": number,
    }
    for number in range(30)
]


def write(path, rows=ROWS):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.name.endswith("json") and path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(lines.encode()))
    return path


@pytest.mark.parametrize(
    ("name", "first"),
    [("a.jsonl", 1), ("a.ndjson", 1), ("a.jsonl.gz", 1), ("a.jsonl.zst", 1), ("a.json", 1), ("a.parquet", 0)],
)
def test_rows_keep_their_provenance(tmp_path, name, first):
    documents, skipped = read_all(write(tmp_path / name), license="CC0-1.0")
    assert not skipped
    assert [each.id for each in documents] == [f"{name}:{number + first}" for number in range(30)]
    assert [each.text for each in documents] == [row["text"] for row in ROWS]
    third = documents[3]
    assert (third.url, third.date, third.license) == ("https://example.org/3", "2024-05-06T07:08:09Z", "MIT")
    assert third.metadata == {"key": "k3", "title": "title 3", "stars": 3}
    assert documents[2].license == "CC0-1.0"
    named, _ = read_all(tmp_path / name, id_field="key", url_field=None, text_field="title")
    assert [each.id for each in named] == [row["key"] for row in ROWS]
    assert named[0].text == "title 0" and named[0].url is None
    assert named[0].metadata == {"text": "row 0 é", "url": "https://example.org/0", "stars": 0}


def test_what_is_wrong_with_a_row_is_told_and_the_next_is_read(tmp_path):
    lines = [
        json.dumps({"text": "good"}),
        "{broken",
        json.dumps({"content": "x"}),
        json.dumps({"text": None}),
        json.dumps({"text": 5}),
        json.dumps(["text"]),
        "",
        json.dumps({"text": " "}),
        json.dumps({"text": "x" * 201}),
        json.dumps({"text": "x" * 70_000}),
        "[" * 500,
        '{"text": "a\\ud800b"}',
        json.dumps({"text": "last", "date": "yesterday"}),
    ]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "l\xe9"}')
    documents, skipped = read_all(tmp_path, max_document_bytes=200)
    assert [(each.id, each.text) for each in documents] == [
        ("a.jsonl:1", "good"),
        ("a.jsonl:12", "a\ufffdb"),
        ("a.jsonl:13", "last"),
        ("a.jsonl:14", "l\ufffd"),
    ]
    assert [each.metadata for each in documents] == [
        {},
        {"replaced_bytes": 3},
        {"date": "yesterday"},
        {"replaced_bytes": 1},
    ]
    assert reasons(skipped) == [
        ("a.jsonl:2", "broken row"),
        ("a.jsonl:3", "no field 'text'"),
        ("a.jsonl:4", "no field 'text'"),
        ("a.jsonl:5", "field 'text' is not text"),
        ("a.jsonl:6", "not an object"),
        ("a.jsonl:8", "no text"),
        ("a.jsonl:9", "longer than max_document_bytes"),
        ("a.jsonl:10", "longer than max_document_bytes"),
        ("a.jsonl:11", "broken row"),
    ]
    assert [skipped[place].detail for place in (1, 2, 3)] == ["there are content", "it is null", "it is int"]


def test_an_id_that_a_row_before_had_is_followed_by_the_rows_number(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "one", "id": 7}, {"text": "two", "id": "7"}, {"text": "three", "id": ""}])
    documents, skipped = read_all(tmp_path, id_field="id")
    assert [(each.id, each.text) for each in documents] == [("7", "one"), ("7#2", "two")]
    assert reasons(skipped) == [("a.jsonl:3", "no field 'id'")]


def test_ids_of_several_files_are_not_the_same(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, [{"text": f"one of {name}", "id": 7}, {"text": "two", "id": 7}])
    documents, _ = read_all(tmp_path, id_field="id")
    assert [each.id for each in documents] == ["a.jsonl:7", "a.jsonl:7#2", "b.jsonl:7", "b.jsonl:7#2"]
    assert all(each.metadata == {"id": 7} for each in documents)


EPOCH = "1970-01-01T00:00:00"


def test_parquet_of_other_types(tmp_path):
    raw = pa.array([b"ok", b"a\xffb"], type=pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    when = [datetime.datetime(2024, 5, 6, 7, 8, 9), datetime.datetime(2024, 5, 6, 7, 8, 10)]
    table = pa.table(
        {
            "text": column,
            "raw": [b"x", b"y"],
            "date": pa.array(when, type=pa.timestamp("ns")),
            "tags": [["a"], ["b"]],
            "kind": pa.array(["news", "news"]).dictionary_encode(),
            "score": [float("nan"), 0.5],
            # Of the year 10000, which Python has not, and a time zone that nobody has.
            "late": pa.array([253402300800 * 10**6, 0], type=pa.timestamp("us")),
            "later": pa.array([253402300800 * 1000, None], type=pa.timestamp("s")).dictionary_encode(),
            "nowhere": pa.array([0, 0], type=pa.timestamp("s", "Nowhere/Foo")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    documents, skipped = read_all(tmp_path)
    assert [(each.text, each.date, each.metadata) for each in documents] == [
        ("ok", "2024-05-06T07:08:09", {"kind": "news"}),
        ("a\ufffdb", "2024-05-06T07:08:10", {"kind": "news", "score": 0.5, "late": EPOCH, "replaced_bytes": 1}),
    ]
    assert not skipped
    assert reasons(read_all(tmp_path, text_field="raw")[1]) == [
        ("a.parquet:0", "field 'raw' is not text"),
        ("a.parquet:1", "field 'raw' is not text"),
    ]
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    documents, skipped = read_all(tmp_path)
    assert len(documents) == 2 and reasons(skipped) == [("b.parquet", "broken file")]


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("[]", 0, None),
        (' [ {"text": "a"} , {"text": "b"} ] ', 2, None),
        ('[{"text": "a"}, {"text": "b", ]', 1, ("a.json:2", "broken row")),
        ('[{"text": "a"} {"text": "b"}]', 1, ("a.json:2", "broken row")),
        ('[{"text": "a"}', 1, ("a.json:2", "broken row")),
        ('[{"text": "a"}, {"text": "b', 1, ("a.json:2", "broken row")),
        ('[{"text": "a"},]', 1, ("a.json:2", "broken row")),
        ('{"text": "a"}', 0, ("a.json", "broken file")),
        ("", 0, ("a.json", "broken file")),
        ('[{"text": "a"}, ' + "[" * 100_000, 1, ("a.json:2", "broken row")),
        ('[{"text": "a"}, {"text": "' + "b" * 500_000 + '"}]', 1, ("a.json:2", "longer than max_document_bytes")),
    ],
    ids=str,
)
def test_a_json_list_is_read_up_to_what_is_broken(tmp_path, text, good, bad):
    (tmp_path / "a.json").write_text(text)
    documents, skipped = read_all(tmp_path, max_document_bytes=100_000)
    assert [each.text for each in documents] == ["a", "b"][:good]
    assert reasons(skipped) == ([bad] if bad else [])


def test_rows_of_a_json_list_are_cut_out_wherever_a_chunk_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_llm.data.sources.json_lists._CHUNK_BYTES", 1)
    rows = [{"text": 'é "quoted" \\ \U0001f600 [x] {y}', "n": -1.5e-7, "t": True}, {"text": "b", "n": 12}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-16")
    documents, skipped = read_all(tmp_path)
    assert not skipped
    assert [each.text for each in documents] == [row["text"] for row in rows + rows]
    assert [each.metadata.get("n") for each in documents] == [-1.5e-7, 12] * 2


def test_hub_data_sets_are_read_by_shard(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path / "train-0.jsonl", ROWS[:20])
    write(tmp_path / "train-1.jsonl", [*ROWS[20:], {**ROWS[0], "text": None}])
    documents, skipped = read_all(f"hf:{tmp_path}", name="hub")
    assert [each.text for each in documents] == [row["text"] for row in ROWS]
    assert [each.id for each in documents[19:21]] == ["train-00000:19", "train-00001:0"]
    assert documents[3].license == "MIT" and documents[3].metadata["stars"] == 3
    assert reasons(skipped) == [("train-00001:10", "no field 'text'")]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_field_that_holds_others_is_not_text(tmp_path, suffix):
    rows = [{"a": {"b": "in"}, "l": ["x"], "x.y": "dotted"}]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    for field, reason, detail in (
        ("a", "field 'a' is not text", "it is dict"),
        ("l", "field 'l' is not text", "it is list"),
        ("a.b", "no field 'a.b'", "no field is looked for in another"),
    ):
        documents, [skipped] = read_all(tmp_path, text_field=field)
        assert not documents and skipped.reason == reason and detail in skipped.detail
    [document], _ = read_all(tmp_path, text_field="x.y")
    assert (document.text, document.metadata) == ("dotted", {})
    if suffix == "parquet":  # of nested columns alone
        pq.write_table(pa.table({"a": [{"b": 1}]}), tmp_path / "a.parquet")
        assert read_all(tmp_path, text_field="a")[1][0].reason == "field 'a' is not text"
