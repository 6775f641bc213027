"""Documents dropped by their addresses: domains, beginnings of addresses, words in them."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from lit_llm.config import UserError
from lit_llm.config.text_filters import UrlBlocklistConfig
from lit_llm.data.cleaning.word_lists import ADULT_IN_HOSTS, ADULT_WORDS, lines_of
from lit_llm.data.sources.document import SourceDocument

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:(?=//)", re.IGNORECASE)
_HOST = re.compile(r"[^\s/?#@:|^,;=()<>\[\]\"'\\]+")
_ADBLOCK = re.compile(r"\|\|([^\s/^$*|]+)\^(?:\$.*)?")
# Names of this machine, with which every hosts file begins
_LOCAL = {"localhost", "localhost.localdomain", "local", "broadcasthost", "0.0.0.0"}


def host_and_path(url: str) -> tuple[str, str]:
    """The host of an address, as domains are compared, and the path after it; both empty where there is no host."""
    try:
        parts = urlsplit(url.strip() if _SCHEME.match(url.strip()) else "//" + url.strip().lstrip("/"))
        return plain_host(parts.hostname or ""), parts.path
    except ValueError:
        return "", ""


def plain_host(host: str) -> str:
    """A host in lower case, in ASCII where it is an international name, and without www. and the last dot."""
    host = host.lower().strip(".").removeprefix("www.")
    if not host.isascii():
        try:
            return host.encode("idna").decode()
        except UnicodeError:
            return host
    return host


def domains_of(host: str) -> Iterator[str]:
    """The host and the domains that it is below of: a.b.example.com, b.example.com, example.com, com.

    Those of more than 127 parts, which no domain has, are left out.
    """
    parts = host.split(".")[-127:]
    return (".".join(parts[start:]) for start in range(len(parts)))


@dataclass
class Blocklist:
    """Domains, and beginnings of paths by domain."""

    domains: set[str] = field(default_factory=set)
    paths: dict[str, list[str]] = field(default_factory=dict)

    def add(self, entry: str) -> bool:
        """Enters a domain or an address; whether it is one."""
        host, path = host_and_path(entry)
        if not _HOST.fullmatch(host):
            return False
        if path.strip("/"):
            self.paths.setdefault(host, []).append(path.rstrip("/"))
        else:
            self.domains.add(host)
        return True

    def add_line(self, line: str) -> bool:
        """Enters the hosts of a line of a hosts file, or the domain or address of a line; whether it is one."""
        if rule := _ADBLOCK.fullmatch(line):
            return self.add(rule[1])
        first, *hosts = line.split()
        if not hosts:
            return self.add(first)
        return _is_ip(first) and all(host in _LOCAL or host.startswith("ip6-") or self.add(host) for host in hosts)

    def has(self, host: str, path: str) -> str | None:
        """What of an address is listed, in words; None where nothing is."""
        for domain in domains_of(host):
            if domain in self.domains:
                return "domain on the list"
            if any(path == start or path.startswith(start + "/") for start in self.paths.get(domain, ())):
                return "address on the list"
        return None


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class UrlBlocklist:
    """Drops documents whose addresses are listed."""

    def __init__(self, options: UrlBlocklistConfig) -> None:
        """
        Raises:
            UserError: a file is missing or empty, or an entry is no domain.
        """
        self.counts: Counter[str] = Counter()
        self._list = Blocklist()
        for entry in options.domains:
            if not self._list.add(entry):
                raise UserError(f"domains has {entry!r}, which is no domain such as example.com")
        for path in options.files:
            for number, line in lines_of(path):
                if not self._list.add_line(line):
                    raise UserError(
                        f"line {number} of {path} is neither a domain, an address nor a line of a hosts file"
                    )
        words = {word.lower() for word in options.words} | (ADULT_WORDS if options.adult else set())
        self._words = frozenset(words)
        self._substrings = tuple(substring.lower() for substring in options.substrings)
        self._in_hosts = ADULT_IN_HOSTS if options.adult else ()

    def __call__(self, document: SourceDocument) -> str | None:
        """Why the document is dropped, or None."""
        if not document.url:
            self.counts["documents without an address"] += 1
            return None
        host, path = host_and_path(document.url)
        if reason := self._list.has(host, path):
            return reason
        address = unquote(document.url).lower()
        if not self._words.isdisjoint(re.split(r"[\W_]+", address)):
            return "a listed word in the address"
        listed = any(part in address for part in self._substrings) or any(part in host for part in self._in_hosts)
        return "a listed string in the address" if listed else None
