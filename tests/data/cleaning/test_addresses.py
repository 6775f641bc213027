"""Addresses that are on a list, and those that only look so."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from cleaning_texts import document
from hypothesis import given
from hypothesis import strategies as st

from lit_llm.config import UserError
from lit_llm.config.text_filters import UrlBlocklistConfig
from lit_llm.data.cleaning.addresses import UrlBlocklist, host_and_path
from lit_llm.data.cleaning.registry import build_step

DOMAIN, ADDRESS = "domain on the list", "address on the list"
WORD, STRING = "a listed word in the address", "a listed string in the address"


def reason(url: str | None, **options: Any) -> str | None:
    """Why a document of an address is dropped."""
    return UrlBlocklist(UrlBlocklistConfig(**options))(document("text", url=url))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://example.com", DOMAIN),
        ("https://www.Example.COM./a?b#c", DOMAIN),
        ("https://deep.below.example.com:8080/", DOMAIN),
        ("example.com/path", DOMAIN),
        ("//example.com/path", DOMAIN),
        ("https://user:pass@example.com/", DOMAIN),
        ("https://example.com@other.org/", None),
        ("https://notexample.com/", None),
        ("https://example.com.evil.org/", None),
        ("https://other.org/?to=example.com", None),
        ("https://shop.co.uk/", DOMAIN),
        ("https://other.co.uk/", None),
        ("https://bücher.example/", DOMAIN),
        ("https://xn--bcher-kva.example/", DOMAIN),
        ("http://192.0.2.7/x", DOMAIN),
        ("http://[2001:db8::1", None),
        ("not an address at all", None),
        ("", None),
        (None, None),
    ],
)
def test_domains_stand_for_all_below_them(url: str | None, expected: str | None) -> None:
    assert reason(url, domains=["example.com", "www.Shop.co.uk", "bücher.example", "192.0.2.7"]) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://ads.example/banner", DOMAIN),
        ("http://tracker.example/", DOMAIN),
        ("http://more.example/", DOMAIN),
        ("http://rule.example/", DOMAIN),
        ("http://site.example/shop", ADDRESS),
        ("http://sub.site.example/shop/item?x=1", ADDRESS),
        ("http://site.example/shopping", None),
        ("http://site.example/", None),
        ("http://localhost/", None),
    ],
)
def test_files_of_domains_addresses_and_hosts(url: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(
        "\ufeff# remark\n127.0.0.1 localhost\n::1 ip6-localhost\n0.0.0.0 tracker.example more.example # why\n", "utf-8"
    )
    (tmp_path / "list.gz").write_bytes(
        gzip.compress(b"ads.example\n\nhttp://site.example/shop/\n||rule.example^$third\n")
    )
    assert reason(url, files=[str(tmp_path / "hosts"), str(tmp_path / "list.gz")]) == expected


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("http://a.example/free-casino_games", {"words": ["Casino"]}, WORD),
        ("http://a.example/free%20casino", {"words": ["casino"]}, WORD),
        ("http://a.example/casinos", {"words": ["casino"]}, None),
        ("http://a.example/casinos", {"substrings": ["casino"]}, STRING),
        ("http://a.example/x", {"substrings": ["casino"]}, None),
        ("http://freepornvideos.example/1", {"adult": True}, STRING),
        ("http://a.example/xxx/1", {"adult": True}, WORD),
        ("http://a.example/essay-on-pornography", {"adult": True}, None),
        ("http://middlesex.example/sussex", {"adult": True}, None),
        ("http://freepornvideos.example/1", {"domains": ["b.example"]}, None),
    ],
)
def test_words_and_strings(url: str, options: dict[str, Any], expected: str | None) -> None:
    assert reason(url, **options) == expected


def test_steps_of_a_recipe_count_what_has_no_address() -> None:
    step = build_step("url_blocklist", UrlBlocklistConfig(domains=["example.com"]))
    assert [step(document("a")), step(document("b", url="http://example.com"))] == [None, DOMAIN]
    assert step.counts == {"documents without an address": 1}


@given(st.text(max_size=80) | st.from_regex(r"(http://)?[\[\]a-z.:@/%#?]{0,40}", fullmatch=True))
def test_no_address_is_too_strange(url: str) -> None:
    host, path = host_and_path(url)
    assert host == host.lower() and isinstance(path, str)
    reason(url, domains=["example.com"], adult=True)


def test_long_addresses_take_no_quadratic_time() -> None:
    for url in (
        "http://" + "a" * 200_000,
        "http://" + "." * 200_000 + "x",
        "%41" * 70_000,
        "http://a/" + "-" * 200_000,
    ):
        assert reason(url, domains=["example.com"], adult=True) is None


def test_hosts_with_many_dots_are_looked_up_to_a_bound() -> None:
    assert reason("http://" + "a." * 100_000 + "example.com/", domains=["example.com"]) == DOMAIN


def test_lists_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("fine.example\nthis is prose\n")
    with pytest.raises(
        UserError, match=r"line 2 of .*words is neither a domain, an address nor a line of a hosts file"
    ):
        reason("x", files=[str(tmp_path / "words")])
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"the list .*empty has no entries"):
        reason("x", files=[str(tmp_path / "empty")])
    (tmp_path / "bad.gz").write_text("no gzip")
    with pytest.raises(UserError, match=r"the list .*bad\.gz cannot be read"):
        reason("x", files=[str(tmp_path / "bad.gz")])
    (tmp_path / "latin").write_bytes(b"caf\xe9.example\n")
    with pytest.raises(UserError, match=r"the list .*latin is no text in UTF-8"):
        reason("x", files=[str(tmp_path / "latin")])
    with pytest.raises(UserError, match=r"the list .*nowhere cannot be read: No such file"):
        reason("x", files=[str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="domains has 'a b', which is no domain"):
        reason("x", domains=["a b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "nothing is listed: give domains, files"), ({"domains": [" "]}, "domains has an empty entry")],
)
def test_options_that_list_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UrlBlocklistConfig(**options)
