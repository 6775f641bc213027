"""Whether text is Python, and the reward that says so."""

from __future__ import annotations

import importlib

import pytest
from conftest import ROOT

from lit_llm.cli import parse
from lit_llm.config import PPOConfig, UserError
from lit_llm.quickstart.code import parse_rate, parse_reward, parses
from lit_llm.tokenizer.chat import Message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(x):\n    return x", True),
        ('print("\\d")', True),
        ("def f(x):\nreturn x", False),
        ("def f(x:\n    return x", False),
        ("def f(x):", False),
        ("", False),
        (" \n", False),
        ("a\0", False),
        ("(" * 5000, False),
        ("- " * 50_000 + "1", False),
    ],
)
def test_parses(text: str, expected: bool) -> None:
    assert parses(text) is expected


def test_rate() -> None:
    assert parse_rate(["x = 1", "x =", "", "y"]) == 0.5


def test_reward() -> None:
    """Answers come as texts, or as messages in either form."""
    prompts = ["p"] * 4
    completions = ["x = 1", "x =", [{"role": "assistant", "content": "y"}], [Message("assistant", "y =")]]
    assert parse_reward(prompts, completions, place=["m.py:1"] * 4) == [1.0, 0.0, 1.0, 0.0]


def test_the_recipe_has_it_as_its_reward() -> None:
    recipe = ROOT / "experiments" / "configs" / "ppo" / "stdlib_parse.yaml"
    run = parse(PPOConfig, ["--config", str(recipe)])
    assert run.run_name == f"ppo_{recipe.stem}"
    module, _, name = run.rewards[0].partition(":")
    assert getattr(importlib.import_module(module), name) is parse_reward
    assert (str(recipe.relative_to(ROOT))) in recipe.read_text()
    with pytest.raises(UserError):
        parse(PPOConfig, ["--config", str(recipe), "--group_size", "1"])
