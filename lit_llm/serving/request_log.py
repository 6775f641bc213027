"""The log of requests: a line of JSON for each."""

from __future__ import annotations

import json
import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.serving.record import Record

STANDARD_ERROR = "-"
"""The path that stands for standard error."""


class RequestLog:
    """Writes a line for each request that is over. It says nothing of the texts, unless records keep them.

    A file is opened anew once it was moved away, as logrotate does, and only its owner may read it.

    Args:
        path: the file, which is added to; `STANDARD_ERROR`: there.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        if path == STANDARD_ERROR:
            self._handler: logging.Handler = logging.StreamHandler(sys.stderr)
            return
        try:
            Path(path).touch(mode=0o600)
            self._handler = WatchedFileHandler(path, encoding="utf-8")
        except OSError as error:
            raise UserError(f"request_log: {path} cannot be written ({error.strerror})") from None

    def write(self, record: Record) -> None:
        """Write the line of a request."""
        line = json.dumps(line_of(record), separators=(",", ":"))
        self._handler.handle(logging.LogRecord("requests", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


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
    if record.written:
        paces = [pace for written in record.written if (pace := written.seconds_per_token) is not None]
        line |= {
            "model": record.model,
            "stream": record.stream,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "seconds_to_first_token": _rounded(record.seconds_to_first_token),
            "seconds_per_token": _rounded(sum(paces) / len(paces) if paces else None),
            "finish_reasons": [written.finish_reason for written in record.written],
        }
        if record.keeps_texts:
            line |= {"asked": record.asked, "texts": ["".join(written.text) for written in record.written]}
    return {name: value for name, value in line.items() if value is not None}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
