"""One-line notices on stderr about what was read, and what of a stranger's text a terminal may be shown."""

from __future__ import annotations

import os
import sys
from functools import lru_cache

from lit_llm.config.errors import UserError

_RANKS = ("RANK", "SLURM_PROCID")
_PARTS_OF_RANK = ("LOCAL_RANK", "NODE_RANK")
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def with_pictures(text: str) -> str:
    """Put pictures in place of control characters: a terminal or a page may take them for an order."""
    return text.translate(_PICTURES)


def is_first_process() -> bool:
    """Whether this is rank 0, by what torchrun, SLURM or Lightning's launcher has put into the environment."""
    for name in _RANKS:
        if name in os.environ:
            return int(os.environ[name]) == 0
    return all(int(os.environ.get(name, 0)) == 0 for name in _PARTS_OF_RANK)


def check_ranks() -> None:
    """Refuse a rank in the environment that is no number, which Lightning does not get over either.

    Raises:
        UserError: names the variable.
    """
    for name in (*_RANKS, *_PARTS_OF_RANK):
        text = os.environ.get(name, "0")
        if not text.isdecimal():
            raise UserError(f"the environment has {name}={text!r}; a launcher puts a whole number there: unset {name}")


@lru_cache(maxsize=1000)
def tell_once(line: str) -> None:
    """Print a line on stderr, on rank 0 alone, and only the first time that this process says it."""
    if is_first_process():
        print(with_pictures(" ".join(line.split())), file=sys.stderr)
