import bz2
import gzip
import sys

import pytest
import xxhash
import zstandard
from data.sources.reading import read_all, reasons

from lit_llm.config import UserError

PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("pack", PACK)
def test_documents_of_a_folder_in_the_order_of_their_paths(tmp_path, pack):
    for name, text in (("b.txt", "one\n<|endoftext|>\ntwö\n<|endoftext|>\n \n"), ("a/x.md", "# Title"), ("c.rst", "r")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / (name + pack)).write_bytes(PACK[pack](text.encode()))
    documents, skipped = read_all(tmp_path, name="notes", license="CC0-1.0")
    assert [(each.id, each.text) for each in documents] == [
        (f"a/x.md{pack}", "# Title"),
        (f"b.txt{pack}", "one\n"),
        (f"b.txt{pack}:1", "twö\n"),
        (f"c.rst{pack}", "r"),
    ]
    assert not skipped
    assert {each.license for each in documents} == {"CC0-1.0"}
    assert [each.digest for each in documents] == [xxhash.xxh3_128_hexdigest(each.text.encode()) for each in documents]
    whole, _ = read_all(tmp_path / f"b.txt{pack}", document_separator=None)
    assert [each.text for each in whole] == ["one\n<|endoftext|>\ntwö\n<|endoftext|>\n \n"]
    other, _ = read_all(tmp_path / f"b.txt{pack}", document_separator="wö\n")
    assert [each.text for each in other] == ["one\n<|endoftext|>\nt", "<|endoftext|>\n \n"]


def test_what_is_no_text_is_skipped_and_counted(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "long.txt").write_text("x" * 50 + "<|endoftext|>" + "y" * 101 + "<|endoftext|>" + "z" * 100)
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "wide.txt").write_text("größe", encoding="utf-16")
    documents, skipped = read_all(tmp_path, max_document_bytes=100)
    assert [(each.id, each.text, each.metadata) for each in documents] == [
        ("latin.txt", "gr\ufffd\ufffde", {"replaced_bytes": 2}),
        ("long.txt", "x" * 50, {}),
        ("long.txt:2", "z" * 100, {}),
        ("wide.txt", "größe", {}),
    ]
    assert reasons(skipped) == [
        ("a.bin", "not text"),
        ("blank.txt", "no text"),
        ("long.txt:1", "longer than max_document_bytes"),
    ]
    assert skipped[2].detail == "101 bytes"


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_what_comes_before_a_break_is_kept(tmp_path, suffix):
    text = "".join(f"story {number} {number**20}\n<|endoftext|>\n" for number in range(20_000))
    packed = PACK[suffix](text.encode())
    (tmp_path / f"a.txt{suffix}").write_bytes(packed[: len(packed) // 2])
    (tmp_path / f"b.txt{suffix}").write_bytes(b"this is no such file")
    (tmp_path / "c.txt").write_text("the next file")
    documents, skipped = read_all(tmp_path)
    assert reasons(skipped) == [(f"a.txt{suffix}", "broken file"), (f"b.txt{suffix}", "broken file")]
    assert all(each.detail for each in skipped)
    assert documents[-1].text == "the next file"
    assert [each.text for each in documents[:-1]] == text.split("<|endoftext|>\n")[: len(documents) - 1]


def test_sources_that_are_not_there_or_options_of_no_effect_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "a.txt").write_text("a")
    for path, options, message in (
        ("", {}, "a source has no path"),
        (tmp_path / "empty", {}, "no file found there"),
        (tmp_path / "nosuch", {}, "no such file, folder or glob"),
        (tmp_path / "a.jsonl", {"document_separator": "\n\n"}, "document_separator is given, but .* no text files"),
        (tmp_path / "a.txt", {"id_field": "id"}, "id_field is given, but .* has no rows"),
        (tmp_path / "a.txt", {"document_separator": ""}, "document_separator is empty"),
        ("packages:xxhash", {"format": "text"}, "format is given, but can do nothing for packages:xxhash"),
        ("hf:data", {"document_separator": None}, "document_separator is given, but can do nothing for hf:data"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read_all(path, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("xxhash", "a.txt"),
        ("fsspec", "memory://corpus/a.txt"),
        ("fastwarc.warc", "a.warc"),
        ("resiliparse.parse.encoding", "a.html"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, library, name):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.warc").write_text("a")
    (tmp_path / "a.html").write_bytes(b"<meta charset=latin1>\xfc")
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"needs {library.partition('.')[0]} .*pip install 'lit-llm\[data\]'"
    with pytest.raises(UserError, match=message) as error:
        read_all(name if "://" in name else tmp_path / name)
    assert "\n" not in str(error.value)
