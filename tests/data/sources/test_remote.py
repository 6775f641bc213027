import functools
import gzip
import http.server
import json
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.sources.archives import http as response
from data.sources.archives import page, record
from data.sources.reading import read_all, reasons

from lit_llm.config import UserError
from lit_llm.data.sources import remote


def fill(folder):
    """One file of each kind."""
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("one<|endoftext|>two")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "row"}).encode()))
    pq.write_table(pa.table({"text": ["column", "two"]}), folder / "c.parquet")
    (folder / "d.html").write_text("<p>page")
    damaged = [record(number, response(page(number))) for number in range(3)]
    damaged[1] = b"junk" * 9
    (folder / "e.warc.gz").write_bytes(b"".join(gzip.compress(each) for each in damaged))
    (folder / "f.json").write_text(json.dumps([{"text": "item"}]))
    (folder / "g.py").write_text("# SPDX-License-Identifier: MIT\n")
    (folder / ".hidden").write_text("x")


@pytest.fixture
def in_memory(tmp_path):
    """A folder, and the same files behind memory://."""
    fill(tmp_path)
    memory = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/corpus/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    yield tmp_path, "memory://corpus"
    memory.rm("/corpus", recursive=True)


def test_remote_files_are_read_as_local_ones(in_memory):
    folder, address = in_memory
    local, remote_files = read_all(folder, name="x"), read_all(address, name="x")
    assert remote_files == local and len(local[0]) == 10 and len(local[1]) == 1
    for pattern in ("*.jsonl.gz", "sub/*.txt", "**/*.txt"):
        found = read_all(f"{address}/{pattern}", name="x")
        assert found == read_all(folder / pattern, name="x") and found[0]
    one, _ = read_all(f"{address}/sub/a.txt", name="x")
    assert [(each.id, each.text) for each in one] == [("a.txt", "one"), ("a.txt:1", "two")]
    assert read_all(f"file://{folder}", name="x") == local


def test_what_cannot_be_reached_is_told_in_a_line(in_memory):
    address = in_memory[1]
    for path, message in (
        (f"{address}/nosuch", "no such file or folder"),
        (f"{address}/*.nosuch", "no file found there"),
        ("nosuch://bucket/x", "cannot be reached .*nosuch"),
        ("http://127.0.0.1:9/x.txt", "cannot be reached|no such file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read_all(path)
        assert "\n" not in str(error.value)


class _Flaky:
    """A file whose connection is lost at every so many reads."""

    reads = 0

    def __init__(self, file, every):
        self._file, self._every = file, every

    def read(self, size):
        type(self).reads += 1
        if self.reads % self._every == 0:
            raise ConnectionResetError(104, "connection reset")
        return self._file.read(size)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("every", [2, 1])
def test_a_lost_connection_is_retried_and_then_told(in_memory, monkeypatch, every):
    kind = fsspec.get_filesystem_class("memory")
    whole = kind.open
    monkeypatch.setattr(kind, "open", lambda self, *args, **more: _Flaky(whole(self, *args, **more), every))
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    folder, address = in_memory
    if every == 2:
        assert read_all(address, name="x") == read_all(folder, name="x")
        assert _Flaky.reads > 20
        return
    for name in ("sub/a.txt", "e.warc.gz", "c.parquet", "b.jsonl.gz", "d.html"):
        with pytest.raises(UserError, match=r"cannot be read, after 3 attempts \(.*connection reset\)") as error:
            read_all(f"{address}/{name}")
        assert "\n" not in str(error.value)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing of the requests."""


def test_files_of_a_web_server(tmp_path):
    fill(tmp_path)
    handler = functools.partial(_Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            for name in ("sub/a.txt", "b.jsonl.gz", "d.html", "f.json"):
                assert read_all(f"{address}/{name}", name="x") == read_all(tmp_path / name, name="x")
            documents, _ = read_all(f"{address}/b.jsonl.gz?download=1", name="x")
            assert [each.text for each in documents] == ["row"]
            with pytest.raises(UserError, match="no such file"):
                read_all(f"{address}/nosuch.txt")
        finally:
            server.shutdown()
            thread.join()


def test_a_remote_file_that_is_broken_is_skipped(in_memory):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/corpus/b.jsonl.gz", memory.cat_file("/corpus/b.jsonl.gz")[:-6])
    memory.pipe_file("/corpus/c.parquet", b"PAR1")
    documents, skipped = read_all(in_memory[1])
    assert ("b.jsonl.gz", "broken file") in reasons(skipped) and ("c.parquet", "broken file") in reasons(skipped)
    assert len(documents) == 7
