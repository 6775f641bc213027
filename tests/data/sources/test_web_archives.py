import gzip
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from source_reading import read_all, reasons
from web_archives import PACK, http, page, record

from lit_llm.data.sources.http_responses import parse_response


def record_ids(documents):
    """The ids that the records of documents have themselves."""
    return [each.metadata.get("record_id") for each in documents]


@pytest.mark.parametrize("pack", PACK)
def test_pages_with_their_provenance(tmp_path, pack):
    records = [
        record(0, b"software: x\r\n", "warcinfo"),
        record(1, b"GET / HTTP/1.1\r\n\r\n", "request"),
        record(1, http(page(1)), digest=True),
        record(2, http("grün".encode("latin-1"), "text/html; charset=ISO-8859-1")),
        record(3, http(b"just words", "text/plain"), more="WARC-Truncated: length\r\n"),
        record(4, http(b"<html>gone", status=404)),
        record(5, http(b"%PDF", "application/pdf")),
        record(6, page(6), "resource", more="Content-Type: text/html\r\n"),
        record(7, b"no response at all"),
        record(8, http(b"\x00\x01\x02")),
        record(9, http(b" ")),
        record(9, http(page(9)), digest=True).replace(b"<title>9", b"<title>8"),
        record(3, http(b"<HTML>same id", "")),
        record(10, http(b"whatever", "")),
        record(11, b"metadata", "metadata"),
    ]
    (tmp_path / f"a.warc{pack}").write_bytes(b"".join(map(PACK[pack], records)))
    documents, skipped = read_all(tmp_path)
    places = [len(b"".join(map(PACK[pack], records[:count]))) for count in range(len(records))]
    html, plain = {"media_type": "text/html"}, {"truncated": "length"}
    expected = [
        (2, 1, page(1).decode(), html),
        (3, 2, "grün", {**html, "encoding": "cp1252"}),
        (4, 3, "just words", plain),
        (7, 6, page(6).decode(), html),
        (12, 3, "<HTML>same id", html),
    ]
    assert [(each.id, each.text, each.url, each.date, each.metadata) for each in documents] == [
        (
            f"a.warc{pack}@{places[place]}",
            text,
            f"https://example.org/{number}",
            f"2024-05-06T07:08:0{number}Z",
            {**facts, "record_id": f"urn:uuid:000{number}"},
        )
        for place, number, text, facts in expected
    ]
    assert reasons(skipped) == [
        (f"a.warc{pack}@{places[place]}", reason)
        for place, reason in (
            (5, "HTTP status other than 200"),
            (6, "neither HTML nor plain text"),
            (8, "broken record"),
            (9, "not text"),
            (10, "no text"),
            (11, "broken record"),
            (13, "neither HTML nor plain text"),
        )
    ]
    assert [skipped[0].detail, skipped[1].detail] == ["404", "application/pdf"]


def test_texts_of_wet_files(tmp_path):
    more = "WARC-Identified-Content-Language: deu,eng\r\n"
    records = [record(1, page(1), "response"), record(2, "größe\nx".encode() + b"\xff", "conversion", more)]
    (tmp_path / "a.warc.wet.gz").write_bytes(b"".join(map(gzip.compress, records)))
    documents, skipped = read_all(tmp_path)
    assert not skipped
    assert [(each.id, each.text, each.metadata) for each in documents] == [
        (
            f"a.warc.wet.gz@{len(gzip.compress(records[0]))}",
            "größe\nx\ufffd",
            {"content_languages": "deu,eng", "replaced_bytes": 1, "record_id": "urn:uuid:0002"},
        )
    ]
    assert documents[0].url == "https://example.org/2"


def test_a_record_above_the_limit_is_passed_over(tmp_path):
    records = [record(1, http(page(1))), record(2, http(b"<html>" + b"x" * 200_000)), record(3, http(page(3)))]
    packed = http(gzip.compress(b"x" * 9_000_000, mtime=0), more="Content-Encoding: gzip\r\n")
    (tmp_path / "a.warc.gz").write_bytes(b"".join(map(gzip.compress, [*records, record(4, packed)])))
    documents, skipped = read_all(tmp_path, max_document_bytes=50_000)
    assert record_ids(documents) == ["urn:uuid:0001", "urn:uuid:0003"]
    assert [(each.reason, each.detail) for each in skipped] == [
        ("longer than max_document_bytes", "200,064 bytes"),
        ("longer than max_document_bytes", "more than 50,000 bytes"),
    ]


def test_copies_of_an_archive_have_ids_of_their_own(tmp_path):
    for name in ("a.warc.gz", "b.warc.gz"):
        (tmp_path / name).write_bytes(b"".join(gzip.compress(record(n, http(page(n)))) for n in range(3)))
    documents, _ = read_all(tmp_path)  # which finds that no two ids are equal
    assert record_ids(documents) == [f"urn:uuid:{n:04}" for n in range(3)] * 2
    assert [each.id.partition("@")[0] for each in documents] == ["a.warc.gz"] * 3 + ["b.warc.gz"] * 3


