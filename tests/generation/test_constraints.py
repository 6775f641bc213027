"""Text held to a form, by a model that would write anything else."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import tiny_model
from random_decoder import random_decoder

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import Completion, Engine, TextConstraint
from lit_llm.generation.automata import Automaton, Compilation, Limits
from lit_llm.generation.constraints import Spellings
from lit_llm.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "odd": {"type": "boolean"}},
    "required": ["name", "odd"],
}


def write(tokenizer: Tokenizer, constraint: TextConstraint, seeds: int) -> list[Completion]:
    model = random_decoder(tiny_model(max_position_embeddings=128), std=0.05)
    engine = Engine(model, 4, tokenizer=tokenizer)
    for seed in range(seeds):
        options = SamplingConfig(max_new_tokens=60, temperature=1.0, seed=seed)
        engine.submit([5], options, stop_tokens=[tokenizer.eot_id], allowed_tokens=constraint.start())
    return list(engine.run().values())


def test_texts_match_the_expression(tokenizer: Tokenizer) -> None:
    pytest.importorskip("outlines_core")
    pattern = r"(yes|no), [0-9]{2,4} é!"
    done = write(tokenizer, TextConstraint.of_regex(pattern, tokenizer, 400, [tokenizer.eot_id]), 8)
    assert all(re.fullmatch(pattern, completion.text) for completion in done)
    assert all(completion.finish_reason == "stop" for completion in done)
    assert len({completion.text for completion in done}) == 8


def test_texts_are_json_of_the_schema(tokenizer: Tokenizer) -> None:
    pytest.importorskip("outlines_core")
    constraint = TextConstraint.of_schema(json.dumps(SCHEMA), tokenizer, 400, [tokenizer.eot_id])
    for completion in write(tokenizer, constraint, 6):
        value = json.loads(completion.text)
        assert set(value) == {"name", "odd"}
        assert isinstance(value["name"], str) and isinstance(value["odd"], bool)


def test_what_cannot_be_followed_is_named(tokenizer: Tokenizer) -> None:
    pytest.importorskip("outlines_core")
    with pytest.raises(UserError, match=r"the expression '\(ab' cannot be followed"):
        TextConstraint.of_regex("(ab", tokenizer, 400, [0])
    with pytest.raises(UserError, match=r"schema '{\"type\"' cannot be followed"):
        TextConstraint.of_schema('{"type"', tokenizer, 400, [0])
    with pytest.raises(UserError, match="needs a token that ends it"):
        TextConstraint.of_regex("ab", tokenizer, 400, [])


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(UserError, match=r"pip install 'lit-llm\[constrained\]'"):
        compiled("ab")


def compiled(text: str, is_schema: bool = False, **options: Any) -> Automaton:
    return Compilation(text, is_schema=is_schema, **options).run()


def matches(automaton: Automaton, text: str) -> bool:
    return bool(automaton.final[automaton.after(0, text.encode())])


def test_states_grow_with_the_length_of_a_text_and_no_faster() -> None:
    """An automaton that also searched in the middle of texts would have 2 to the power of the length."""
    pytest.importorskip("outlines_core")
    automata_of_any = [compiled(rf"[^x]{{{most},{most + 9}}}x") for most in (20, 40, 60)]
    short, middle, long = (automaton.dead for automaton in automata_of_any)
    assert long - middle == middle - short
    automata = [compiled(json.dumps({"type": "string", "maxLength": most}), True) for most in (20, 40, 60)]
    short, middle, long = (automaton.dead for automaton in automata)
    assert long - middle == middle - short == 20 * 10
    for text, fits in (("b" * 40, True), ("€" * 40, True), ('\\"' * 40, True), ("€" * 41, False), ('"', False)):
        assert matches(automata[1], f'"{text}"') == fits, text


@pytest.mark.parametrize(
    ("regex", "texts"),
    [
        ("a|ab", ["a", "ab", "b", ""]),  # the first alternative does not end the text
        ("(a|b)*?", ["", "abba", "abc"]),
        (".{0,3}", ["", "äöü", "abcd"]),
        ("[^x]{2}|xx", ["xx", "ab", "xa", "€€"]),
        ("", ["", "a", "\ufdd0"]),
    ],
)
def test_automata_match_whole_texts(regex: str, texts: list[str]) -> None:
    pytest.importorskip("outlines_core")
    automaton = compiled(regex)
    assert [matches(automaton, text) for text in texts] == [bool(re.fullmatch(regex, text)) for text in texts]


def test_only_texts_of_the_tokens_count() -> None:
    pytest.importorskip("outlines_core")
    automaton = compiled("ab(d|c)|ad*", usable=b"abc")
    assert automaton.after(automaton.after(0, b"a"), b"d") == automaton.dead
    assert matches(automaton, "abc") and matches(automaton, "a")
    assert compiled("ad|b", usable=b"ab").after(0, b"a") != 0  # a dead end is no way
    assert compiled("ad|b", usable=b"ab").after(0, b"a") == compiled("ad|b", usable=b"ab").dead
    with pytest.raises(UserError, match="no text of the tokenizer's tokens matches"):
        compiled("ad", usable=b"ab")


def test_masks_are_those_of_each_token_by_itself(tokenizer: Tokenizer) -> None:
    pytest.importorskip("outlines_core")
    spellings = Spellings(tokenizer, 500)
    automaton = compiled(json.dumps(SCHEMA), True)
    states = {
        automaton.after(0, text) for text in (b"", b'{"', b'{"name":"th', b'{"name":"', '{"name":"€'.encode()[:-1])
    }
    assert len(states) == 5 and automaton.dead not in states
    for state in states:
        alone = [
            token
            for token, spelling in enumerate(spellings.of_token)
            if spelling and automaton.after(state, spelling) != automaton.dead
        ]
        assert sorted(spellings.followed(automaton, state)) == alone != []


INTEGER: dict[str, Any] = {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({**INTEGER, "minimum": 0}, "minimum is not followed"),
        ({"type": "array", "items": {**INTEGER, "multipleOf": 2}}, "multipleOf is not followed"),
        ({"type": "object", "properties": {"a": INTEGER}, "required": ["b"]}, '"b" in required is not in properties'),
        ({"type": "object", "required": ["b"]}, "required beside type is not followed"),
        ({"type": "object", "properties": {"a": INTEGER}, "minProperties": 1}, "minProperties is not followed"),
        ({"properties": {'a"': INTEGER}}, r"the name .*writes with a backslash, is not followed"),
        ({"properties": {"a": {}}}, "a schema without a type is not followed within another"),
        ({"const": {"a\n": 1}}, "writes with a backslash"),
        ({"enum": []}, "enum is not followed unless"),
        ({"enum": ["a"], **INTEGER}, 'enum has "a", which is not of its type'),
        ({"allOf": [INTEGER, INTEGER]}, "allOf is not followed unless it is a list of one schema"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf is not followed; write anyOf"),
        ({"anyOf": [INTEGER], "type": "string"}, "type beside anyOf is not followed"),
        ({"prefixItems": [INTEGER], "minItems": 2}, "prefixItems of 1 are not followed"),
        ({"properties": {"a": {"$ref": "#"}}}, "leads back to itself"),
        ({"type": "string", "minLength": 1.5}, "minLength of 1.5 is not followed"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems is more than maxItems"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "maxLength beside pattern"),
        ({"type": "string", "pattern": "a.b"}, "matches quotation marks, backslashes or control characters"),
        ({"type": "string", "format": "ipv4"}, "those that are: date, time"),
    ],
)
def test_what_a_schema_asks_and_is_not_followed_is_refused(schema: dict[str, Any], reason: str) -> None:
    pytest.importorskip("outlines_core")
    with pytest.raises(UserError, match=reason):
        compiled(json.dumps(schema), True)


def test_what_a_schema_asks_is_followed() -> None:
    pytest.importorskip("outlines_core")
    deep = {
        name: {"properties": {"n": {"$ref": f"#/$defs/{after}"}}, "required": ["n"]}
        for name, after in ("ab", "bc", "cd", "de")
    }
    pair = {"type": "array", "prefixItems": [INTEGER, {"const": "k", "type": "string"}], "minItems": 2, "maxItems": 2}
    for schema, fits, does_not in (
        (
            {"$ref": "#/$defs/a", "$defs": {**deep, "e": INTEGER}},
            '{"n":' * 4 + "1" + "}" * 4,
            '{"n":' * 3 + "{}" + "}" * 3,
        ),
        ({"properties": {"a": pair}, "additionalProperties": False, "title": "t"}, '{"a":[1,"k"]}', '{"a":[1]}'),
        ({"type": ["string", "null"], "maxLength": 2, "default": None}, "null", '"abc"'),
        ({"type": "string", "pattern": r"^\d[\w-]|b\$$"}, '"b$"', '"೭a"'),
        ({"type": "string", "pattern": "a|b"}, '"a"', '"a'),
        ({"type": "string", "format": "date"}, '"2024-02-09"', '"೭024-02-09"'),
        ({"type": "string", "format": "date-time"}, '"2024-02-09T10:00:00.5Z"', '"2024-02-09T10:00:00\\x5Z"'),
        ({"type": "string", "format": "email"}, '"a.b@c.de"', '""@"@c.de"'),
        ({"type": "string", "format": "uri"}, '"https://a.de/b?c=d"', '"https://a.de/"c"'),
    ):
        automaton = compiled(json.dumps(schema), True)
        assert (matches(automaton, fits), matches(automaton, does_not)) == (True, False), schema


@pytest.mark.parametrize(
    ("text", "limits", "reason"),
    [
        ("(a|b)*a(a|b){24}", Limits(seconds=0.3), "more than 0.3 s"),
        ("((a{999}){999}){999}", Limits(memory_mib=200), "more than 200 MiB"),
        ("a{200}", Limits(states=100), "more than 100 states"),
        ("a" * 200, Limits(characters=100), "has 200 characters; at most 100"),
        ("a)|(b", Limits(), "not a valid regular expression"),
        ("^ab$", Limits(), r"leave out \^ and \$"),
        (r"ab\b", Limits(), "word boundaries"),
    ],
)
def test_what_takes_too_much_or_is_not_valid_is_refused(text: str, limits: Limits, reason: str) -> None:
    pytest.importorskip("outlines_core")
    with pytest.raises(UserError, match=reason) as refused:
        compiled(text, limits=limits)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_a_compilation_that_nobody_waits_for_ends() -> None:
    pytest.importorskip("outlines_core")
    compilation = Compilation("(a|b)*a(a|b){24}", is_schema=False, limits=Limits(seconds=60))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(compilation.run)
        while compilation._process is None:
            time.sleep(0.01)
        compilation.cancel()
        with pytest.raises(UserError, match="cancelled"):
            running.result()
    assert compilation._process.returncode == -signal.SIGKILL
    late = Compilation("ab", is_schema=False)
    late.cancel()
    with pytest.raises(UserError, match="cancelled"):
        late.run()
