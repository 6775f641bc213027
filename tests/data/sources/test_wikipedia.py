import bz2

import pytest
from data.sources.reading import read_all, reasons

from lit_llm.data.sources.wikitext import plain_text

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo><sitename>Wikipedia</sitename><base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
  <namespaces><namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">Datei</namespace>
  <namespace key="14" case="first-letter">Kategorie</namespace></namespaces></siteinfo>
"""


def page(number, title, text, ns=0, more="", model="wikitext"):
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n    <id>{number}</id>\n{more}    <revision>\n"
        f"      <id>{number}00</id>\n      <timestamp>2024-05-06T07:08:09Z</timestamp>\n      <model>{model}</model>\n"
        f'      <text bytes="9" xml:space="preserve">{text}</text>\n    </revision>\n  </page>\n'
    )


PAGES = [
    page(1, "Grüner Tee", "'''Grüner Tee''' ist ein [[Tee|Getränk]].[[Datei:x.jpg|mini]]\n[[Kategorie:Tee]]"),
    page(2, "Tee (grün)", "#WEITERLEITUNG [[Grüner Tee]]", more='    <redirect title="Grüner Tee" />\n'),
    page(3, "Diskussion:Tee", "Frage", ns=1),
    page(4, "Broken", "text").replace("<title>", "<title><b>"),
    page(5, "Style.css", "x", model="css"),
    page(6, "Long", "word " * 400),
    page(7, "Longer", "word " * 40_000),
    page(8, "Nothing", "{{Löschen}}"),
    page(9, "Last", "Ende\x01".replace("\x01", "")),
]


@pytest.mark.parametrize("chunk", [7, 2**20])
def test_articles_of_a_dump(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("lit_llm.data.sources.wikipedia._CHUNK_BYTES", chunk)
    data = (HEAD + "".join(PAGES) + "</mediawiki>\n").encode()
    # Several streams in one file, as Wikipedia's own dumps have them.
    (tmp_path / "wiki.xml.bz2").write_bytes(bz2.compress(data[:1000]) + bz2.compress(data[1000:]))
    documents, skipped = read_all(tmp_path, max_document_bytes=1000)
    assert [(each.id, each.text) for each in documents] == [
        ("wiki.xml.bz2:1", "Grüner Tee ist ein Getränk."),
        ("wiki.xml.bz2:9", "Ende"),
    ]
    tea = documents[0]
    assert (tea.url, tea.date) == ("https://de.wikipedia.org/wiki/Gr%C3%BCner_Tee", "2024-05-06T07:08:09Z")
    assert (tea.license, tea.language) == ("CC-BY-SA-4.0", "de")
    assert tea.metadata == {"title": "Grüner Tee", "revision": "100"}
    assert reasons(skipped) == [
        ("wiki.xml.bz2:2", "redirect"),
        ("wiki.xml.bz2:3", "not an article"),
        ("wiki.xml.bz2#4", "broken record"),
        ("wiki.xml.bz2:5", "not wikitext"),
        ("wiki.xml.bz2:6", "longer than max_document_bytes"),
        ("wiki.xml.bz2#7", "longer than max_document_bytes"),
        ("wiki.xml.bz2:8", "no text"),
    ]


def test_dumps_that_break_off_and_other_xml(tmp_path):
    data = (HEAD + PAGES[0] + PAGES[8]).encode()
    (tmp_path / "a.xml").write_bytes(data[:-30])
    (tmp_path / "b.xml.bz2").write_bytes(bz2.compress(data)[:-20])
    (tmp_path / "c.xml").write_text("<feed><page>one</page></feed>")
    documents, skipped = read_all(tmp_path)
    assert [each.id for each in documents] == ["a.xml:1", "c.xml"]
    assert reasons(skipped) == [("a.xml#2", "broken record"), ("b.xml.bz2", "broken file")]
    assert reasons(read_all(tmp_path / "c.xml", format="wikipedia")[1]) == [("c.xml", "broken file")]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Tea''' is a ''drink''.", "Tea is a drink."),
        ("[[Tea]], [[Tea|the drink]], [[:Category:Tea]]s [https://x.org the site] [https://x.org]", None),
        ("A{{cite|x={{y|z}}|[[a]]}}B{{infobox\n| a = b\n}}C", "ABC"),
        ("x {{lang|fr|mot}} {{nowrap|a b}} {{convert|5|km|mi}}", "x mot a b 5 km"),
        ("a<ref name=x>b {{c}}</ref> c<ref name=x /> d<ref>e", "a c de"),
        ("a<!-- b\nc -->d<!-- open", "ad"),
        ("Before\n{| class=x\n|-\n| a || {{b}}\n{|\n| inner\n|}\n|}\nAfter", "Before\n\nAfter"),
        ("[[File:a.jpg|thumb|A [[cat]] in a {{x}} hat]]Cat [[Bild:b.png]]", "Cat"),
        ("Tea ({{IPA|x}}; ) is", "Tea is"),
        ("== One ==\ntext\n=== Two ===\n== Three ==\n=== Four ===\n* a\n# b\n:c\n== See also ==\n[[Category:X]]", None),
        ("x<math>\\frac{{a}}{b} < c</math>y<nowiki>[[z]]</nowiki>", "x\\frac{{a}}{b} < cy[[z]]"),
        ("5&nbsp;km &amp; more<br/>next __NOTOC__ <small>s</small>", "5 km & more\nnext s"),
        ("{{open [[a|b]]\nnext}", None),
        ("}} a |} b", "a |} b"),
    ],
)
def test_markup_becomes_plain_text(wikitext, text):
    expected = {
        "[[Tea]], [[Tea|the drink]]": "Tea, the drink, Category:Teas the site",
        "== One ==\ntext": "One\n\ntext\n\nThree\n\nFour\n\n- a\n- b\nc",
        "{{open [[a|b]]\nnext}": "open b\nnext}",
    }
    wanted = text or next(value for start, value in expected.items() if wikitext.startswith(start))
    assert plain_text(wikitext, ["Bild"]) == wanted


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit", ["{{", "[[", "}}", "{{lang|", "<ref>", "<ref></ref>", "[http://", "= ", "<!--", "\n{|", "{{\n|}", "{|\n}}"]
)
def test_hostile_markup_takes_proportional_time(unit):
    # What were quadratic would take many minutes.
    assert len(plain_text(unit * 60_000 + "=")) <= 60_000 * len(unit) + 1
