"""Asking an endpoint with OpenAI's interface: many requests at once, each tried again where that may help."""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from lit_llm.config import EndpointConfig, UserError
from lit_llm.config.json_text import parse_json
from lit_llm.config.notices import with_pictures

T = TypeVar("T")

MOST_BYTES = 8 * 2**20
"""Most bytes of a reply."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each later pause is twice as long, up to a minute."""
LONGEST_PAUSE = 300.0
"""Seconds that an endpoint may have a request wait (Retry-After)."""
_PASSING = frozenset({408, 409, 425, 429})
_SHOWN = 200


class Refused(Exception):
    """An endpoint refuses a request, and would again; the others may be all right."""


class Endpoint:
    """An endpoint and how it is asked.

    Args:
        address: as http://127.0.0.1:8000; without a path, /v1 is meant.
        model: what it calls the model; None: the only one that it lists.
        config: key, patience and number of requests at once.
        option: what gave the address, for errors.

    Attributes:
        address: the address with its path.
        model: the model's name; `find_model` fills it in where it is None.

    Raises:
        UserError: the key cannot be read.
    """

    def __init__(self, address: str, model: str | None, config: EndpointConfig, option: str) -> None:
        parts = urlsplit(address)
        self.address = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))
        self.model = model
        self.config = config
        self.option = option
        self._key = _key(config)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._stopped = threading.Event()

    def find_model(self) -> str:
        """The model's name; where none is given, the only one that the endpoint lists.

        Raises:
            UserError: it lists several or none, or cannot be asked.
        """
        if self.model is None:
            listed = self._ask("/models", None).get("data")
            entries = listed if isinstance(listed, list) else []
            names = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
            if len(names) != 1:
                told = f"several models: {_line(', '.join(names))}" if names else "no model"
                raise UserError(f"{self.option} {self.address} lists {told}; say which one is meant")
            self.model = names[0]
        return self.model

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for an answer to a conversation; tries again where that may help.

        Args:
            body: of the request, without the model.

        Returns:
            The object that came back; `content_of` and `tokens_of` read it.

        Raises:
            Refused: this request is refused.
            UserError: the key is wrong, there is no such model or address, or there was no answer after all attempts.
        """
        return self._ask("/chat/completions", {"model": self.find_model(), **body})

    def each(self, items: Sequence[T], work: Callable[[T], Any]) -> Iterator[tuple[int, Any]]:
        """Do some work on every item, `at_once` of them at the same time.

        Args:
            items: what is worked on.
            work: asks this endpoint, and may raise.

        Yields:
            The number of each item and what came of it, as it comes.

        Raises:
            UserError: that of the first work that raised, once what had come by then has been yielded.
        """
        self.find_model()
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        for number in range(len(items)):
            todo.put(number)

        def run() -> None:
            while not self._stopped.is_set():
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((number, work(items[number]), None))
                except BaseException as error:  # the thread that waits raises it
                    self._stopped.set()
                    done.put((number, None, error))

        self._stopped.clear()
        # daemons, as Ctrl-C should not wait for a reply that never comes
        for _ in range(min(self.config.at_once, len(items))):
            threading.Thread(target=run, daemon=True).start()
        try:
            yield from _results(done, len(items))
        finally:
            self._stopped.set()

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        began = time.monotonic()
        last = ""
        for attempt in range(self.config.attempts):
            try:
                return self._try(path, body)
            except _MayPass as error:
                last = str(error)
                pause = error.pause
                if pause is None:
                    pause = min(FIRST_PAUSE * 2.0**attempt, 60.0) * random.uniform(0.75, 1.25)
            if attempt + 1 < self.config.attempts and self._stopped.wait(pause):
                break
        raise UserError(
            f"{self.option} {self.address}: no answer after {self.config.attempts} attempts in "
            f"{time.monotonic() - began:.0f} s ({last})"
        )

    def _try(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "lit_llm"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        until = time.monotonic() + self.config.timeout
        try:
            with self._opener.open(request, timeout=self.config.timeout) as response:
                text = _read(response, until)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, until) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise _MayPass(f"nothing came within {self.config.timeout:g} s") from None
            raise _MayPass(_line(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)) from None
        try:
            value = parse_json(text)
        except ValueError:
            raise _MayPass(f"its reply is not JSON: {_line(text.decode(errors='replace'))!r}") from None
        if not isinstance(value, dict):
            raise _MayPass(f"its reply is not an object: {_line(text.decode(errors='replace'))!r}")
        return value

    def _refusal(self, error: urllib.error.HTTPError, until: float) -> Exception:
        with error:
            told = _told(error, until)
        status = f"status {error.code}" + (f", {told}" if told else "")
        if error.code in (401, 403):
            key = "the key was refused" if self._key else "it wants a key"
            return UserError(
                f"{self.option} {self.address}: {key} ({status}); give api_key_file, or set {self.config.key_variable}"
            )
        if error.code in _PASSING or error.code >= 500:
            return _MayPass(status, _retry_after(error.headers.get("Retry-After")))
        if error.code == 404 or 300 <= error.code < 400:
            return UserError(f"{self.option} {self.address}: {status}; correct the address or the model's name")
        return Refused(status)


class _MayPass(Exception):
    """A failure after which it is worth trying again, after a pause of some seconds; None: the usual one."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirection, which would take the key to another address."""

    def redirect_request(self, *args: Any) -> None:
        """See the class."""


