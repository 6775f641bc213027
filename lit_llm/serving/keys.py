"""The keys that requests bring: a file of names and limits that is read again when it changes, and their allowances."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lit_llm.config import UserError
from lit_llm.config.yaml_text import DoubtfulYaml, read_yaml
from lit_llm.serving.errors import ApiError

_LOG = logging.getLogger(__name__)
_MINUTE = 60.0
LIMITED = "rate_limit_exceeded"


@dataclass(frozen=True)
class Key:
    """A key, of which the digest alone is kept."""

    name: str
    sha256: str
    """In hexadecimal digits."""
    requests_per_minute: int | None = None
    """None allows any number."""
    tokens_per_minute: int | None = None
    """Tokens read and written; None allows any number."""

    @classmethod
    def of(cls, name: str, secret: str) -> Key:
        """Return the key without limits whose secret is given."""
        return cls(name, _digest(secret.encode()))


class Bucket:
    """An allowance that comes back evenly, by the monotonic clock: at most a minute's worth can be saved.

    Args:
        limit: of a minute.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._level, self._at = float(limit), time.monotonic()

    @property
    def level(self) -> float:
        """What there is now."""
        now = time.monotonic()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / _MINUTE)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Take so much, or give it back where it is below zero."""
        self._level = min(self.limit, self.level - amount)

    def resize(self, limit: int) -> None:
        """Change the limit; what was taken stays taken."""
        self._level, self.limit = max(0.0, self.level + limit - self.limit), limit

    def seconds_until(self, amount: float) -> float:
        """Return in how many seconds there will be so much."""
        return max(0.0, (amount - self.level) * _MINUTE / self.limit)


class Account:
    """What is left to a key, by its name: it outlives a change of the file."""

    def __init__(self, key: Key) -> None:
        self.name = key.name
        self._buckets: dict[str, Bucket | None] = {"requests": None, "tokens": None}
        self.limit(key)

    def limit(self, key: Key) -> None:
        """Take over the limits of a key."""
        for kind, limit in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute)):
            bucket = self._buckets[kind]
            if limit is None:
                self._buckets[kind] = None
            elif bucket is None:
                self._buckets[kind] = Bucket(limit)
            elif bucket.limit != limit:
                bucket.resize(limit)

    def take_request(self) -> None:
        """Take one request.

        Raises:
            ApiError: there is none now (429).
        """
        self._take("requests", 1, "send fewer")

    def take_tokens(self, tokens: int) -> None:
        """Take the tokens that a request may come to.

        Raises:
            ApiError: there are not so many now (429), or never (400).
        """
        bucket = self._buckets["tokens"]
        if bucket is not None and tokens > bucket.limit:
            raise ApiError(
                f"the prompt and the answers may have {tokens} tokens; the key {self.name!r} has {bucket.limit} a "
                "minute: shorten the prompt, or ask for less with max_tokens",
                param="max_tokens",
                code=LIMITED,
            )
        self._take("tokens", tokens, "shorten the prompt, or ask for less with max_tokens")

    def settle(self, reserved: int, used: int) -> None:
        """Give back the tokens that were taken for a request and not used."""
        bucket = self._buckets["tokens"]
        if bucket is not None and reserved:
            bucket.take(min(used, reserved) - reserved)

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers about what is left, and in how many seconds everything will be there again."""
        told = {}
        for kind, bucket in self._buckets.items():
            if bucket is not None:
                told[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
                told[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level + 1e-9)))
                told[f"x-ratelimit-reset-{kind}"] = f"{bucket.seconds_until(bucket.limit):.3f}s"
        return told

    def _take(self, kind: str, amount: int, remedy: str) -> None:
        bucket = self._buckets[kind]
        if bucket is None:
            return
        seconds = bucket.seconds_until(amount)
        if seconds > 1e-9:
            raise ApiError(
                f"the key {self.name!r} has {bucket.limit} {kind} a minute; this one needs {amount} of them, which are "
                f"there in {seconds:.1f} s: wait, or {remedy}",
                429,
                code=LIMITED,
                retry_after=seconds,
            )
        bucket.take(amount)


