"""This file releases text as it is written, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from lit_llm.tokenizer import Tokenizer


class StoppingText:
    """Turns tokens into text that can be shown at once.

    Held back are the bytes of an unfinished character, and an end that may yet become a stop string.

    Args:
        tokenizer: whose tokens they are.
        stop_strings: the text ends before the first of these; none is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._decoder = tokenizer.stream_decoder()
        self._stop_strings = list(stop_strings)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and give the text that can now be shown; afterwards `stopped` says whether a stop string came."""
        return self._release(self._decoder.push(token))

    def flush(self) -> str:
        """Give what is left at the end, with U+FFFD for a character that was never finished."""
        text = self._release(self._decoder.flush())
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stop_strings) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Compute the length of the longest end of `text` that is a beginning of `stop`, shorter than the whole."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