def broken(kind: str, members: list[bytes], plain: list[bytes]) -> list[bytes]:
    """The members of an archive with the third of them damaged."""
    third = members[2]
    damaged = {
        "flipped": third[: len(third) // 2] + bytes([third[len(third) // 2] ^ 255]) + third[len(third) // 2 + 1 :],
        "cut": third[: len(third) // 2],
        "headless": b"\0" * 20 + third[20:],
        "junk before it": b"junk" * 10 + third,
    }
    return [*members[:2], damaged[kind], *members[3:]]


@pytest.mark.parametrize("kind", ["flipped", "cut", "headless", "junk before it"])
@pytest.mark.parametrize("pack", [".gz", ".zst"])
def test_what_follows_a_broken_record_is_read(tmp_path, kind, pack):
    plain = [record(number, http(page(number)), digest=True) for number in range(7)]
    (tmp_path / f"a.warc{pack}").write_bytes(b"".join(broken(kind, list(map(PACK[pack], plain)), plain)))
    documents, skipped = read_all(tmp_path)
    good = [0, 1, 3, 4, 5, 6] if kind != "junk before it" else list(range(7))
    assert record_ids(documents) == [f"urn:uuid:{number:04}" for number in good]
    assert [each.reason for each in skipped] == ["broken record"] and skipped[0].detail


@pytest.mark.parametrize("pack", PACK)
def test_several_broken_records_are_each_counted(tmp_path, pack):
    plain = [record(number, http(page(number)), digest=True) for number in range(9)]
    members = list(map(PACK[pack], plain))
    for number in (2, 3, 6):
        middle = len(members[number]) // 2
        members[number] = (
            members[number][:middle] + bytes([members[number][middle] ^ 255]) + members[number][middle + 1 :]
        )
    members[8] = members[8][:-300]
    (tmp_path / f"a.warc{pack}").write_bytes(b"".join(members))
    documents, skipped = read_all(tmp_path)
    assert [each[-1] for each in record_ids(documents)] == list("01457")
    assert [each.reason for each in skipped] == ["broken record"] * 4


def test_what_follows_a_broken_header_of_a_plain_archive_is_read(tmp_path):
    plain = [record(number, http(page(number))) for number in range(5)]
    plain[2] = plain[2].replace(b"WARC/1.0", b"\xff\xff\xff\xff\xff\xff\xff\xff")
    (tmp_path / "a.warc").write_bytes(b"".join(plain))
    (tmp_path / "b.warc").write_bytes(b"this is no archive at all, whatever its name says")
    documents, skipped = read_all(tmp_path)
    assert [each[-1] for each in record_ids(documents)] == list("0134")
    assert reasons(skipped) == [(f"a.warc@{len(plain[0])}", "broken record"), ("b.warc@0", "broken record")]


@settings(max_examples=60, deadline=None)
@example(place=10, junk=b"\0", pack="")
@example(place=100, junk=b"\0" * 6, pack=".zst")
@example(place=0, junk=b"\0", pack=".gz")
@given(place=st.integers(0, 20_000), junk=st.binary(min_size=1, max_size=40), pack=st.sampled_from([".gz", ".zst", ""]))
def test_damage_anywhere_costs_no_more_than_the_records_that_it_touches(tmp_path_factory, place, junk, pack):
    folder = tmp_path_factory.mktemp("damage")
    members = [PACK[pack](record(number, http(page(number, 20)), digest=True)) for number in range(6)]
    whole = b"".join(members)
    place %= len(whole) - len(junk)
    data = whole[:place] + junk + whole[place + len(junk) :]
    (folder / f"a.warc{pack}").write_bytes(data)
    documents, skipped = read_all(folder)
    starts = [len(b"".join(members[:count])) for count in range(7)]
    untouched = {
        f"urn:uuid:{number:04}"
        for number in range(6)
        if not (starts[number] < place + len(junk) and place < starts[number + 1])
    }
    lost = untouched - set(record_ids(documents))
    # A length that was damaged takes the record after it along; a plain record has no other way to tell its end.
    assert len(lost) <= (pack == "")
    assert skipped or data == whole or len(documents) == 6


@pytest.mark.parametrize(
    ("more", "body"),
    [
        ("Content-Encoding: gzip\r\n", gzip.compress(b"hello", mtime=0)),
        ("Content-Encoding: deflate\r\n", zlib.compress(b"hello")),
        ("Content-Encoding: gzip\r\n", b"hello"),
        ("Content-Encoding: br\r\n", b"\x0b\x02\x80hello\x03"),
        ("Transfer-Encoding: chunked\r\n", b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", b"2\r\nhe\r\n9\r\nllo"),
        ("Transfer-Encoding: chunked\r\n", b"hello"),
        (
            "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n",
            b"19\r\n" + gzip.compress(b"hello", mtime=0) + b"\r\n0\r\n",
        ),
        ("", b"hello"),
    ],
)
def test_bodies_are_unpacked(more, body):
    response = parse_response(http(body, 'Text/HTML; x=1; charset="UTF-8"', more=more), 100)
    assert (response.status, response.body, response.media_type, response.charset) == (
        200,
        b"hello",
        "text/html",
        "UTF-8",
    )
