"""This program turns an expression or a JSON schema into an automaton; `automata` runs it as a process of its own.

It is run as a script and imports nothing of the package, so that it is ready at once. A JSON object on stdin says what
is wanted; on stdout it answers with a line of JSON, and after it the automaton's table.
"""

from __future__ import annotations

import json
import math
import re
import sys
from array import array
from collections.abc import Iterable
from typing import Any

BEGIN, END, UNUSED = 256, 257, 258
"""The ids that the library needs besides those of the 256 bytes."""
NONE = -1
"""The state of a text that can no longer match."""
NONCHARACTER = "\ufdd0"
"""Unicode sets it apart for internal use: no text that is exchanged contains it."""
ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
    *("$comment", "$schema", "$id", "$defs", "definitions"),
}
"""Keywords that ask nothing of a text, and those that hold what is referred to."""
FOLLOWED = {
    "properties": {"type", "required", "additionalProperties"},
    "allOf": set(),
    "anyOf": set(),
    "prefixItems": {"type", "items", "minItems", "maxItems"},
    "enum": {"type"},
    "const": {"type"},
    "$ref": set(),
    "type": {"minLength", "maxLength", "pattern", "format", "items", "minItems", "maxItems", "additionalProperties"},
}
"""The keyword that the library goes by, the first of these that a schema has, and what is followed beside it."""
FORMATS = {
    "date": r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])",
    "time": r"(?:2[0-3]|[01][0-9]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?Z",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*@(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}",
    "uri": r"https?://[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)*(?::[0-9]+)?(?:[/?#][a-zA-Z0-9/._~!$&'()*+,;=:@?-]*)?",
}
"""Expressions of formats; the library's own match quotation marks, lone backslashes and digits of any script."""
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"


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


