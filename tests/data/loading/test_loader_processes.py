"""Processes that load: none stays when the one that they load for is gone."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT

ORPHAN = """
import multiprocessing, os, time
from lit_llm.data.loading.loader import end_without_parent

def work():
    end_without_parent(0)  # the parent lives
    os.write(1, b"begun ")
    while os.getppid() == parent:
        time.sleep(0.01)
    end_without_parent(0)
    os.write(1, b"still here")

parent = os.getpid()
multiprocessing.get_context("fork").Process(target=work).start()
time.sleep(0.5)
os.kill(parent, 9)
"""


def test_a_loader_process_whose_parent_was_killed_ends() -> None:
    """It holds the output open as long as it lives."""
    command = [sys.executable, "-c", ORPHAN]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-9, b"begun ")