class Keys:
    """The keys that open a server. To be used in one event loop.

    Args:
        keys: those that open now.
        path: the file that they are read from again; None: they stay as they are.
    """

    def __init__(self, keys: Iterable[Key], path: Path | None = None) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """A function that is called after the keys have changed."""
        self._path, self._seen = path, None if path is None else _state(path)
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, Key] = {}
        self._take(keys)

    @classmethod
    def from_file(cls, path: str) -> Keys:
        """Read a file of keys.

        Raises:
            UserError: it cannot be read, or is not a file of keys.
        """
        return cls(read_keys(Path(path)), Path(path))

    def find(self, authorization: bytes) -> Key | None:
        """Return the key that a header brings, or None. The time that it takes tells nothing of the keys."""
        scheme, _, secret = authorization.partition(b" ")
        return self._keys.get(_digest(secret)) if scheme == b"Bearer" else None

    def account(self, key: Key) -> Account:
        """Return what is left to a key."""
        return self._accounts[key.name]

    def holds(self, key: Key) -> bool:
        """Whether a key opens still; its limits may have changed."""
        now = self._keys.get(key.sha256)
        return now is not None and now.name == key.name

    def refresh(self) -> None:
        """Read the file again if it has changed. One that is wrong is told in the log, and the keys stay."""
        if self._path is None or (state := _state(self._path)) == self._seen:
            return
        self._seen = state
        try:
            self._take(read_keys(self._path))
        except UserError as error:
            _LOG.error("%s; the keys stay as they were", error)
            return
        self.on_change()

    def _take(self, keys: Iterable[Key]) -> None:
        self._keys = {key.sha256: key for key in keys}
        for key in self._keys.values():
            if key.name in self._accounts:
                self._accounts[key.name].limit(key)
            else:
                self._accounts[key.name] = Account(key)


def read_keys(path: Path) -> list[Key]:
    """Read a file of keys: names, and for each `key` or `sha256` and its limits.

    Raises:
        UserError: it cannot be read, or is not such a file.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except DoubtfulYaml as error:
        raise UserError(f"keys_file: {path}, {error}") from None
    except yaml.YAMLError as error:  # what it says of the error quotes the file, which may hold secrets
        place = getattr(error, "problem_mark", None)
        line = "" if place is None else f", line {place.line + 1}"
        raise UserError(f"keys_file: {path}{line} is not YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"keys_file: {path} cannot be read ({error})") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"keys_file: {path} must have names of keys, each with key or sha256, as 'ann: {{key: ...}}'")
    keys = [_key(path, name, entry) for name, entry in content.items()]
    names: dict[str, str] = {}
    for key in keys:
        if key.sha256 in names:
            raise UserError(f"keys_file: {path} has the same key for {names[key.sha256]} and {key.name}")
        names[key.sha256] = key.name
    return keys


def _key(path: Path, name: Any, entry: Any) -> Key:
    where = f"keys_file: {path}: {name}"
    if not isinstance(name, str) or not name.isprintable() or len(name) > 64:
        raise UserError(f"{where} is no name; give up to 64 letters, in quotes where they are a number")
    known = [field.name for field in fields(Key)[1:]] + ["key"]
    unknown = sorted(str(option) for option in entry if option not in known) if isinstance(entry, dict) else None
    if unknown is None or unknown:
        raise UserError(f"{where} must have {', '.join(known)}" + (f"; not {', '.join(unknown)}" if unknown else ""))
    if ("key" in entry) == ("sha256" in entry):
        raise UserError(f"{where} must have either key or sha256, which is: printf %s KEY | sha256sum")
    limits = {option: value for option, value in entry.items() if option not in ("key", "sha256")}
    for option, value in limits.items():
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{where} has {option}: {value}; it must be a whole number from 1, or null")
    if "key" in entry:
        secret = entry["key"]
        if not isinstance(secret, str) or not secret or secret != secret.strip() or not secret.isprintable():
            raise UserError(f"{where} has no key; a key is some letters, digits and signs, in quotes")
        return Key(name, _digest(secret.encode()), **limits)
    digest = str(entry["sha256"]).lower()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise UserError(f"{where} has a sha256 that is not 64 hexadecimal digits, in quotes")
    return Key(name, digest, **limits)


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does, or None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
