import sys
from collections import Counter

from conftest import ROOT
from source_reading import read_all

sys.path.append(str(ROOT / "experiments" / "benchmarks"))
from known_pages import FOLDER
from web_pages import JUNK, html_files, near_copy, with_boilerplate, write_warc

PAGES = sorted(FOLDER.glob("*.html"))


def kinds(documents) -> Counter:
    return Counter(
        each.url.split("/")[3] if each.url.startswith("https://planted.example/") else "page" for each in documents
    )


def test_archives_of_pages_with_known_junk(tmp_path):
    counts = write_warc(
        tmp_path / "a.warc.gz", PAGES, seed=1, junk={"near_copy": 0.5, "boilerplate": 1.0, "spam": 0.25}
    )
    assert counts == {
        "page": 12,
        "spam": 3,
        "cookie_wall": 1,
        "link_list": 1,
        "exact_copy": 1,
        "near_copy": 6,
        "boilerplate": 12,
    }
    documents, skipped = read_all(tmp_path / "a.warc.gz")
    assert not skipped
    assert kinds(documents) == {name: number for name, number in counts.items() if name != "boilerplate"}
    originals = {path.read_text(encoding="utf-8") for path in PAGES}
    copies = [each.text for each in documents if each.url.startswith("https://planted.example/exact_copy/")]
    assert set(copies) <= originals
    pages = [each.text for each in documents if not each.url.startswith("https://planted.example/")]
    assert sum("site-footer" in text for text in pages) >= 11
    # The same seed gives the same bytes, another one other ones.
    options = {"junk": {"near_copy": 0.5, "boilerplate": 1.0, "spam": 0.25}}
    write_warc(tmp_path / "b.warc.gz", PAGES, seed=1, **options)
    write_warc(tmp_path / "c.warc.gz", PAGES, seed=2, **options)
    first, second, third = ((tmp_path / f"{name}.warc.gz").read_bytes() for name in "abc")
    assert first == second != third


def test_no_junk_leaves_the_pages_as_they_are(tmp_path):
    write_warc(tmp_path / "a.warc.gz", PAGES, seed=0, junk=dict.fromkeys(JUNK, 0.0))
    documents, _ = read_all(tmp_path / "a.warc.gz")
    assert sorted(each.text for each in documents) == sorted(path.read_text(encoding="utf-8") for path in PAGES)


def test_near_copies_differ_in_few_words():
    import random

    text = (FOLDER / "newspaper.html").read_text(encoding="utf-8")
    copy = near_copy(text, random.Random(0))
    ours, theirs = text.split(), copy.split()
    assert copy != text and 0.9 < sum((Counter(ours) & Counter(theirs)).values()) / len(ours) < 1
    assert "Sign in or create an account" in with_boilerplate(text)


def test_a_folder_with_the_name_of_a_page_is_none(tmp_path):
    (tmp_path / "manual.html").mkdir()
    page = tmp_path / "manual.html" / "index.html"
    page.write_text("<p>text")
    assert html_files(tmp_path) == [page]
