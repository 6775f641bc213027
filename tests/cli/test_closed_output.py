"""A command whose reader goes away, as `| head` does, ends without a word; other broken pipes are errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lit_llm.cli.closed_output import ends_with_its_reader

_CONSOLE = "from lit_llm.cli.commands import console; console()"
_RICH = """
from rich.console import Console
from lit_llm.cli.closed_output import ends_with_its_reader
with ends_with_its_reader():
    Console().print("a table")
"""


@pytest.mark.parametrize("code", [_CONSOLE, _RICH], ids=["print", "rich"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_quietly(unbuffered: str, code: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], stdout=writer, stderr=subprocess.PIPE, env=environment
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("ends", [False, True], ids=["returns", "exits"])
def test_what_is_left_in_a_buffer_is_dropped_where_its_reader_is_gone(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stopped, ends_with_its_reader():
        print("a line")
        if ends:
            raise SystemExit(0)
    assert stopped.value.code == 141
    stream.close()  # does not raise


def test_another_broken_pipe_is_no_end() -> None:
    with pytest.raises(BrokenPipeError, match="a connection"), ends_with_its_reader():
        raise BrokenPipeError("a connection")
