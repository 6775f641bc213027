"""What the C library does with memory that a step has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# counts the pages that are zeroed for an array of 48 MiB, which glibc maps anew each time when left alone
PROGRAM = """
import resource, sys
import numpy as np
from lit_llm.training.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for number in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(6 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # without huge pages the array has 12,288 of them
    assert faults("keep") < 20
    assert faults("leave") >= 24
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000000")  # whoever sets it himself is left alone
    with pytest.raises(subprocess.CalledProcessError):
        faults("keep")
