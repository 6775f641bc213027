"""The rules that a tool can check: which room imports which, the form of the code, and its types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# the tools of the environment that runs the tests come before those of the system
SCRIPTS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["lint-imports"],
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        # the rooms that setup.cfg names; without a cache, which another version of a package would spoil
        pytest.param(
            ["mypy", "--cache-dir", os.devnull, "--python-executable", sys.executable], marks=pytest.mark.slow
        ),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_tool(command: list[str]) -> None:
    program = shutil.which(command[0], path=str(SCRIPTS)) or shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed; pip install -e '.[test]'")
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
