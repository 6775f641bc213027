"""Files that cannot be read, or not to their ends: each is left out and named, and the others are read."""

import bz2
import gzip
import json
import os
import random
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from source_reading import read_all, reasons

from lit_llm.config import CorpusConfig, SourceConfig, UserError
from lit_llm.data.corpus.recipes.tallies import ReadRecord, skipped_place
from lit_llm.data.sources.document import Skipped, SourceDocument
from lit_llm.data.sources.file_documents import FoundFile, reading
from lit_llm.data.sources.opening import open_source
from lit_llm.data.sources.text_files import FileSource

UNREADABLE = "file that cannot be read"


def read(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The texts, what was left out and why."""
    documents, skipped = read_all(path)
    return [each.text for each in documents], reasons(skipped)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no file here whose reading fails")
@pytest.mark.parametrize("name", ["b.txt", "b.jsonl", "b.json", "b.parquet", "b.html", "b.warc", "b.xml", "b.py"])
def test_a_device_that_fails(tmp_path, name):
    for other in ("a", "c"):
        (tmp_path / f"{other}.txt").write_text(other)
    (tmp_path / name).symlink_to("/proc/self/mem")
    texts, skipped = read(tmp_path)
    assert texts == ["a", "c"] and [where.partition("@")[0] for where, _ in skipped] == [name]


def test_a_file_that_vanishes_before_it_is_read(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    source = open_source(SourceConfig(str(tmp_path)))
    units = source.units()
    (tmp_path / "b.txt").unlink()
    for reader in (source, open_source(SourceConfig(str(tmp_path)))):  # as in a process that was started later
        found = [each for unit in units for each in reader.read(unit)]
        assert [each.text for each in found if isinstance(each, SourceDocument)] == ["a.txt", "c.txt"]
        assert (found[1].where, found[1].reason) == ("b.txt", UNREADABLE)


def test_a_file_or_folder_without_permission(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    before = open_source(SourceConfig(str(tmp_path))).units()
    for name in ("b.txt", "sub"):
        (tmp_path / name).chmod(0)
    try:
        if os.access(tmp_path / "b.txt", os.R_OK):
            pytest.skip("this user may read everything")
        assert read(tmp_path) == (["a.txt"], [("b.txt", UNREADABLE), ("sub", UNREADABLE)])
        # Once it may be read again, the source is another one.
        assert open_source(SourceConfig(str(tmp_path))).units()[1].modified != before[1].modified
    finally:
        (tmp_path / "sub").chmod(0o700)


def test_names_that_are_no_utf8(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"bad\xff.txt")).write_text("one")
    except OSError:
        pytest.skip("no such names here")
    (tmp_path / "bad\\xff.txt").write_text("two")
    (tmp_path / os.fsdecode(b"bad\xff.jsonl.gz")).write_bytes(gzip.compress(b'{"text": "three"}\n{}\n') + b"junk")
    documents, skipped = read_all(tmp_path)
    texts = {each.text: each.id for each in documents}
    assert texts["three"] == "bad\\xff.jsonl.gz:1" and {texts["one"], texts["two"]} == {
        "bad\\xff.txt",
        "bad\\xff.txt'",
    }
    assert reasons(skipped) == [
        ("bad\\xff.jsonl.gz:2", "no field 'text'"),
        ("bad\\xff.jsonl.gz", "broken file"),
    ]
    source = FileSource(CorpusConfig(str(tmp_path)))
    source.files = [file for file in source.files if file.suffix == ".txt"]
    for piece in source.pieces([]):
        piece.key.encode()


def test_what_is_said_of_a_file_is_one_line_whatever_its_name():
    record = ReadRecord()
    record.skip(Skipped("a\n\x1b[31mb.txt", "broken file", "x" * 10_000))
    assert skipped_place(record.skipped["broken file"]["examples"][0]) == f"a\\n\\x1b[31mb.txt ({'x' * 300})"


def test_what_is_read_before_the_break_stays_and_other_trouble_ends_the_reading(tmp_path):
    def documents(error):
        yield "first"
        raise error

    file = FoundFile("a.txt", tmp_path / "a.txt", 3)
    for error, reason in (
        (OSError(5, "I/O error"), UNREADABLE),
        (FileNotFoundError(2, "gone"), UNREADABLE),
        (EOFError("ended"), "broken file"),
        (zlib.error("bad"), "broken file"),
        (OSError("bad magic"), "broken file"),
    ):
        found = list(reading(documents(error), file))
        assert found[0] == "first" and reasons(found[1:]) == [("a.txt", reason)]
    # Too many open files, memory, a lost mount: other files could not be read, either.
    for number in (24, 12, 116):
        with pytest.raises(UserError, match=r"a.txt: cannot be read \(.*run again"):
            list(reading(documents(OSError(number, "x")), file))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_what_comes_before_a_break_is_read(tmp_path, suffix):
    rows = [json.dumps({"text": f"{number} {'cat sat ' * 100}"}) + "\n" for number in range(200)]
    draw = random.Random(1)
    noise = "".join(f"{draw.random()}\n" for _ in range(9000))
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}[suffix]
    files = {
        "a.jsonl": [*rows, json.dumps({"text": noise}) + "\n"],
        "b.json": ["[", ",".join(rows), ",", json.dumps({"text": noise}), "]"],
        "c.txt": [f"{number} {'cat sat ' * 100}<|endoftext|>\n" for number in range(200)] + [noise],
        "d.html": ["<p>page" + noise],
    }
    for name, parts in files.items():
        head, rest = pack("".join(parts[:-1] if name != "b.json" else parts[:3]).encode()), pack(parts[-1].encode())
        (tmp_path / f"{name}{suffix}").write_bytes(head + rest[: len(rest) // 3])
    documents, skipped = read_all(tmp_path)
    number = {name: sum(each.id.startswith(name) for each in documents) for name in files}
    assert number.pop("d.html") == 0
    # Of .zst, up to 16 KiB before the break are lost.
    assert set(number.values()) <= ({200} if suffix != ".zst" else set(range(178, 201)))
    assert reasons(skipped) == [(f"{name}{suffix}", "broken file") for name in files]


def _kinds() -> dict[str, bytes]:
    rows = [json.dumps({"text": f"hello {number}"}) for number in range(60)]
    lines, items = "\n".join(rows).encode(), f"[{','.join(rows)}]".encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"hello {number}" for number in range(60)]}), sink, row_group_size=20)
    page = "<page><title>T</title><ns>0</ns><id>{}</id><revision><text>Hello</text></revision></page>"
    wiki = f"<mediawiki>{''.join(map(page.format, range(60)))}</mediawiki>".encode()
    plain = {".jsonl": lines, ".json": items, ".xml": wiki, ".txt": lines, ".html": b"<p>hello" * 60}
    packs = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}
    packed = {suffix + more: pack(data) for suffix, data in plain.items() for more, pack in packs.items()}
    return {**plain, **packed, ".parquet": sink.getvalue().to_pybytes()}


def test_no_damage_stops_the_reading(tmp_path):
    draw = random.Random(0)
    (tmp_path / "z.txt").write_text("the last one")
    for suffix, data in _kinds().items():
        for _ in range(6):
            damaged = bytearray(data)
            for _ in range(draw.choice([0, 1, 20])):
                damaged[draw.randrange(len(data))] = draw.randrange(256)
            cut = draw.randrange(len(data))
            damaged = damaged[: draw.choice([cut, len(data)])]
            (tmp_path / f"a{suffix}").write_bytes(damaged)
            source = open_source(SourceConfig(str(tmp_path)))
            found = [each for unit in source.units() for each in source.read(unit)]
            assert found[-1].text == "the last one"
            assert len(found) > 1 or not damaged
        (tmp_path / f"a{suffix}").unlink()