def content_of(reply: Mapping[str, Any]) -> str:
    """The words of a reply.

    Raises:
        Refused: it has none, as it is not in OpenAI's form.
    """
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise Refused("its reply has no choices[0].message.content") from None
    if not isinstance(content, str):
        raise Refused("its reply has no text")
    return content


def tokens_of(reply: Mapping[str, Any]) -> tuple[int, int]:
    """How many tokens a reply says that it has read and written; 0 where it does not say."""
    usage = reply.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return read, written


def _results(done: queue.SimpleQueue[tuple[int, Any, BaseException | None]], count: int) -> Iterator[tuple[int, Any]]:
    for _ in range(count):
        number, result, error = done.get()
        if error is None:
            yield number, result
            continue
        while not done.empty():  # what has come is not lost
            number, result, other = done.get()
            if other is None:
                yield number, result
        raise error


def _key(config: EndpointConfig) -> str | None:
    source = config.api_key_file or config.key_variable
    try:
        key = (
            os.environ.get(config.key_variable)
            if config.api_key_file is None
            else Path(config.api_key_file).read_text(encoding="utf-8").strip()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: the key cannot be read ({error})") from None
    if key is not None and (not key or key != key.strip() or not key.isprintable() or not key.isascii()):
        raise UserError(f"{source} has no key; a key is some letters, digits and signs on one line")
    return key


def _read(response: Any, until: float) -> bytes:
    """The body of a response.

    Raises:
        _MayPass: it is too long, or takes too long.
    """
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise _MayPass(f"its reply is longer than {MOST_BYTES:,} bytes")
        if time.monotonic() > until:
            raise _MayPass("its reply came too slowly")
    return b"".join(parts)


def _told(error: urllib.error.HTTPError, until: float) -> str:
    """What an endpoint says about an error, in a line."""
    try:
        text = _read(error, until)
    except (OSError, http.client.HTTPException, _MayPass):
        return ""
    try:
        value = parse_json(text)
        message = value["error"]
        return _line(str(message["message"] if isinstance(message, dict) else message))
    except (ValueError, KeyError, TypeError):
        return _line(text.decode(errors="replace"))


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from the header's seconds or date; None where it has neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return min(max(seconds, 0.0), LONGEST_PAUSE) if seconds == seconds else None


def _line(text: str) -> str:
    shown = " ".join(with_pictures(text).split())
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
