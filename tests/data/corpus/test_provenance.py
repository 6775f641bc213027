"""Every token of a shard is of a document that is named, and whose text is its source's."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_llm.config import CorpusConfig, PrepareConfig, RemoteConfig, UserError
from lit_llm.data.corpus import provenance
from lit_llm.data.corpus.documents import Corpus
from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.preparation import CorpusEncoder, begin_preparation
from lit_llm.data.corpus.provenance import DocumentPart, ProvenanceWriter, document_parts
from lit_llm.data.corpus.remote_shards import open_split
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.pretraining.inspection import Window
from lit_llm.data.sources.origin import Origin
from lit_llm.stages.prepare import prepare_data
from lit_llm.tokenizer import Tokenizer

ROWS = 120


def text_of(number: int) -> str:
    return f"document {number}: " + " ".join(str(number * word) for word in range(number % 17 + 1))


def origin_of(number: int) -> Origin:
    return Origin(
        f"urn:{number}",
        "web" if number % 2 else "books",
        f"https://a.example/{number}",
        f"2024-01-{number % 28 + 1:02}",
        "CC0" if number % 3 else None,
        "en",
        f"{number:032x}",
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Shards of a parquet file whose rows say where they are from; several of each split."""
    folder = tmp_path_factory.mktemp("rows")
    named = [origin_of(number) for number in range(ROWS)]
    columns: dict[str, Any] = {
        "text": [text_of(number) for number in range(ROWS)],
        "date": pa.array([datetime.date.fromisoformat(str(each.date)) for each in named]),
        **{name: [getattr(each, name) for each in named] for name in ("id", "source", "url", "license", "digest")},
        "language": pa.array([each.language for each in named]).dictionary_encode(),
        "metadata": ["{}"] * ROWS,
    }
    (folder / "texts").mkdir()
    pq.write_table(pa.table(columns), folder / "texts" / "part.parquet")
    corpus = CorpusConfig(path=str(folder / "texts"), validation_fraction=0.2)
    tokenizer = str(shards / "tokenizer")
    prepare_data(PrepareConfig(corpus, tokenizer=tokenizer, output=str(folder / "shards"), shard_tokens=500))
    return folder / "shards"