class FollowedSchema:
    """A schema of which the library follows everything: what it would pass over in silence is refused.

    References are put in place, as the library leaves out what is behind more than three of them.

    Args:
        root: the schema.
        most_states: of the automaton of a pattern.
    """

    def __init__(self, root: Any, most_states: int) -> None:
        self._root, self._most_states = root, most_states

    def written(self) -> str:
        """Write the schema for the library.

        Raises:
            Refused: it has what is not followed.
        """
        return json.dumps(self._followed(self._root, ()))

    def _followed(self, schema: Any, within: tuple[str, ...]) -> Any:
        """Return a schema that stands behind some references, without annotations and references of its own."""
        if not isinstance(schema, dict):
            raise Refused(f"{json.dumps(schema)[:60]} in the place of a schema is not followed; give an object")
        asked = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
        if not asked:
            if schema is self._root:
                return {}
            raise Refused("a schema without a type is not followed within another; give it a type")
        kind = next((kind for kind in FOLLOWED if kind in asked), "")
        for name in asked.keys() - {kind} - FOLLOWED.get(kind, set()):
            beside = f" beside {kind}" if name in {*FOLLOWED}.union(*FOLLOWED.values()) else ""
            raise Refused(f"{name}{beside} is not followed" + ("; write anyOf" if name == "oneOf" else ""))
        return self._of_kind(kind, asked, within)

    def _of_kind(self, kind: str, asked: dict[str, Any], within: tuple[str, ...]) -> Any:
        for name in {"minLength", "maxLength", "minItems", "maxItems"}.intersection(asked):
            if type(asked[name]) is not int or asked[name] < 0:
                raise Refused(f"{name} of {json.dumps(asked[name])[:60]} is not followed; give a whole number from 0")
        for what in ("Length", "Items"):
            if asked.get(f"min{what}", 0) > asked.get(f"max{what}", math.inf):
                raise Refused(f"min{what} is more than max{what}")
        if kind == "$ref":
            return self._followed(self._found(asked["$ref"], within), (*within, asked["$ref"]))
        if kind in ("enum", "const"):
            _check_values(kind, asked)
        elif kind in ("allOf", "anyOf", "prefixItems"):
            parts = asked[kind]
            if not isinstance(parts, list) or not parts or (kind == "allOf" and len(parts) > 1):
                some = "a list of one schema" if kind == "allOf" else "a list of schemas"
                raise Refused(f"{kind} is not followed unless it is {some}")
            asked[kind] = [self._followed(part, within) for part in parts]
        if kind == "prefixItems":
            _check_tuple(asked)
        elif kind == "properties":
            self._properties(asked, within)
        elif kind == "type":
            self._typed(asked, within)
        return asked

    def _found(self, reference: Any, within: tuple[str, ...]) -> Any:
        if reference in within or reference == "#":
            raise Refused(f"$ref {reference} leads back to itself, which is not followed")
        found = re.fullmatch(r"#/(\$defs|definitions)/([^/~%]+)", reference) if isinstance(reference, str) else None
        held = self._root.get(found[1]) if found else None
        if not isinstance(held, dict) or found[2] not in held:
            raise Refused(
                f"$ref {json.dumps(reference)[:60]} is not followed; refer to a name in $defs, as #/$defs/name"
            )
        return held[found[2]]

    def _properties(self, asked: dict[str, Any], within: tuple[str, ...]) -> None:
        properties, required = asked["properties"], asked.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise Refused("properties must be an object, and required a list of their names")
        if "object" not in _types(asked, "object"):
            raise Refused("properties of what is no object are not followed")
        for name in required:
            if name not in properties:
                raise Refused(f"{json.dumps(name)[:60]} in required is not in properties, which is not followed")
        _check_names(properties)
        # no other properties are written, whatever may be said of them
        asked.pop("additionalProperties", None)
        asked["properties"] = {name: self._followed(value, within) for name, value in properties.items()}

    def _typed(self, asked: dict[str, Any], within: tuple[str, ...]) -> None:
        if not _types(asked):
            raise Refused("an empty list of types is not followed")
        if "items" in asked:
            asked["items"] = self._followed(asked["items"], within)
        if isinstance(asked.get("additionalProperties"), dict):
            asked["additionalProperties"] = self._followed(asked["additionalProperties"], within)
        if "format" in asked:
            form = asked.pop("format")
            if not isinstance(form, str) or form not in FORMATS:
                raise Refused(f"format {json.dumps(form)[:60]} is not followed; those that are: {', '.join(FORMATS)}")
            if "pattern" in asked:
                raise Refused("pattern beside format is not followed")
            asked["pattern"] = FORMATS[form]
        if "pattern" in asked:
            for name in ("minLength", "maxLength"):
                if name in asked:
                    raise Refused(f"{name} beside pattern or format is not followed")
            asked["pattern"] = self._pattern(asked["pattern"])

    def _pattern(self, pattern: Any) -> str:
        """Return the expression of a pattern, as the library puts it between quotation marks."""
        if not isinstance(pattern, str):
            raise Refused("pattern must be a text")
        # a pattern need not match the whole of a text, but may; the library takes an escaped $ at the end for an anchor
        whole = re.sub(r"(?<!\\)((?:\\\\)*)\$\Z", r"\1", pattern.removeprefix("^"))
        # these are letters and digits of English in a schema, and of any script in the library
        own = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[A-Za-z0-9_]", r"\W": "[^A-Za-z0-9_]"}
        whole = re.sub(r"\\.", lambda found: own.get(found[0], found[0]), whole, flags=re.DOTALL)
        try:
            rows, final = automaton_of(index_of(whole), frozenset(range(256)), self._most_states)
            rows = without_dead_ends(rows, final)
        except Refused as error:
            raise Refused(f"pattern {json.dumps(pattern)[:60]}: {error}") from None
        if any(row[byte] != NONE for row in rows for byte in (*range(32), *b'"\\')):
            raise Refused(
                f"pattern {json.dumps(pattern)[:60]} matches quotation marks, backslashes or control characters, which "
                r"is not followed; leave them out, as [^\"\\\x00-\x1F] does"
            )
        return f"(?:{whole})"


def _types(asked: dict[str, Any], default: str = "") -> list[Any]:
    types = asked.get("type", default)
    return types if isinstance(types, list) else [types]


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise Refused(f"the name {json.dumps(name)[:60]}, which JSON writes with a backslash, is not followed")


def _check_values(kind: str, asked: dict[str, Any]) -> None:
    """Check the values of `enum` or `const`, which the library writes whatever their type is."""
    values = asked[kind] if kind == "enum" else [asked[kind]]
    if not isinstance(values, list) or not values:
        raise Refused("enum is not followed unless it is a list of values")
    kinds = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
    types = _types(asked) if "type" in asked else None
    for value in values:
        own = {kinds.get(type(value), "null")} | ({"number"} if type(value) is int else set())
        if types is not None and not own.intersection(types):
            raise Refused(f"{kind} has {json.dumps(value)[:60]}, which is not of its type")
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            _check_names(value)
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _check_tuple(asked: dict[str, Any]) -> None:
    """Check what stands beside `prefixItems`, of which the library writes each once."""
    length = len(asked["prefixItems"])
    if "array" not in _types(asked, "array"):
        raise Refused("prefixItems of what is no array are not followed")
    if not asked.pop("minItems", 0) <= length <= asked.pop("maxItems", length):
        raise Refused(f"prefixItems of {length} are not followed beside such minItems and maxItems")
    asked.pop("items", None)


def answer(asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Make the answer, a line and a table: for each class of bytes the state after each state, or `NONE`."""
    text = asked["text"]
    if asked["is_schema"]:
        from outlines_core.json_schema import build_regex_from_schema

        try:
            text = build_regex_from_schema(FollowedSchema(json.loads(text), asked["most_states"]).written())
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
