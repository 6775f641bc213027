"""Addresses and numbers by which a person can be found, with names in their place."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

from lit_llm.config.text_filters import PiiConfig
from lit_llm.data.cleaning.bank_accounts import IBAN_LENGTHS, is_card, is_iban
from lit_llm.data.sources.document import SourceDocument

Finder = Callable[[str, str], tuple[str, int]]
"""A text and a mask, to the text with the mask in the place of what was found, and how often."""

_L = "A-Za-z0-9À-ɏ"  # letters of Latin scripts: those of others may stand before an address without a space
_EMAIL = re.compile(
    rf"(?<![{_L}_%+])[{_L}_](?:[{_L}_.%+'-]{{0,62}}[{_L}_+-])?@"
    rf"((?>(?:[{_L}](?:[{_L}-]{{0,61}}[{_L}])?\.){{1,8}}([A-Za-z]{{2,24}})))"
    rf"(?![{_L}_@(-]|\.[{_L}]|:[\w~/.])"
)
# The end of a file's name, or an attribute after Python's operator @
_NO_TOP_LEVEL = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "bmp", "ico", "css", "js", "mjs", "ts", "tsx", "json", "html", "htm"}
    | {"xml", "txt", "pdf", "gz", "shape", "dtype", "size", "ndim", "data", "grad", "values", "inv", "example", "test"}
    | {"invalid", "localhost", "local"}
)
_EXAMPLES = re.compile(r"(?:.*\.)?example\.(?:com|org|net|edu)", re.IGNORECASE)

_IPV4 = re.compile(r"(?:(?<![\w./=~<>!-])|(?<=//)|(?<=[^=~<>!]=))(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|release|rev|revision|build|firmware|section|chapter|python|oid)[.:]?\s{0,2})\Z", re.I
)
_IPV6 = re.compile(
    r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?![\w:]|\.\d)"
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_LEAST_OCTET = 30

_INTERNATIONAL = re.compile(r"(?<![\w+.])\+[1-9](?:[ .()/\u00a0\u2010-\u2013-]{0,2}\d){6,14}(?![\w]|[.,]\d)")
_NORTH_AMERICAN = re.compile(
    r"(?<![\w.+/=-])(?:1[ .-])?(?:\([2-9]\d\d\) ?[2-9]\d\d[-.]|[2-9]\d\d(?:-[2-9]\d\d-|\.[2-9]\d\d\.))\d{4}"
    r"(?![\w/-]|[.,]\d)"
)
_AFTER_A_WORD = re.compile(
    r"\b((?:tel(?:ephone|efon|éfono)?|tél(?:éphone)?|phone|fax|mobile|mobil|cell)(?: (?:number|no))?[.:]{0,2} {0,2})"
    r"(?=[(0]|[1-9]\d{0,4}[ /-])(\(?\d(?:[ .()/-]{0,2}\d){6,13})(?![\w]|[.,]\d)",
    re.IGNORECASE,
)
# ITU-T E.164: codes of countries and regions of one to three digits, by their beginnings
_COUNTRY = re.compile(
    r"1[2-9]|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|21[1-3689]|2[2-6]\d|29[0178]|35\d|37\d|38[0-35-9]"
    r"|42[013]|50\d|59\d|6[789]\d|80[08]|85[0-6]|87\d|88\d|96\d|97\d|99[2-68]"
)
_NORTH_AMERICA = re.compile(r"1[2-9]\d\d[2-9]\d{6}")

_CARD = re.compile(r"(?<![\w.+/-])\d(?:[ -]?\d){12,15}(?![\w/-]|[.,]\d)")
_IBANS = re.compile(r"(?<![\w-])([A-Z]{2})\d\d(?=[ A-Z0-9])")


def masked(text: str, pattern: re.Pattern[str], mask: str, accepts: Callable[[re.Match[str]], bool]) -> tuple[str, int]:
    """The text with the mask for each match that is accepted, and how many these are."""
    number = 0

    def put(found: re.Match[str]) -> str:
        nonlocal number
        if not accepts(found):
            return found.group()
        number += 1
        return mask

    return pattern.sub(put, text), number


def mask_emails(text: str, mask: str) -> tuple[str, int]:
    """E-mail addresses masked, and their number."""
    return masked(text, _EMAIL, mask, _is_email) if "@" in text else (text, 0)


def _is_email(found: re.Match[str]) -> bool:
    return found[2].lower() not in _NO_TOP_LEVEL and not _EXAMPLES.fullmatch(found[1])


def mask_ips(text: str, mask: str, *, only_public: bool) -> tuple[str, int]:
    """IPv4 and IPv6 addresses masked, and their number."""
    text, first = masked(
        text, _IPV4, mask, lambda found: is_ipv4(found.group(), before(found), only_public=only_public)
    )
    if text.count(":") < 2:
        return text, first
    text, second = masked(text, _IPV6, mask, lambda found: is_ipv6(found.group(), only_public=only_public))
    return text, first + second


def before(found: re.Match[str]) -> str:
    """Some characters before a match."""
    return found.string[max(0, found.start() - 12) : found.start()]


def is_ipv4(candidate: str, context: str, *, only_public: bool) -> bool:
    """Whether four numbers are an address and no version, given what stands before them."""
    try:
        address = ipaddress.IPv4Address(candidate)
    except ValueError:
        return False
    if only_public and not address.is_global:
        return False
    is_small = max(address.packed) < _LEAST_OCTET
    return not _VERSION.search(context) and not (is_small and only_public)


def is_ipv6(candidate: str, *, only_public: bool) -> bool:
    """Whether groups between colons are an address, and neither a time, nor the number of a network card, nor a name in
    C++."""
    try:
        address = ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    if only_public:
        return address in _GLOBAL_UNICAST and address.is_global and len(candidate.partition(":")[0]) == 4
    groups = [group for group in candidate.split(":") if group]
    is_hardware = all(len(group) == 2 for group in groups) and len(groups) == 8
    return any(map(str.isdigit, candidate)) and not is_hardware


def mask_phones(text: str, mask: str) -> tuple[str, int]:
    """Telephone numbers masked, and their number."""
    text, first = masked(text, _INTERNATIONAL, mask, lambda found: is_international(found.group()))
    text, second = masked(text, _NORTH_AMERICAN, mask, lambda found: True)
    text, third = _AFTER_A_WORD.subn(lambda found: found[1] + mask, text)
    return text, first + second + third


def is_international(candidate: str) -> bool:
    """Whether a number with + has the code of a country and as many digits as telephone numbers have."""
    digits = re.sub(r"\D", "", candidate)
    if candidate.count("(") != candidate.count(")") or not _COUNTRY.match(digits):
        return False
    if digits[0] == "1":
        return _NORTH_AMERICA.fullmatch(digits) is not None
    return len(digits) >= (10 if digits == candidate[1:] else 8)


def mask_cards(text: str, mask: str) -> tuple[str, int]:
    """Numbers of payment cards masked, and how many these are."""
    return masked(text, _CARD, mask, lambda found: is_card(re.sub(r"\D", "", found.group())))


def mask_ibans(text: str, mask: str) -> tuple[str, int]:
    """Bank accounts masked, and their number."""
    parts, position, number = [], 0, 0
    for found in _IBANS.finditer(text):
        if found.start() < position or found[1] not in IBAN_LENGTHS:
            continue
        rest = re.compile(rf"(?: ?[A-Z0-9]){{{IBAN_LENGTHS[found[1]] - 4}}}(?![\w])").match(text, found.end())
        if rest and is_iban((found.group() + rest.group()).replace(" ", "")):
            parts += [text[position : found.start()], mask]
            position = rest.end()
            number += 1
    return "".join([*parts, text[position:]]), number


class Pii:
    """Masks e-mail and IP addresses, telephone numbers, payment cards and bank accounts."""

    def __init__(self, options: PiiConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._max_masks = options.max_masks
        opening, closing = {"plain": ("", ""), "brackets": ("[", "]"), "angles": ("<", ">")}[options.style]

        def ips(text: str, mask: str) -> tuple[str, int]:
            return mask_ips(text, mask, only_public=options.only_public_ip)

        kinds: list[tuple[bool, str, str, Finder]] = [
            (options.email, "EMAIL_ADDRESS", "e-mail addresses masked", mask_emails),
            (options.iban, "IBAN", "bank accounts masked", mask_ibans),
            (options.credit_card, "CREDIT_CARD", "payment cards masked", mask_cards),
            (options.ip, "IP_ADDRESS", "IP addresses masked", ips),
            (options.phone, "PHONE_NUMBER", "telephone numbers masked", mask_phones),
        ]
        self._kinds = [(opening + name + closing, count, find) for wanted, name, count, find in kinds if wanted]

    def __call__(self, document: SourceDocument) -> str | None:
        """Masks; why the document is dropped, or None."""
        total = 0
        for mask, count, find in self._kinds:
            document.text, number = find(document.text, mask)
            total += number
            if number:
                self.counts[count] += number
        if total:
            self.counts["documents with a mask"] += 1
        too_many = self._max_masks is not None and total > self._max_masks
        return f"more than {self._max_masks} masks of personal data" if too_many else None
