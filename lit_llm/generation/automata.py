"""This file turns expressions and JSON schemas into automata over bytes, in a process of its own and within limits."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_llm.config import UserError

_PROGRAM = Path(__file__).with_name("automaton_process.py")


@dataclass(frozen=True)
class Limits:
    """The limits of the compilation of one expression."""

    characters: int = 65_536
    """The longest expression or schema, in characters."""
    seconds: float = 10.0
    """The longest time on the clock, and nearly that on the processor."""
    memory_mib: int = 1024
    """The most address space of the process."""
    states: int = 50_000
    """The most states of the automaton; each character of a text of bounded length takes ten."""


@dataclass(frozen=True)
class Automaton:
    """An automaton says which bytes may follow which."""

    table: np.ndarray
    """The state after each state: int32 [classes of bytes, states + 1]. State 0 is the start, the last a dead end."""
    classes: np.ndarray
    """The class of each byte: int64 [256]."""
    final: np.ndarray
    """Whether a text may end: bool [states + 1]."""

    @property
    def dead(self) -> int:
        """The state of a text that can no longer match."""
        return self.table.shape[1] - 1

    def after(self, state: int, spelling: bytes) -> int:
        """Give the state after some more bytes."""
        for byte in spelling:
            state = int(self.table[self.classes[byte], state])
        return state


class Compilation:
    """The compilation of one automaton, which `run` carries out.

    Args:
        text: a regular expression, which the whole of a text must match, or a JSON schema.
        is_schema: which of the two.
        usable: bytes that texts can be made of.
        limits: what it may take.

    Raises:
        UserError: outlines-core is not installed, or `text` is too long.
    """

    def __init__(
        self, text: str, *, is_schema: bool, usable: Iterable[int] = range(256), limits: Limits | None = None
    ) -> None:
        if importlib.util.find_spec("outlines_core") is None:
            raise UserError(
                "constrained text needs the package outlines-core; install it with: pip install 'lit-llm[constrained]'"
            )
        self._limits = Limits() if limits is None else limits
        kind = "JSON schema" if is_schema else "expression"
        self._named = f"the {kind} {_short(text)}"
        if len(text) > self._limits.characters:
            raise UserError(f"{self._named} has {len(text)} characters; at most {self._limits.characters} are compiled")
        asked = {
            "text": text,
            "is_schema": is_schema,
            "usable": sorted(usable),
            "seconds": self._limits.seconds,
            "memory_mib": self._limits.memory_mib,
            "most_states": self._limits.states,
        }
        self._asked = json.dumps(asked).encode()
        self._lock = threading.Lock()
        self._cancelled = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> Automaton:
        """Make the automaton and wait until it is there. This may be called on any thread, once.

        Raises:
            UserError: the expression or schema is not valid, uses what the library does not know, takes more than the
                limits, or `cancel` was called.
        """
        with self._lock:
            if self._cancelled:
                raise self._refusal("its compilation was cancelled")
            self._process = subprocess.Popen(
                # so that no file beside the program is imported by accident
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        with self._process as process:
            try:
                answer, _ = process.communicate(self._asked, timeout=self._limits.seconds)
            except subprocess.TimeoutExpired:
                raise self._refusal(
                    f"it takes more than {self._limits.seconds:g} s to compile; shorten its texts and lists"
                ) from None
            finally:
                process.kill()
        return self._read(answer, process.returncode)

    def cancel(self) -> None:
        """Make `run` end at once, or not begin. This may be called on any thread."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.kill()

    def _read(self, answer: bytes, status: int) -> Automaton:
        if self._cancelled:
            raise self._refusal("its compilation was cancelled")
        if status != 0:
            raise self._refusal(
                f"it takes more than {self._limits.memory_mib} MiB to compile, or more time than there is; "
                "shorten its texts and lists"
            )
        line, _, table = answer.partition(b"\n")
        told = json.loads(line)
        if "refused" in told:
            raise self._refusal(told["refused"])
        classes = np.array(told["classes"])
        following = np.frombuffer(table, dtype=np.int32).reshape(classes.max() + 1, -1)
        states = following.shape[1]
        final = np.zeros(states + 1, dtype=bool)
        final[told["final"]] = True
        table = np.pad(following, ((0, 0), (0, 1)), constant_values=-1)
        return Automaton(np.where(table < 0, states, table), classes, final)

    def _refusal(self, reason: str) -> UserError:
        return UserError(f"{self._named} cannot be followed: {reason}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
