"""Invariant 9, continued: the optimizer, the schedule and the run as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun
from run_files import assert_identical, tensorboard_events
from test_options import short_run, values, watched
from test_resume import curves, final_state

from lit_llm.config import SampleConfig, SamplingConfig, UserError
from lit_llm.stages.pretrain import pretrain

# optimizer and schedule

ADAMW_OPTIONS = [
    ({"learning_rate": 1e-2}, "adamw_decay", "initial_lr", 1e-2),
    ({"learning_rate": 1e-2}, "adamw_no_decay", "initial_lr", 1e-2),
    ({"beta1": 0.5}, "adamw_decay", "betas", (0.5, 0.95)),
    ({"beta2": 0.5}, "adamw_no_decay", "betas", (0.9, 0.5)),
    ({"eps": 1e-3}, "adamw_decay", "eps", 1e-3),
    ({"weight_decay": 0.5}, "adamw_decay", "weight_decay", 0.5),
    ({"weight_decay": 0.5}, "adamw_no_decay", "weight_decay", 0.0),
    ({"fused": False}, "adamw_decay", "fused", False),
    ({"name": "muon", "muon_learning_rate": 0.1}, "muon", "initial_lr", 0.1),
    ({"name": "muon", "weight_decay": 0.5}, "muon", "weight_decay", 0.5),
]


@pytest.mark.parametrize(("options", "group", "key", "expected"), ADAMW_OPTIONS)
def test_optimizer_options_reach_the_groups(
    options: dict[str, Any], group: str, key: str, expected: Any, make_run: MakeRun
) -> None:
    assert (
        watched(
            short_run(
                make_run,
                optimizer=options,
            )
        ).groups[group][key]
        == expected
    )


@pytest.mark.parametrize(
    "options",
    [
        {"muon_momentum": 0.5, "muon_momentum_warmup_steps": 0},
        {"muon_momentum_start": 0.2},
        {"muon_momentum_warmup_steps": 0},
        {"muon_ns_steps": 1},
        {"muon_ns_dtype": "bfloat16"},
        {"beta1": 0.5},
        {"eps": 1e-2},
    ],
    ids=str,
)
def test_muon_options_change_the_second_step(options: dict[str, Any], make_run: MakeRun, plain_muon: Any) -> None:
    """The first update is the same for any momentum; from the second on the weights tell."""
    config = short_run(make_run, "other", steps=3, optimizer={"name": "muon", **options})
    pretrain(config)
    reference = plain_muon(make_run)
    other = final_state(config)["state_dict"]
    moved = max(float((reference[name] - other[name]).abs().max()) for name in reference if "token_bytes" not in name)
    assert moved > 1e-5


@pytest.fixture(scope="module")
def plain_muon() -> Iterator[Callable[[MakeRun], dict[str, torch.Tensor]]]:
    """Weights after three steps of Muon at the default options, trained once."""
    kept: list[dict[str, torch.Tensor]] = []

    def weights(make_run: MakeRun) -> dict[str, torch.Tensor]:
        if not kept:
            config = short_run(make_run, "plain", steps=3, optimizer={"name": "muon"})
            pretrain(config)
            kept.append(final_state(config)["state_dict"])
        return kept[0]

    yield weights


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"name": "linear"}, [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]),
        ({"name": "constant"}, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # the last three of six steps go down
        ({"name": "wsd", "decay_fraction": 0.5}, [0.5, 1.0, 1.0, 1.0, 0.7, 0.4]),
        (
            {"name": "cosine", "min_ratio": 0.0},
            [0.5, 1.0] + [0.5 + 0.5 * math.cos(math.pi * part / 4) for part in (0, 1, 2, 3)],
        ),
        ({"name": "linear", "warmup_steps": 0, "min_ratio": 0.4}, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]),
    ],
    ids=["linear", "constant", "wsd", "cosine", "no warm-up"],
)
def test_schedule(options: dict[str, Any], shares: list[float], make_run: MakeRun) -> None:
    trainer = {"val_every_n_steps": None, "save_every_n_steps": None}
    config = make_run(schedule=options, trainer=trainer, optimizer={"name": "muon"}, data={"micro_batch_size": 2})
    pretrain(config)
    points = curves(config)
    for name, peak in (("muon", 0.02), ("adamw_no_decay", 3e-3)):
        assert values(points[f"learning_rate/{name}"]) == pytest.approx([peak * share for share in shares], abs=1e-9)


# the run


def test_run_name_and_output_root(make_run: MakeRun, tmp_path: Path) -> None:
    config = short_run(
        make_run,
        "team/first",
    )
    pretrain(config)
    written = {path.name for path in (tmp_path / "team" / "first").iterdir()}
    assert written == {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "model",
        "report.html",
        "report.md",
    }
    with pytest.raises(UserError, match="run_name"):
        make_run("../first")


def test_seed(make_run: MakeRun) -> None:
    runs = {name: short_run(make_run, name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))}
    batches = {name: watched(config).micro_batches[0]["tokens"] for name, config in runs.items()}
    weights = {name: final_state(config)["state_dict"] for name, config in runs.items()}
    assert_identical(weights["a"], weights["b"])
    assert not torch.equal(weights["a"]["model.embedding.weight"], weights["c"]["model.embedding.weight"])
    assert torch.equal(batches["a"], batches["b"]) and not torch.equal(batches["a"], batches["c"])


def test_init_from(make_run: MakeRun) -> None:
    first = make_run("first")
    pretrain(first)
    still = {"learning_rate": 1e-12, "weight_decay": 0.0}
    # the folder's shape replaces that of the options
    second = short_run(
        make_run,
        "second",
        init_from=str(first.folder),
        model={"num_layers": 1, "vocab_size": None},
        optimizer=still,
        seed=5,
    )
    pretrain(second)
    assert second.model == first.model
    assert values(curves(second)["val/loss"]) == pytest.approx(values(curves(first)["val/loss"])[-1:], abs=1e-6)
    fresh = short_run(
        make_run,
        "fresh",
        optimizer=still,
    )
    pretrain(fresh)
    assert values(curves(fresh)["val/loss"])[0] > values(curves(second)["val/loss"])[0] + 0.02


def test_samples(make_run: MakeRun) -> None:
    prompts = ["def ", "", "import "]
    samples = SampleConfig(prompts=prompts, sampling=SamplingConfig(max_new_tokens=5))
    config = replace(make_run(trainer={"max_steps": 4, "val_every_n_steps": 2}), samples=samples)
    result = pretrain(config)
    events = tensorboard_events(config)
    for number, prompt in enumerate(prompts):
        written = events.Tensors(f"samples/{number}/text_summary")
        assert [event.step for event in written] == [2, 4]
        text = written[-1].tensor_proto.string_val[0].decode()
        assert text.splitlines()[0].startswith(f"    {prompt}".rstrip())
        assert result.samples[number].startswith(prompt)
    silent = short_run(make_run, "silent")
    assert pretrain(silent).samples == []
    assert not [name for name in tensorboard_events(silent).Tags()["tensors"] if name.startswith("samples/")]
