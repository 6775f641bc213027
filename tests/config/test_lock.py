"""A folder belongs to one process at a time, whatever becomes of that process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_llm.config import UserError, lock
from lit_llm.config.lock import locked

HOLD = """
import os, sys, time
from pathlib import Path
from lit_llm.config.lock import locked
with locked(Path(sys.argv[1]), "wait"):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error, locked(folder, "give another --run_name"):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def write_owner(folder: Path, **changes: Any) -> None:
    (folder / ".lock").write_text(json.dumps({**lock._myself(), **changes}))


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path, "wait"):
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since 20")
        assert message.endswith("wait until it ends, or give another --run_name")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "wait"):
        raise ZeroDivisionError
    with locked(tmp_path, "wait"):
        pass


def test_a_killed_process_leaves_the_folder_free(tmp_path: Path) -> None:
    """Also while a worker that it has forked lives on."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert child > 1
    try:
        assert f"process {process.pid} on" in refusal(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        with locked(tmp_path, "wait"):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_child_gives_nothing_back(tmp_path: Path) -> None:
    with locked(tmp_path, "wait"):
        child = os.fork()
        if not child:  # leaves the block as an exception would
            os._exit(len(lock._held))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert "in use" in refusal(tmp_path)


def test_what_a_file_from_elsewhere_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock can be had: on a disk of this machine nobody is there; on one of several machines that is not sure."""
    for kind, sure in (("ext4", True), ("nfs4", False), ("lustre", False), (None, False)):
        monkeypatch.setattr(lock, "_kind_of_file_system", lambda folder, kind=kind: kind)
        write_owner(tmp_path, host="node7", pid=77)
        if sure:
            with locked(tmp_path, "wait"):
                pass
            continue
        message = refusal(tmp_path)
        assert "is in use by process 77 on node7" in message
        assert message.endswith(f"which cannot be told from here, delete {tmp_path / '.lock'}")
        # an earlier start of the same job has ended
        write_owner(tmp_path, host="node7", pid=77, job="4711")
        assert "node7" in refusal(tmp_path)
        with monkeypatch.context() as environment:
            environment.setenv("SLURM_JOB_ID", "4711")
            with locked(tmp_path, "wait"):
                pass
        write_owner(tmp_path, pid=ended_process())
        with locked(tmp_path, "wait"):
            pass


def test_the_file_system_is_told(tmp_path: Path) -> None:
    assert lock._kind_of_file_system(Path("/proc")) == "proc"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_process_is_asked(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    other = os.getppid()
    write_owner(tmp_path, pid=other, started=lock._started(other))
    assert f"is in use by process {other} on" in refusal(tmp_path)
    # another process has its number by now; it has ended; nobody has written; half a line
    for change in ({"pid": other, "started": "1"}, {"pid": ended_process()}):
        write_owner(tmp_path, **change)
        with locked(tmp_path, "wait"):
            pass
    for text in ("", '{"pid": 1', "[1]", "null", '{"pid": "x"}'):
        (tmp_path / ".lock").write_text(text)
        with locked(tmp_path, "wait"):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
