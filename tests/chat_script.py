"""chat.py as a process, in a pipe or on a terminal of its own, with a model that says letters."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from chat_rows import LETTERS, letter_tokenizer
from conftest import ROOT

TOKENIZER = letter_tokenizer()
# Answers of letters, each of which is a token also when it is read again: a turn costs five tokens and its letters
# (the system's, ten), and the header of the answer to come three.
ONLY_LETTERS = {TOKENIZER.encode(letter)[0]: 50.0 for letter in LETTERS}


def command(folder: Path, *words: str) -> list[str]:
    letters = "{" + ", ".join(f"{token}: 50" for token in ONLY_LETTERS) + "}"
    options = ["--model", str(folder), "--accelerator", "cpu", "--sampling.logit_bias", letters, *words]
    return [sys.executable, str(ROOT / "experiments" / "chat.py"), *options]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}


class Terminal:
    """The script on a terminal of its own."""

    def __init__(self, words: list[str]) -> None:
        self.file, other = os.openpty()
        self.process = subprocess.Popen(
            words, stdin=other, stdout=other, stderr=other, env=ENVIRONMENT, preexec_fn=self._take, close_fds=True
        )
        os.close(other)
        self.shown = ""

    @staticmethod
    def _take() -> None:
        """Make stdin the controlling terminal, so that Ctrl-C and Ctrl-D mean what they do."""
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self.file, text.encode())

    def read_until(self, pattern: str) -> str:
        """What was shown since the last input, when `pattern` is found in it."""
        while not re.search(pattern, self.shown):
            try:
                self.shown += os.read(self.file, 4096).decode()
            except OSError as error:  # the other end is closed
                raise AssertionError(f"{pattern!r} did not come: {self.shown!r}") from error
        return self.shown
