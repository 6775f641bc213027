"""Text held back while it may become a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.generation.stopping import StoppingText


class Letters:
    """A tokenizer of one character for each token, as far as the stream needs one."""

    def stream_decoder(self) -> Letters:
        return self

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


def pieces(text: str, stops: list[str]) -> tuple[list[str], bool]:
    stream = StoppingText(Letters(), stops)  # type: ignore[arg-type]
    said = []
    for letter in text:
        said.append(stream.push(ord(letter)))
        if stream.stopped:
            return said, True
    return [*said, stream.flush()], stream.stopped


@pytest.mark.parametrize(
    ("text", "stops", "said", "stopped"),
    [
        ("abc", [], ["a", "b", "c", ""], False),
        ("xENDy", ["END"], ["x", "", "", ""], True),
        # held back until it cannot be the beginning any more, and let go at the end
        ("xENy", ["END"], ["x", "", "", "ENy", ""], False),
        ("xEN", ["END"], ["x", "", "", "EN"], False),
        # the beginning begins again inside itself
        ("aab", ["ab"], ["", "a", ""], True),
        ("ababac", ["abac"], ["", "", "", "ab", "", ""], True),
        # the first to be whole wins
        ("abcd", ["abcd", "bc"], ["", "", "a"], True),
    ],
)
def test_by_hand(text: str, stops: list[str], said: list[str], stopped: bool) -> None:
    assert pieces(text, stops) == (said, stopped)


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_said_is_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    said, stopped = pieces(text, stops)
    prefixes = ("".join(prefix) for prefix in itertools.accumulate(text))
    whole = next((prefix for prefix in prefixes if any(prefix.endswith(stop) for stop in stops)), None)
    assert stopped == (whole is not None)
    if whole is None:
        assert "".join(said) == text
    else:
        assert "".join(said) == whole[: min(whole.index(stop) for stop in stops if stop in whole)]
    for count in range(len(said) - 1):
        so_far, read = "".join(said[: count + 1]), text[: count + 1]
        assert read.startswith(so_far)
        held = read[len(so_far) :]
        assert stopped or not held or any(stop.startswith(held) for stop in stops)
