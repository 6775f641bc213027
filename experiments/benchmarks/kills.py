"""Processes that are killed while they write files, and whether those come out the same."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def kill_after(process: subprocess.Popen, files: Callable[[], int], more: int, seconds: float) -> bool:
    """Kill a process when it has written `more` files and `seconds` have passed; False where it ends before.

    Args:
        process: Is running.
        files: Counts the files that there are.
        more: How many have to be added.
        seconds: What is waited then.
    """
    enough = files() + more
    while files() < enough:
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