@pytest.mark.parametrize("length", [9, 100, 1000])
def test_every_window_says_whose_text_it_is(length: int, rows: Path) -> None:
    tokenizer, found = Tokenizer.load(rows / "tokenizer"), set()
    for split in ("train", "validation"):
        source = ShardedTokens(rows / split)
        assert len(source.manifest.shards) > 2
        whole = document_parts(source, 0, len(source))
        assert all(part.begins and part.ends for part in whole) and len(whole) == source.manifest.documents
        found |= {part.origin for part in whole}
        for start in range(0, len(source), max(1, length // 2)):
            window = Window("", source, start, min(length, len(source)))
            parts, place = window.documents(), 0
            for part in parts:
                assert part.start == place and part.tokens > 0
                place += part.tokens
                assert part.origin is not None
                theirs, ours = text_of(int(part.origin.id[4:])), window.text(part, tokenizer)
                assert ours in theirs
                assert not part.begins or theirs.startswith(ours)
                assert not part.ends or theirs.endswith(ours)
                assert ours == theirs or not (part.begins and part.ends)
            assert place == window.tokens
    assert found == {origin_of(number) for number in range(ROWS)}


def test_a_window_past_the_end_goes_on_from_the_beginning(rows: Path) -> None:
    source = ShardedTokens(rows / "train")
    parts = document_parts(source, len(source) - 1, 2)
    assert [(part.start, part.tokens, part.begins, part.ends) for part in parts] == [
        (0, 1, False, True),
        (1, 1, True, False),
    ]
    assert parts[0].origin == document_parts(source, len(source) - 1, 1)[0].origin != parts[1].origin


def test_a_document_over_several_shards_is_one(tmp_path: Path, shards: Path) -> None:
    """A text file that is read in pieces, each of which ends a shard."""
    tokenizer = Tokenizer.load(shards / "tokenizer")
    (tmp_path / "texts").mkdir()
    for name, lines in (("a.txt", 40), ("b.txt", 3)):
        (tmp_path / "texts" / name).write_text("".join(f"line {number} of {name}\n" for number in range(lines)))
    corpus = CorpusConfig(path=str(tmp_path / "texts"), validation_fraction=0.0)
    config = PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(tmp_path / "out"), shard_tokens=100)
    reading = Corpus(corpus, piece_bytes=64, end_of_text=tokenizer.end_of_text)
    progress = begin_preparation(config, tokenizer, reading, tmp_path / "out")
    encoder = CorpusEncoder(config, tokenizer, tmp_path / "out", progress)
    encoder.add(list(reading.documents()))
    encoder.commit()
    infos = progress.shards["train"]
    assert len(infos) > 3 and sum(info.documents for info in infos) == 2
    manifest = Manifest(tokenizer.digest, 400, "uint16", int(tokenizer.eot_id or 0), None, shards=infos)
    manifest.save(tmp_path / "out" / "train")
    source = ShardedTokens(tmp_path / "out" / "train")
    first, second = document_parts(source, 0, len(source))
    assert (first.origin, second.origin) == (Origin("a.txt"), Origin("b.txt"))
    assert first.begins and first.ends and second.begins and second.ends
    (middle,) = document_parts(source, 90, 20)
    assert middle == DocumentPart(0, 20, False, False, Origin("a.txt"))
    # in each shard one row for the document, however many pieces of it came
    assert [pq.read_table(source.folder / str(info.documents_file)).num_rows for info in infos[:-1]] == [1] * (
        len(infos) - 1
    )


def test_rows_of_json_say_where_they_are_from(tmp_path: Path, shards: Path) -> None:
    lines = [
        {"text": "one", "id": 7, "url": "u", "date": 2024, "license": ["CC0"], "digest": "", "language": "x" * 5000},
        {"text": "two", "source": "\ud800s"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    corpus = CorpusConfig(path=str(tmp_path / "rows.jsonl"), validation_fraction=0.0)
    prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(tmp_path / "out")))
    source = ShardedTokens(tmp_path / "out" / "train")
    assert [part.origin for part in document_parts(source, 0, len(source))] == [
        Origin("7", url="u", date="2024"),
        Origin("rows.jsonl:2", source="?s"),
    ]


def test_the_file_does_not_depend_on_how_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_ROWS", 4)
    files = []
    for name, parts in (("whole", 1), ("pieces", 3)):
        writer = ProvenanceWriter(tmp_path / name)
        for number in range(10):
            for part in range(parts):
                writer.append(3 // parts, part == parts - 1, Origin(str(number)))
        files.append(writer.close()[1])
        assert pq.ParquetFile(tmp_path / name).num_row_groups == 3
    assert files[0] == files[1]
    assert pq.read_table(tmp_path / "whole")["end"].to_pylist() == [3 * number for number in range(1, 11)]
    unfinished = ProvenanceWriter(tmp_path / "unfinished")
    unfinished.discard()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pieces", "whole"]


def test_shards_without_it_are_cut_at_the_ends_of_documents(rows: Path, tmp_path: Path) -> None:
    source = ShardedTokens(rows / "train")
    expected = document_parts(source, 5, 700)
    for info in source.manifest.shards:
        info.documents_file = info.documents_sha256 = None
    parts = document_parts(source, 5, 700)
    assert [(part.start, part.tokens, part.begins, part.ends) for part in parts] == [
        (part.start, part.tokens, part.begins, part.ends) for part in expected
    ]
    assert {part.origin for part in parts} == {None}


def test_shards_behind_a_url_say_it_too(rows: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for path in (rows / "train").iterdir():
        system.pipe_file(f"/provenance/train/{path.name}", path.read_bytes())
    source = open_split("memory://provenance", "train", RemoteConfig(cache=str(tmp_path)))
    assert source is not None
    assert document_parts(source, 7, 900) == document_parts(ShardedTokens(rows / "train"), 7, 900)
    name = source.manifest.shards[1].documents_file
    system.rm_file(f"/provenance/train/{name}")
    provenance._read_file.cache_clear()
    with pytest.raises(UserError, match=rf"memory://provenance/train/{name} is missing"):
        document_parts(source, 0, len(source))


def test_a_file_that_is_gone_or_changed_is_named(rows: Path) -> None:
    source = ShardedTokens(rows / "train")
    path = source.folder / str(source.manifest.shards[0].documents_file)
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + b"\0")
        with pytest.raises(UserError, match=r"documents_00000.parquet does not match the sha256 in its manifest"):
            document_parts(source, 0, 5)
        path.unlink()
        with pytest.raises(UserError, match=r"documents_00000.parquet is missing; copy it again"):
            document_parts(source, 0, 5)
        assert len(source.read(0, 5)) == 5  # training does not need it
    finally:
        path.write_bytes(content)
    for name, message in (("../x", "is not the name of a file"), ("", "is not the name of a file")):
        manifest = Manifest.load(rows / "train")
        manifest.shards[0].documents_file = name
        manifest.save(rows / "train")
        try:
            with pytest.raises(UserError, match=message):
                Manifest.load(rows / "train")
        finally:
            source.manifest.save(rows / "train")
