"""YAML comes back as it was written, and is refused where it would be read as something else."""

from __future__ import annotations

import pytest
import yaml
from jsonargparse import get_loader

from lit_llm.config.yaml_text import DoubtfulYaml, check_yaml, read_yaml, write_yaml

TEXTS = [
    "3e-4",
    "1e5",
    "1.5E5",
    ".5",
    "1_000",
    "1:30",
    "08",
    "yes",
    "2020-01-01",
    "a\x85b\u2028c",
    "\U0001f60a",
    " a: #",
    "",
]


def test_every_reader_has_texts_and_numbers_back() -> None:
    values = {"texts": TEXTS, "numbers": [3e-4, 1e5, 1e-300, 5, -0.5], "3e-4": True}
    written = write_yaml(values)
    assert read_yaml(written) == yaml.safe_load(written) == get_loader("yaml")(written) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 2}\na: 3\n", "line 3: a stands there a second time, after line 1; make them one"),
        ("- x\n- b: {c: 2, d: 3,\n  c: 2}\n", "line 3: c stands there a second time, after line 2"),
        ("a: [b, 12:30:00]", "line 1: numbers with colons count in sixties"),
        ("a:\n  b: 1:30.5", "line 2: numbers with colons count in sixties"),
    ],
)
def test_what_may_not_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(DoubtfulYaml, match=message):
        read_yaml(text)


def test_what_looks_like_it_is_not_refused() -> None:
    values = read_yaml("x: &x {a: 1}\ny: {<<: *x, a: 2}\nz: *x\n'1': '1:30'\n1: 12:30:00 h")
    assert values == {"x": {"a": 1}, "y": {"a": 2}, "z": {"a": 1}, "1": "1:30", 1: "12:30:00 h"}
    check_yaml("")
    deep = "\n".join([f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" if n else "a0: &a0 []" for n in range(60)])
    check_yaml(deep)  # what aliases stand for is looked at once
