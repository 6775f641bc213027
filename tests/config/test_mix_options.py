"""The options of a mix: what is refused, and what folders are called."""

from __future__ import annotations

import pytest

from lit_llm.cli import parse
from lit_llm.config import DataConfig, PretrainConfig, UserError, to_plain
from lit_llm.config.mix import names_of_paths

TWO = "{web: {path: a, weight: 0.7}, code: {path: b, weight: 0.3}}"


@pytest.mark.parametrize(
    ("corpora", "phases", "message"),
    [
        ("{web: {path: a, weight: -1}}", "[]", r"data.mix.corpora.web.weight is -1.0; it must be at least 0"),
        ("{web: {path: a, weight: 0}}", "[]", r"web.weight is 0 and no phase names it.*leave it out"),
        ("{a: {path: a, weight: 1}, b: {path: b}}", "[]", r"corpora.b has no weight and others have one"),
        ("{a: {path: a, max_epochs: 0}}", "[]", r"corpora.a.max_epochs is 0.0; it must be above 0, or null"),
        ("{a/b: {path: a}}", "[]", r"has the name 'a/b'; use letters, digits"),
        ("{a: {path: a, weight: 0}}", "[{start: 0.5, weights: {a: 1}}]", r"weights of 0 alone, so that nothing is"),
        ("{}", "[{start: 0.5, weights: {a: 1}}]", r"phases weigh the corpora of data.mix.corpora, and there are none"),
        (TWO, "[{start: 0.5, weights: {wbe: 1}}]", r"phases\[0\].weights names 'wbe', which is not in .*\(web, code\)"),
        (TWO, "[{start: 0.5, weights: {web: 0, code: 1}}]", r"weights.web is 0.0; it must be above 0: leave web out"),
        (TWO, "[{start: 0.5, weights: {}}]", r"phases\[0\].weights is empty; name the corpora"),
        (TWO, "[{start: 0, weights: {web: 1}}]", r"phases\[0\].start is 0.0; it must be above 0"),
        (TWO, "[{start: 10.5, weights: {web: 1}}]", r"start is 10.5; it must be above 0: .* whole number of steps"),
        (
            TWO,
            "[{start: 0.8, weights: {web: 1}}, {start: 0.8, weights: {code: 1}}]",
            r"phases\[1\].start is 0.8, and the phase before it starts at 0.8; sort them",
        ),
        ("{web: {path: a, weight: .inf}}", "[]", r"corpora.web.weight is inf; it must be a finite number"),
        (TWO, "[{start: 0.5, weights: {web: .nan}}]", r"phases\[0\].weights.web is nan; it must be a finite number"),
    ],
)
def test_impossible_mixes_are_refused(corpora: str, phases: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(PretrainConfig, ["--data.mix.corpora", corpora, "--data.mix.phases", phases])


def test_one_corpus_can_be_changed_on_the_command_line() -> None:
    config = parse(PretrainConfig, ["--data.mix.corpora", TWO, "--data.mix.corpora.code.max_epochs", "4"])
    assert to_plain(config)["data"]["mix"]["corpora"] == {
        "web": {"path": "a", "weight": 0.7, "max_epochs": None},
        "code": {"path": "b", "weight": 0.3, "max_epochs": 4.0},
    }
    assert config.data.mix.weights == [0.7, 0.3]
    assert config.data.folders == ["a", "b"] and config.data.names == ["web", "code"]


def test_the_names_of_paths_are_short_and_different() -> None:
    assert names_of_paths(["x/web/shards", "x/code/shards"]) == ["web", "code"]
    assert names_of_paths(["x/web", "y/code"]) == ["web", "code"]
    assert names_of_paths(["one"]) == ["one"]
    assert names_of_paths(["a/x/b", "c/x/b", "c/y/d"]) == ["b_0", "b_1", "d"]
    assert names_of_paths(["same", "same"]) == ["same_0", "same_1"]
    assert DataConfig(paths=["x/web/shards", "x/code/shards"]).names == ["web", "code"]


def test_the_folders_of_a_file_are_those_of_its_options() -> None:
    mixed = parse(PretrainConfig, ["--data.mix.corpora", TWO])
    plain = DataConfig(paths=["x", "y"])
    assert DataConfig.folders_in(to_plain(mixed)["data"]) == mixed.data.folders == ["a", "b"]
    assert DataConfig.folders_in(to_plain(plain)) == plain.folders == ["x", "y"]
    assert DataConfig.folders_in({}) == []
