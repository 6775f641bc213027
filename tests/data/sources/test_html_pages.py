import gzip

import pytest
from source_reading import read_all, reasons

from lit_llm.data.sources.web_pages import decode_html, starts_as_html

GERMAN = "Übergrößen für Bäcker und Müller, die schöne Wörter mögen. " * 5
RUSSIAN = "Привет, мир! Как дела сегодня, и что нового в городе? " * 5


@pytest.mark.parametrize(
    ("data", "server", "expected", "encoding"),
    [
        (f'<meta charset="iso-8859-1">{GERMAN}'.encode("latin-1"), None, GERMAN, "cp1252"),
        (f"<META content='text/html; charset=windows-1251'>{RUSSIAN}".encode("cp1251"), None, RUSSIAN, "cp1251"),
        (f'<?xml version="1.0" encoding="koi8-r"?>{RUSSIAN}'.encode("koi8-r"), None, RUSSIAN, "koi8-r"),
        # The server is believed before the page, and a mark before the server.
        (f"<meta charset=utf-8>{RUSSIAN}".encode("cp1251"), "Windows-1251", RUSSIAN, "cp1251"),
        (f"\ufeff{RUSSIAN}".encode(), "windows-1251", RUSSIAN, "utf-8"),
        (f"\ufeff<meta charset=utf-8>{RUSSIAN}".encode("utf-16-le"), None, RUSSIAN, "utf-16"),
        (RUSSIAN.encode("utf-16-le"), "utf-16", RUSSIAN, "utf-16-le"),
        # Nothing is said: UTF-8 where it is valid, else what it looks like.
        (RUSSIAN.encode(), None, RUSSIAN, "utf-8"),
        (RUSSIAN.encode("cp1251"), None, RUSSIAN, "cp1251"),
        # What is said is no encoding, or not the right one.
        (RUSSIAN.encode(), "nonsense", RUSSIAN, "utf-8"),
        (f"<meta charset=utf-16>{RUSSIAN}".encode(), None, RUSSIAN, "utf-8"),
        (f"<meta charset=euc-kr>{GERMAN}".encode(), None, GERMAN, "utf-8"),
    ],
)
def test_a_page_is_decoded_as_it_says(data, server, expected, encoding):
    text, replaced, found = decode_html(data, server)
    assert text.endswith(expected) and (replaced, found) == (0, encoding)


def test_invalid_bytes_of_a_page_are_replaced_and_counted():
    assert decode_html(b"<meta charset=utf-8>gr\xfc\xdfe \xc3\xbc") == (
        "<meta charset=utf-8>gr\ufffd\ufffde ü",
        2,
        "utf-8",
    )
    assert decode_html(b"\x00\x01 not text") is None


@pytest.mark.parametrize(
    ("text", "is_page"),
    [
        ("<!DOCTYPE html>\n<p>", True),
        ('\ufeff <?xml version="1.0"?>\n<!-- by x -->\n<HTML lang="de">'.lstrip("\ufeff"), True),
        ("<body class=x>", True),
        ("<p>a paragraph</p>", False),
        ("The tag <html> begins a page", False),
        ("<headline>", False),
        ("", False),
    ],
)
def test_pages_are_told_by_how_they_begin(text, is_page):
    assert starts_as_html(text) is is_page


def test_html_files(tmp_path):
    (tmp_path / "a.html").write_bytes(f'<meta charset="latin1"><p>{GERMAN}'.encode("latin-1"))
    (tmp_path / "b.HTM.gz").write_bytes(gzip.compress(b"<p>two"))
    (tmp_path / "c.html").write_bytes(b"\0\1")
    (tmp_path / "d.html").write_bytes(b"<p>" + b"x" * 1000)
    documents, skipped = read_all(tmp_path, max_document_bytes=999)
    assert [(each.id, each.metadata) for each in documents] == [
        ("a.html", {"media_type": "text/html", "encoding": "cp1252"}),
        ("b.HTM.gz", {"media_type": "text/html"}),
    ]
    assert documents[0].text.endswith(GERMAN)
    assert reasons(skipped) == [("c.html", "not text"), ("d.html", "longer than max_document_bytes")]
    assert read_all(tmp_path / "a.html", format="text")[0][0].metadata.keys() == {"replaced_bytes"}
