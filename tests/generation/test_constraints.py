"""Text held to a form, by a model that would write anything else."""

from __future__ import annotations

import json
import re
import sys

import pytest
from conftest import tiny_model
from random_decoder import random_decoder

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import Completion, Engine, TextConstraint
from lit_llm.generation.constraints import _outlines_core
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
    done = write(tokenizer, TextConstraint(pattern, tokenizer, 400, [tokenizer.eot_id]), 8)
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
        TextConstraint("(ab", tokenizer, 400, [0])
    with pytest.raises(UserError, match=r"schema '{\"type\"' cannot be followed"):
        TextConstraint.of_schema('{"type"', tokenizer, 400, [0])
    with pytest.raises(UserError, match="needs a token that ends it"):
        TextConstraint("ab", tokenizer, 400, [])


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(UserError, match=r"pip install 'lit-llm\[constrained\]'"):
        _outlines_core()
