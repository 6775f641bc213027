import sys

import pytest
from conftest import ROOT

from lit_llm.config import UserError
from lit_llm.config.extraction import ExtractConfig
from lit_llm.data.cleaning.extraction import extract_text
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.sources.document import SourceDocument

sys.path.append(str(ROOT / "experiments" / "benchmarks"))
from known_pages import known_pages, word_overlap

PAGES = known_pages()
PAGE = """<html><head><title> A  title
of two lines </title></head><body><nav><a href="/">Home</a></nav><main><article><h1>Head</h1>
<p>One   <a href="https://example.org/x">link</a> and <img src=x alt="a picture"> here.</p>
<ul><li>first</li><li>second</li></ul><pre>def f():
    return 1</pre></article><div class="comments"><p>I was here.</p></div>
<footer>Under <a rel="license" href="https://creativecommons.org/licenses/by/4.0/">a licence</a></footer>
</main></html>"""


def extract(text, media_type="text/html", **options) -> tuple[SourceDocument, str | None, dict]:
    metadata = {"media_type": media_type} if media_type else {}
    document = SourceDocument("a", "s", text, "digest", metadata={**metadata, "encoding": "cp1252"})
    step = build_step("extract", ExtractConfig(**options))
    return document, step(document), step.counts


def test_a_page_becomes_its_text():
    document, reason, counts = extract(PAGE)
    assert reason is None and counts == {"pages extracted": 1}
    assert document.text == "Head\n\nOne link and here.\n\n  • first\n  • second\ndef f():\n    return 1"
    assert document.metadata == {"title": "A title of two lines", "encoding": "cp1252"}
    assert document.license == "https://creativecommons.org/licenses/by/4.0/"
    assert document.digest == "digest"


@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        ({"links": True}, "link (https://example.org/x)", "Home"),
        ({"alternatives": True}, "and a picture here.", "Home"),
        ({"main_content": False}, "Home", "a picture"),
        ({"comments": True}, "I was here.", "Home"),
        ({"preformatted": False}, "second def f(): return 1", "\n"),
    ],
    ids=str,
)
def test_options_of_extraction(options, there, absent):
    text = extract(PAGE, **options)[0].text
    assert there in text and absent not in text
    plain = extract(PAGE)[0].text
    assert there not in plain


def test_documents_that_are_no_html_pass_unchanged():
    for text, media_type in (("Text with <p> in it", None), ("plain", "text/plain")):
        document, reason, counts = extract(text, media_type)
        assert (document.text, reason) == (text, None)
        assert counts == {"documents that are no HTML, left as they are": 1}
    # A row may hold a page, which its source does not know.
    assert extract(PAGE, None)[0].text.startswith("Head")


def test_pages_with_too_little_text_are_dropped_and_left_as_they_are():
    for html, options, reason in (
        ("<html><script>x</script>", {}, "no text left"),
        ("", {}, "no text left"),
        ("<html><p>few words", {"min_characters": 10}, "fewer than 10 characters"),
        ("<div>" * 257 + "x", {}, "HTML that cannot be parsed"),
    ):
        document, found, counts = extract(html, **options)
        assert found == reason and document.text == html and not counts
    assert extract("<html><p>few words", min_characters=9)[1] is None
    assert extract("<div>" * 256 + "x")[0].text == "x"
    with pytest.raises(UserError, match="min_characters is 0"):
        ExtractConfig(min_characters=0)


@pytest.mark.parametrize(
    "html",
    [
        # What is not closed is opened again in every paragraph: half a million elements, and in a page of 100 kB more.
        "".join(f"<p><font color={number}><i id={number}>x" for number in range(700)),
        f"<p {' '.join(f'name{number}' for number in range(5001))}>x",
        f"<p {' '.join(f'name{number}={chr(34)}>{chr(34)}' for number in range(5001))}>x",
    ],
    ids=["unclosed", "attributes", "attributes with brackets"],
)
def test_pages_that_take_time_by_the_square_of_their_length_are_left_out(html):
    assert extract(html)[1] == "HTML that cannot be parsed"


def test_pages_that_take_no_such_time_are_read():
    # Equal elements are opened three times at most, and closed ones not at all; a picture in a tag is one attribute.
    for html in (
        "<p><font color=red>x" * 700,
        "".join(f"<p><font color={number}>x</font>" for number in range(700)),
        "<table>" + "".join(f"<tr><td><B id={number}>x</b>" for number in range(700)) + "</table>",
    ):
        assert len(extract(html)[0].text.split()) == 700
    assert extract(f'<p><img alt="picture" src="data:image/png;base64,{"ab/" * 20_000}">x')[0].text == "x"


def test_a_page_that_is_named_like_what_is_left_out_is_kept():
    words = " ".join(f"word{number}" for number in range(200))
    text = extract(f'<body class="has-sidebar"><div class="content-sidebar-wrap"><p>{words}</p></div>')[0].text
    assert text == words
    text = extract(f'<body><div class="sidebar">aside</div><p>{words}</p>')[0].text
    assert text == words


def test_lists_that_are_nested_little_are_no_menus():
    items = "<li>A sentence of its own.</li><li>And a second one.</li>"
    for before, after in (("", ""), ("<div>", "</div>"), ("<main><section>", "</section></main>")):
        text = extract(f"<html><body>{before}<h1>News</h1><ul>{items}</ul>{after}")[0].text
        assert text == "News\n\n  • A sentence of its own.\n  • And a second one."
    assert "Contact" not in extract(f"<body><nav><ul><li>Contact</li></ul></nav><p>{'words ' * 30}</p>")[0].text


def overlap(name: str) -> float:
    html, main = PAGES[name]
    page = extract_text(html, ExtractConfig())
    assert page is not None
    return word_overlap(page.text, main)[2]


def test_main_text_of_pages_that_were_marked_by_hand():
    assert len(PAGES) == 12
    found = {name: overlap(name) for name in PAGES}
    assert sum(found.values()) / len(found) > 0.95
    assert min(found.values()) > 0.83
    # Without the search for the main content, a fifth of the words are those around it.
    whole = [
        word_overlap(extract_text(html, ExtractConfig(main_content=False)).text, main)[2]
        for html, main in PAGES.values()
    ]
    assert sum(whole) / len(whole) < 0.84


def test_marks_are_no_part_of_the_pages():
    html, main = PAGES["minified"]
    assert "<!-- main" not in html and "main -->" not in html
    assert main.split()[:2] == ["Fahrradkette", "reinigen"] and "Cookies" not in main
    assert word_overlap("a b b c", "b c d") == pytest.approx((2 / 4, 2 / 3, 4 / 7))
