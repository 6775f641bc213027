"""Options of the steps that clean text, and of those that look for languages, addresses, words and personal data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.bounds import check_at_least, check_no_blank, check_shares
from lit_llm.config.errors import UserError


@dataclass
class UnicodeConfig:
    """Repair and normalize characters. A text that is empty afterwards is dropped."""

    mojibake: bool = True
    """Repair text that was decoded wrongly, as in "schÃ¶n", and remove escape sequences of terminals (ftfy; extra
    `data`). Of what ftfy does by default, this leaves out what changes text that is right: straight quotation marks for
    curly ones, narrow characters for full-width ones, letters for ligatures, and < for &lt;."""
    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    """NFC composes accents and changes nothing that one can see. NFKC also replaces what looks different, as x² by x2
    and ﬁ by fi, which harms formulas and code. More than 30 combining marks in a row are cut to 30 in both."""
    control_characters: bool = True
    """Remove control characters but tabs and line ends, marks of byte order, and Unicode's noncharacters and tags."""
    zero_width: bool = True
    """Remove soft hyphens and characters without width. Joiners stay after letters beyond U+058F, as Persian, Indic
    scripts and emoji need them, and zero-width spaces after letters of South-East Asia, where they part words."""
    bidi_controls: bool = True
    """Remove marks of the direction of writing, which can make code look other than it reads."""
    line_ends: bool = True
    """Make every line end a line feed: of Windows, of old Macs, form feeds, Unicode's separators."""
    trailing_spaces: bool = True
    """Remove spaces at the ends of lines, and empty lines at both ends of the text."""
    max_blank_lines: int | None = 2
    """Empty lines in a row; null leaves as many as there are."""
    max_replacement_characters: float | None = 0.01
    """Drop a text with a larger share of U+FFFD, what undecodable bytes were read as; null keeps it."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "max_blank_lines")
        check_shares(self, "max_replacement_characters")


@dataclass
class LanguageConfig:
    """Name the language of each document, with a score, and drop those of others.

    Measured on messages of programs in 30 languages (gettext catalogues, 60 texts of each length and language), shares
    that were named right: py3langid 0.81 of 20 characters, 0.97 of 50, 0.994 of 100, 0.999 of 200; the small fastText
    model lid.176.ftz 0.82, 0.96, 0.98, 0.99; resiliparse 0.00, 0.61, 0.75, 0.91, and 0.97 of 2000. On paragraphs of the
    Debian handbook in 15 languages: 0.95, 0.93, 0.63 of 50 characters and 0.99, 0.96, 0.97 of 1000. Source code in
    English words is English to all three, and so is some of a page's menu; of random characters py3langid says that
    they are no language.
    """

    keep: list[str] = field(default_factory=lambda: ["en"])
    """ISO 639-1 codes of the languages to keep; an empty list keeps every one."""
    detector: Literal["py3langid", "resiliparse", "fasttext"] = "py3langid"
    """py3langid (BSD) is the most accurate of the two that the extra `data` installs. resiliparse (Apache 2.0) is some
    50 times faster, and fit for texts of 200 characters and more. fasttext reads a model file of yours."""
    model: str | None = None
    """Model file of fastText, as lid.176.bin (licensed CC BY-SA 3.0) or GlotLID; its labels are the codes."""
    min_score: float | None = None
    """Least score. null: 0.65, as FineWeb takes it, for the two that give a probability, and 0.4 for resiliparse, whose
    score is 1 - distance / 1200."""
    max_characters: int = 1000
    """A longer text is judged by four pieces of it, from its beginning to its end, of as many characters together."""
    min_share: float = 0.0
    """Least share of the letters that stand in lines of the document's own language, as half of a page may be in
    another one. Of a long text, 32 lines from its beginning to its end are looked at. 0: the text is judged as a whole,
    as FineWeb does."""
    trust_source: bool = False
    """Believe the language that a source gives, where it gives one; its score is then 1."""
    keep_unknown: bool = False
    """Keep texts in which no language is found, or one with too low a score; they then have no language."""

    def __post_init__(self) -> None:
        check_shares(self, "min_score", "min_share")
        check_at_least(self, 20, "max_characters")
        if (self.detector == "fasttext") != (self.model is not None):
            raise UserError("detector: fasttext needs a model: a file of fastText; other detectors have none")


@dataclass
class UrlBlocklistConfig:
    """Drop documents by their addresses. A document without one passes."""

    domains: list[str] = field(default_factory=list)
    """Domains such as example.com, which stand for all below them, as www.example.com."""
    files: list[str] = field(default_factory=list)
    """Files of domains or addresses, one a line, # before remarks; hosts files, rules ||example.com^ and .gz are read
    too. An address with a path, example.com/shop, stands for all that begin so. The lists of the University of Toulouse
    (UT1), which FineWeb takes, are such files. A million domains take some 100 MB of memory in each process."""
    words: list[str] = field(default_factory=list)
    """Words of an address, which its punctuation parts, in lower case."""
    substrings: list[str] = field(default_factory=list)
    """What may stand anywhere in an address, in lower case."""
    adult: bool = False
    """Also look for a few words by which pornography names itself in English addresses."""

    def __post_init__(self) -> None:
        if not (self.domains or self.files or self.words or self.substrings or self.adult):
            raise UserError("nothing is listed: give domains, files, words, substrings or adult: true")
        check_no_blank(self, "domains", "files", "words", "substrings")


@dataclass
class ToxicityConfig:
    """Look for listed words, and drop documents with many of them.

    A list of words knows no meaning. It misses insults in common words, irony, threats and new or veiled spellings; and
    it finds quotations, reclaimed words, medicine, education and the speech of the very groups that slurs are about,
    whose texts C4's list removed more often than others' (Dodge et al. 2021, arXiv 2104.08758). What passes is not
    harmless, and a share of dropped documents is no measure of toxicity.
    """

    built_in: bool = True
    """Use the list that comes with this program: some 60 slurs and swear words of English."""
    files: list[str] = field(default_factory=list)
    """Files of words or phrases, one a line, # before remarks. A file named by a language, as de.txt, is for documents
    in it, and any other one for all documents."""
    action: Literal["drop", "score"] = "drop"
    """drop: drop what passes both bounds. score: only write `toxic_words` and `toxic_share` into the metadata."""
    min_words: int = 2
    """Fewest listed words in a document that is dropped. With 1 and a max_share of 0 it is C4's rule."""
    max_share: float = 0.005
    """Share of listed words among all words above which a document is dropped."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "min_words")
        check_shares(self, "max_share")
        check_no_blank(self, "files")
        if not (self.built_in or self.files):
            raise UserError("no words are listed: give files, or built_in: true")


@dataclass
class PiiConfig:
    """Put names in the place of addresses and numbers by which a person can be found.

    The rules look at form alone, and rather miss than take something else: names, postal addresses, accounts of social
    networks and numbers written in words stay. Of the 72 lines of the test that is written for it, 30 with something to
    mask and 42 that look alike, all are as they should be; datatrove's formatter, which knows no telephone numbers, has
    13 of the 18 others right, and masks something in 15 of those that look alike. In 149 MB of licences, manuals and
    sources of packages the rules find 3,254 e-mail addresses, 146 IP addresses and 49 telephone numbers; among forty of
    each that were looked at, no e-mail address was wrong, eleven IP addresses were versions, identifiers or numbers of
    drawings, and three telephone numbers were clauses of laws, which are now left alone.
    """

    email: bool = True
    """Mask e-mail addresses as EMAIL_ADDRESS, but for those of domains reserved for examples, as example.com, and what
    is followed by a colon and a path, as in git@host.org:path."""
    ip: bool = True
    """Mask IPv4 and IPv6 addresses as IP_ADDRESS. Four numbers below 30 are taken for a version."""
    only_public_ip: bool = True
    """Leave addresses that are no machine's in the internet: of private networks, loopback, documentation."""
    phone: bool = True
    """Mask telephone numbers as PHONE_NUMBER: with + and the code of a country; in the forms of North America,
    (212) 555-0134 and 212-555-0134; others only after a word such as tel. or phone."""
    credit_card: bool = False
    """Mask numbers of 13 to 16 digits as CREDIT_CARD that begin and end as payment cards do (Luhn's check)."""
    iban: bool = False
    """Mask bank accounts as IBAN that are as long as their country has them, and whose check digits fit (ISO 13616)."""
    style: Literal["plain", "brackets", "angles"] = "plain"
    """How masks are written: EMAIL_ADDRESS, [EMAIL_ADDRESS] or <EMAIL_ADDRESS>."""
    max_masks: int | None = None
    """Drop a document with more of them, as a directory of people has; null keeps it."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "max_masks")
        if not (self.email or self.ip or self.phone or self.credit_card or self.iban):
            raise UserError("nothing is to be masked: set email, ip, phone, credit_card or iban to true")
