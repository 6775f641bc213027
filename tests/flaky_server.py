"""An HTTP server of a folder that reads ranges, counts what it is asked for, and fails when told to."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FlakyServer(ThreadingHTTPServer):
    """Serves `folder`.

    Attributes:
        faults: what happens to the next requests for shards: "reset", "503", "403", "truncated", "stall" or "ok".
        always: what happens to those after them.
        asked: paths and ranges of the requests for shards that were answered.
        reads_ranges: whether a range is obeyed.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: list[str] = []
        self.always = "ok"
        self.asked: list[tuple[str, str]] = []
        self.reads_ranges = True
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a connection that was cut off is what a test wants."""


class _Handler(BaseHTTPRequestHandler):
    server: FlakyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        is_shard = self.path.endswith(".npy")
        server = self.server
        fault = (server.faults.pop(0) if server.faults else server.always) if is_shard else "ok"
        path = server.folder / self.path.lstrip("/")
        if fault in ("503", "403") or not path.is_file():
            self.send_response(int(fault) if path.is_file() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if fault == "stall":
            server.stopped.wait(20)
            self.close_connection = True
            return
        data, asked = path.read_bytes(), self.headers.get("Range", "")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked) if server.reads_ranges else None
        if found:
            data = data[int(found[1]) : int(found[2]) + 1]
        if is_shard:
            server.asked.append((self.path, asked))
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "truncated" else data)
        if fault == "truncated":
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[FlakyServer]:
    """A server of `folder` while the block runs."""
    server = FlakyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
