"""No option takes infinity or NaN, which would pass a comparison with its bounds."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from lit_llm import config as package
from lit_llm.cli.parsing import parse
from lit_llm.config import (
    DataConfig,
    GenerateConfig,
    OptimizerConfig,
    PretrainConfig,
    RopeScaling,
    ScheduleConfig,
    TrainerConfig,
    UserError,
    from_plain,
    to_plain,
)

KINDS = sorted(
    {kind for _, kind in inspect.getmembers(package, dataclasses.is_dataclass) if isinstance(kind, type)},
    key=lambda kind: kind.__name__,
)


def numbers(kind: type[Any]) -> Iterator[tuple[str, bool]]:
    """Fields of a configuration that take a float, and whether in a list."""
    for name, hint in get_type_hints(kind).items():
        options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if float in options:
            yield name, False
        if list[float] in options:
            yield name, True


CASES = [(kind, name, inside) for kind in KINDS for name, inside in numbers(kind)]


def test_there_are_many() -> None:
    assert len(CASES) > 60
    assert {(OptimizerConfig, "eps", False), (OptimizerConfig, "muon_learning_rate", False)} <= set(CASES)
    assert {(TrainerConfig, "gradient_clip_val", False), (DataConfig, "weights", True)} <= set(CASES)
    assert (RopeScaling, "factor", False) in CASES and (GenerateConfig, "sampling", False) not in CASES


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_infinite(value: float) -> None:
    accepted = []
    for kind, name, inside in CASES:
        required = {field.name: "x" for field in dataclasses.fields(kind) if field.default is field.default_factory}
        try:
            from_plain(kind, {**required, name: [value] if inside else value})
        except UserError as error:
            assert "\n" not in str(error)
            continue
        accepted.append(f"{kind.__name__}.{name}")
    assert accepted == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer.eps", ".inf"], "optimizer.eps is inf; it must be a finite number"),
        (["--optimizer.muon_learning_rate", "inf"], "optimizer.muon_learning_rate is inf"),
        (["--z_loss", ".nan"], "z_loss is nan"),
        (["--trainer.gradient_clip_val", ".inf"], "it must be a finite number; null turns it off"),
        (["--data.paths", "[a, b]", "--data.weights", "[1.0, .inf]"], "data.weights is [1.0, inf]"),
    ],
)
def test_the_command_line_names_the_option(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(PretrainConfig, arguments)
    assert message in str(error.value)


def test_a_run_made_in_python_is_checked_too() -> None:
    with pytest.raises(UserError, match=r"optimizer\.weight_decay is inf"):
        PretrainConfig(optimizer=OptimizerConfig(weight_decay=math.inf))
    with pytest.raises(UserError, match=r"trainer\.spike_sigmas is nan"):
        PretrainConfig(trainer=TrainerConfig(spike_sigmas=math.nan), schedule=ScheduleConfig(warmup_steps=0))
    assert from_plain(PretrainConfig, to_plain(PretrainConfig())) == PretrainConfig()
