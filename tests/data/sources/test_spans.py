"""Large files that several processes read at the same time, each a span."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from source_reading import read_all, reasons
from web_archives import PACK, http, page, record

from lit_llm.config import RecipeConfig, SourceConfig
from lit_llm.data.sources import spans
from lit_llm.data.sources.opening import open_source
from lit_llm.stages.clean_data import clean_data


def in_spans(monkeypatch, size, path, **options):
    """The documents and what was left out, of files cut into spans of a size; and how many units there were."""
    monkeypatch.setattr(spans, "SPAN_BYTES", size)
    units = open_source(SourceConfig(str(path), **options)).units()
    assert sum(unit.size_bytes for unit in units) == sum(file.stat().st_size for file in path.iterdir())
    return read_all(path, **options), len(units)


@pytest.mark.parametrize("pack", PACK)
def test_an_archive(tmp_path, monkeypatch, pack):
    draw = random.Random(0)
    # Some records are longer than a span, and one says of itself how a record begins.
    records = [record(n, http(page(n, draw.choice([1, 30, 120]))), digest=True) for n in range(40)]
    records.insert(20, record(40, http(b"<html>as in\nWARC/1.0\nand so on" + page(40))))
    (tmp_path / f"a.warc{pack}").write_bytes(b"".join(map(PACK[pack], records)))
    whole = read_all(tmp_path)
    assert len(whole[0]) == 41
    counts = []
    for size in (700, 4000, 9001):
        found, count = in_spans(monkeypatch, size, tmp_path)
        assert found == whole
        counts.append(count)
    assert counts[0] > counts[2] > 2 or pack


def test_records_that_are_compressed_together(tmp_path, monkeypatch):
    records = [record(number, http(page(number))) for number in range(12)]
    one, three = tmp_path / "one", tmp_path / "three"
    for folder in (one, three):
        folder.mkdir()
    (one / "a.warc.gz").write_bytes(gzip.compress(b"".join(records)))
    (three / "a.warc.gz").write_bytes(
        b"".join(gzip.compress(b"".join(records[begin : begin + 3])) for begin in range(0, 12, 3))
    )
    for folder in (one, three):
        (documents, skipped), count = in_spans(monkeypatch, 600, folder)
        assert [each.metadata["record_id"][-2:] for each in documents] == [f"{number:02}" for number in range(12)]
        assert not skipped and count > 2


@pytest.mark.parametrize("pack", PACK)
def test_damage_at_any_place_loses_no_more_than_without_spans(tmp_path, monkeypatch, pack):
    draw = random.Random(3)
    for case in range(12):
        folder = tmp_path / str(case)
        folder.mkdir()
        data = bytearray(b"".join(PACK[pack](record(n, http(page(n)), digest=True)) for n in range(12)))
        place = draw.randrange(len(data) - 8)
        data[place : place + 8] = b"\0" * 8
        (folder / f"a.warc{pack}").write_bytes(data)
        monkeypatch.setattr(spans, "SPAN_BYTES", 2**30)
        whole = read_all(folder)
        found, count = in_spans(monkeypatch, len(data) // 5, folder)
        assert count >= 5 and len(found[0]) >= 10
        if pack:
            assert found == whole
        else:  # a length that is wrong takes no record along that begins in the next span
            assert {each.id for each in whole[0]} <= {each.id for each in found[0]}


@pytest.mark.parametrize("end", ["\n", ""])
def test_rows_of_json(tmp_path, monkeypatch, end):
    draw = random.Random(1)
    rows = [json.dumps({"text": f"grün {number} " * draw.choice([1, 5, 60])}) for number in range(120)]
    rows[7], rows[9], rows[50] = "", "{broken", json.dumps({"text": "x" * 3000})
    (tmp_path / "a.jsonl").write_bytes(("\ufeff" + "\n".join(rows) + end).encode())
    whole = read_all(tmp_path, max_document_bytes=2000)
    assert reasons(whole[1]) == [("a.jsonl:10", "broken row"), ("a.jsonl:51", "longer than max_document_bytes")]
    for size in (37, 100, 1024, 5000):
        found, count = in_spans(monkeypatch, size, tmp_path, max_document_bytes=2000)
        assert found == whole and count > 2
    named = [{"text": "a", "name": "same"}] * 300
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, named)))
    # Whether an id was there before must be known.
    assert in_spans(monkeypatch, 100, tmp_path, id_field="name")[1] == 1


@pytest.mark.parametrize("kind", ["gz", "zst", "json", "utf-16", "txt"])
def test_files_that_are_read_from_their_beginning(tmp_path, monkeypatch, kind):
    rows = "".join(json.dumps({"text": f"number {number}"}) + "\n" for number in range(200))
    data = {
        "gz": (gzip.compress(rows.encode(), 0), ".jsonl.gz"),
        "zst": (zstandard.compress(rows.encode()), ".jsonl.zst"),
        "json": (f"[{rows.strip().replace(chr(10), ',')}]".encode(), ".json"),
        "utf-16": (rows.encode("utf-16"), ".jsonl"),
        "txt": (rows.encode(), ".txt"),
    }[kind]
    (tmp_path / f"a{data[1]}").write_bytes(data[0])
    (documents, skipped), count = in_spans(monkeypatch, 100, tmp_path)
    assert count == 1 and not skipped and len(documents) == (1 if kind == "txt" else 200)


def test_row_groups_of_parquet(tmp_path, monkeypatch):
    draw = random.Random(2)
    table = pa.table({"text": [f"{draw.random()} " * 9 for _ in range(1000)], "n": list(range(1000))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    whole = read_all(tmp_path)
    assert [each.metadata["n"] for each in whole[0]] == list(range(1000))
    for size, expected in ((10, 15), (8000, None)):
        found, count = in_spans(monkeypatch, size, tmp_path)
        assert found == whole and (count == expected if expected else 2 < count < 15)
    (tmp_path / "a.parquet").write_bytes(b"PAR1" * 100)
    (documents, skipped), count = in_spans(monkeypatch, 10, tmp_path)
    assert (documents, reasons(skipped), count) == ([], [("a.parquet", "broken file")], 1)


@pytest.mark.slow
def test_a_corpus_of_one_archive_is_the_same_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "SPAN_BYTES", 3000)
    records = [gzip.compress(record(number, http(page(number)))) for number in range(60)]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    made = {}
    for workers in (1, 2):
        output = tmp_path / str(workers)
        sources = [SourceConfig(str(tmp_path / "a.warc.gz"))]
        corpus = clean_data(RecipeConfig(sources, [], str(output), num_workers=workers, part_mib=0.003))
        assert corpus.report["corpus"]["documents"] == 60 and corpus.report["sources"][0]["units"] > 8
        assert len(list((output / "work" / "00-sources").glob("task-*.json"))) > 8
        made[workers] = [path.read_bytes() for path in sorted((output / "documents").iterdir())]
    assert made[1] == made[2] and len(made[1]) > 8
