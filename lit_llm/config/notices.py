"""One-line notices on stderr about what was read."""

from __future__ import annotations

import os
import sys
from functools import lru_cache


def is_first_process() -> bool:
    """Whether this is rank 0, by what torchrun, SLURM or Lightning's launcher has put into the environment."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return all(int(os.environ.get(name, 0)) == 0 for name in ("LOCAL_RANK", "NODE_RANK"))


@lru_cache(maxsize=1000)
def tell_once(line: str) -> None:
    """Print a line on stderr, on rank 0 alone, and only the first time that this process says it."""
    if is_first_process():
        print(" ".join(line.split()), file=sys.stderr)
