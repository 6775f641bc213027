"""The log of requests: a line of JSON for each."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, TextIO

from lit_llm.config import UserError
from lit_llm.serving.record import Record

_LOG = logging.getLogger(__name__)

STANDARD_ERROR = "-"
"""The path that stands for standard error."""


class RequestLog:
    """Writes a line for each request that is over. It says nothing of the texts, unless records keep them.

    A file is opened anew once it was moved away, as logrotate does, and only its owner may read it. Where it can no
    longer be written, as on a full disk, requests are answered all the same: it is told once, and again when it can be.

    Args:
        path: the file, which is added to; `STANDARD_ERROR`: there.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path, self._lost = path, 0
        if path == STANDARD_ERROR:
            self._handler: logging.Handler = _Lines(sys.stderr)
            return
        try:
            Path(path).touch(mode=0o600)
            self._handler = _FileOfLines(path, encoding="utf-8")
        except OSError as error:
            raise UserError(f"request_log: {path} cannot be written ({error.strerror})") from None

    def write(self, record: Record) -> None:
        """Write the line of a request."""
        line = json.dumps(line_of(record), separators=(",", ":"))
        try:
            self._handler.handle(logging.LogRecord("requests", logging.INFO, "", 0, line, None, None))
        except OSError as error:
            if not self._lost:
                _LOG.error(
                    "request_log: %s cannot be written (%s); requests are not logged", self._path, error.strerror
                )
            self._lost += 1
            return
        if self._lost:
            _LOG.warning("request_log: %s is written again; %d requests are missing", self._path, self._lost)
            self._lost = 0

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _Lines(logging.StreamHandler[TextIO]):
    """Raises what goes wrong, of which the handlers of `logging` print a traceback each time."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class _FileOfLines(WatchedFileHandler):
    """Does the same with a file, which is opened anew after an error: what its buffer holds would fail each time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            stream, self.stream = self.stream, None
            if stream is not None:
                with suppress(OSError):
                    stream.close()
            raise

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def line_of(record: Record) -> dict[str, Any]:
    """Return what is logged of a request; durations are in seconds, and what it does not have is left out."""
    line: dict[str, Any] = {
        "time": record.at.isoformat(timespec="milliseconds"),
        "id": record.id,
        "key": None if record.account is None else record.account.name,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "code": record.code,
        "seconds": round(record.seconds, 6),
    }
    if record.prompt_tokens:
        line |= {"model": record.model, "prompt_tokens": record.prompt_tokens}
        if record.keeps_texts:
            line["asked"] = record.asked
    if record.written:  # a request for vectors writes nothing
        paces = [pace for written in record.written if (pace := written.seconds_per_token) is not None]
        line |= {
            "stream": record.stream,
            "completion_tokens": record.completion_tokens,
            "seconds_to_first_token": _rounded(record.seconds_to_first_token),
            "seconds_per_token": _rounded(sum(paces) / len(paces) if paces else None),
            "finish_reasons": [written.finish_reason for written in record.written],
        }
        if record.keeps_texts:
            line["texts"] = ["".join(written.text) for written in record.written]
    return {name: value for name, value in line.items() if value is not None}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
