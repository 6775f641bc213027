"""What a run draws after it was resumed is what it would have drawn."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lit_llm.config import UserError
from lit_llm.training.resume import ExactResume


def draws() -> list[float]:
    """Two numbers of each generator that training may draw from; a normal one keeps its second half in the state."""
    normal = [random.gauss(0.0, 1.0), np.random.standard_normal(), float(torch.randn(()))]
    return [*normal, random.random(), np.random.random(), float(torch.rand(()))]


def trainer_of(world_size: int) -> Any:
    return SimpleNamespace(strategy=None, world_size=world_size, global_rank=0)


def begin(callback: ExactResume, world_size: int = 1) -> None:
    """The start of a run up to its first batch."""
    trainer = trainer_of(world_size)
    callback.on_train_start(trainer, None)
    callback.on_train_batch_start(trainer, None, None, 0)


def test_a_resumed_run_draws_on_from_where_it_was_saved_and_once() -> None:
    first = ExactResume(seed=3, samples_per_micro_batch=1)
    begin(first)
    fresh = draws()
    saved = first.state_dict()
    expected = [draws(), draws()]
    resumed = ExactResume(seed=3, samples_per_micro_batch=1)
    resumed.load_state_dict(saved)
    begin(resumed)
    found = draws()
    resumed.on_train_batch_start(trainer_of(1), None, None, 1)  # the next batch draws on
    assert [found, draws()] == expected and fresh != expected[0]


def test_without_the_streams_of_this_run_the_seed_gives_fresh_ones() -> None:
    first = ExactResume(seed=3, samples_per_micro_batch=1)
    begin(first)
    fresh = draws()
    saved = first.state_dict()
    # two ranks, which have not one stream between them; a torch whose generators may differ
    other_torch = {"ranks": [{**saved["ranks"][0], "torch_version": "0.1"}]}
    for state, world_size in ((saved, 2), (other_torch, 1)):
        resumed = ExactResume(seed=3, samples_per_micro_batch=1)
        resumed.load_state_dict(state)
        begin(resumed, world_size)
        assert draws() == fresh
    with pytest.raises(UserError, match="holds no random states"):
        first.load_state_dict({})
