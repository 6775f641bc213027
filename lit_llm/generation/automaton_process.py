"""This program turns an expression or a JSON schema into an automaton; `automata` runs it as a process of its own.

It is run as a script and imports nothing of the package, so that it is ready at once. A JSON object on stdin says what
is wanted; on stdout it answers with a line of JSON, and after it the automaton's table.
"""

from __future__ import annotations

import json
import sys
from array import array
from typing import Any

BEGIN, END, UNUSED = 256, 257, 258
"""The ids that the library needs besides those of the 256 bytes."""
NONE = -1
"""The state of a text that can no longer match."""
NONCHARACTER = "\ufdd0"
"""Unicode sets it apart for internal use: no text that is exchanged contains it."""


class Refused(Exception):
    """An expression was refused; the text says why."""


def limit_resources(seconds: float, memory_mib: int) -> None:
    """Bound this process, so that it ends even where its parent does not end it."""
    import resource

    for kind, most in (
        (resource.RLIMIT_AS, memory_mib * 2**20),
        (resource.RLIMIT_CPU, int(seconds) + 2),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def index_of(regex: str) -> Any:
    """Build the library's index of an expression over single bytes.

    The library builds an automaton that also *searches* for matches, in the middle of a text, although it only uses
    the part that begins where the text does. The other part has exponentially many states wherever what begins a match
    may also stand within one, as the quotes of a JSON string do: one set of places for each way in which matches may
    have begun. So the expression is put after a character that no text has, and an empty alternative after the first
    of two such characters lets the search end there, for it prefers what begins first. A third one at the end makes
    the match the whole of the text, where `a|ab` would otherwise stop at its first alternative.

    Raises:
        Refused: the expression is not valid, or cannot be followed.
    """
    import outlines_core

    mark = NONCHARACTER.encode()
    spellings = {bytes([byte]): [byte] for byte in range(256)} | {mark + mark: [BEGIN], mark: [END]}
    vocabulary = outlines_core.Vocabulary(UNUSED, spellings)
    # with a word boundary before it a valid expression fails because of the boundary alone, and one that would close
    # the group around it fails for another reason
    for whole in (rf"\b{regex}", f"{NONCHARACTER}(?:{NONCHARACTER}(?:{regex}){NONCHARACTER}|)"):
        try:
            index = outlines_core.Index(whole, vocabulary)
        except ValueError as error:
            reason = " ".join(str(error).split())
            if "word boundaries" in reason and whole[0] == "\\":
                continue
            if "building NFA" in reason:
                raise Refused("it is not a valid regular expression") from None
            if "word boundaries" in reason:
                raise Refused(r"word boundaries (\b, \B) are not supported") from None
            if "incompatible" in reason:
                raise Refused("no text matches it (the whole text is matched: leave out ^ and $)") from None
            raise Refused(reason) from None
    return index


def automaton_of(index: Any, usable: frozenset[int], most_states: int) -> tuple[list[array[int]], list[int]]:
    """Make the table of the state after each byte, for each state (the first is the start), and the final states.

    Args:
        index: of `index_of`.
        usable: bytes that tokens are made of.
        most_states: more are refused.
    """
    start = index.get_next_state(index.get_initial_state(), BEGIN)
    numbers, order = {start: 0}, [start]
    nothing = array("i", [NONE]) * 256
    rows: list[array[int]] = []
    final: list[int] = []
    while len(rows) < len(order):
        state = order[len(rows)]
        ended = index.get_next_state(state, END)
        if ended is not None and index.is_final_state(ended):
            final.append(len(rows))
        row = nothing[:]
        for byte in usable.intersection(index.get_allowed_tokens(state) or ()):
            following = index.get_next_state(state, byte)
            if following not in numbers:
                if len(order) == most_states:
                    raise Refused(f"it takes more than {most_states} states; shorten its texts and lists")
                numbers[following] = len(order)
                order.append(following)
            row[byte] = numbers[following]
        rows.append(row)
    return rows, final


def without_dead_ends(rows: list[array[int]], final: list[int]) -> list[array[int]]:
    """Drop the transitions to states from which no text can end, as there are within the last character."""
    ways = [set(row) - {NONE} for row in rows]
    before: list[list[int]] = [[] for _ in rows]
    for state, following in enumerate(ways):
        for other in following:
            before[other].append(state)
    todo, live = list(final), set(final)
    while todo:
        for state in before[todo.pop()]:
            if state not in live:
                live.add(state)
                todo.append(state)
    if 0 not in live:
        raise Refused("no text of the tokenizer's tokens matches it")
    return [
        row if way <= live else array("i", (following if following in live else NONE for following in row))
        for row, way in zip(rows, ways, strict=True)
    ]


def answer(asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Make the answer, a line and a table: for each class of bytes the state after each state, or `NONE`."""
    text = asked["text"]
    if asked["is_schema"]:
        from outlines_core.json_schema import build_regex_from_schema

        try:
            text = build_regex_from_schema(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise Refused(" ".join(str(error).split())) from None
    usable = frozenset(asked["usable"])
    rows, final = automaton_of(index_of(text), usable, asked["most_states"])
    rows = without_dead_ends(rows, final)
    flat = array("i", b"".join(row.tobytes() for row in rows))
    columns: dict[bytes, int] = {}
    classes = [columns.setdefault(flat[byte::256].tobytes(), len(columns)) for byte in range(256)]
    return {"classes": classes, "final": final}, b"".join(columns)


def main() -> None:
    """Answer the question on stdin."""
    asked = json.load(sys.stdin)
    limit_resources(asked["seconds"], asked["memory_mib"])
    try:
        line, table = answer(asked)
    except Refused as error:
        line, table = {"refused": str(error)}, b""
    except MemoryError:
        sys.exit(1)
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\n" + table)


if __name__ == "__main__":
    main()
