"""A run that meets a loss that is not finite leaves a checkpoint of the step before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from ranks import run_ranks
from run_files import assert_identical, checkpoints

from lit_llm.config import NonFiniteStep, PretrainConfig
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint_io import read_checkpoint


class Poison(L.Callback):
    """Makes the logits of one micro-batch NaN."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch
        self.begun = 0

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.begun += 1
        if batch_idx == self.micro_batch:
            pl_module.model.final_norm.register_forward_hook(lambda module, args, output: output * torch.nan)


OPTIONS: dict[str, Any] = {"model": {"dropout": 0.2}, "data": {"micro_batch_size": 1}}


def meet_nan(config: PretrainConfig, micro_batch: int) -> None:
    with pytest.raises(NonFiniteStep, match="is not finite"):
        pretrain(config, callbacks=[Poison(micro_batch)])


# four micro-batches in each step; validation at step 3: before the step, after it, and in the middle of a step
@pytest.mark.parametrize(
    ("micro_batch", "step", "background"), [(9, 2, False), (12, 3, False), (19, 4, False), (19, 4, True)]
)
def test_it_is_the_checkpoint_that_saving_every_step_would_have_left(
    micro_batch: int, step: int, background: bool, make_run: MakeRun
) -> None:
    trainer = {"max_steps": 6, "val_every_n_steps": 3, "async_checkpoints": background}
    always = make_run("always", trainer={**trainer, "save_every_n_steps": 1}, **OPTIONS)
    never = make_run("never", trainer={**trainer, "save_every_n_steps": None}, **OPTIONS)
    meet_nan(always, micro_batch)
    meet_nan(never, micro_batch)
    assert max(checkpoints(always)) == step
    assert list(checkpoints(never)) == [step]
    states = [read_checkpoint(checkpoints(config)[step]) for config in (always, never)]
    for state in states:
        state.pop("lit_llm_config")
        if step == 4:  # the best is one of those that were saved, and only one run has saved step 3
            state["callbacks"].pop("CheckpointPolicy")
    assert_identical(states[0], states[1])


def test_there_is_none_of_step_0(make_run: MakeRun) -> None:
    config = make_run(**OPTIONS)
    meet_nan(config, 1)
    assert not checkpoints(config)


def test_ranks_stop_together(make_run: MakeRun, tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "fsdp", "max_steps": 4, "val_every_n_steps": None}
    shards = {**trainer, "sharded_checkpoints": True}
    always = make_run("always", trainer={**shards, "save_every_n_steps": 1, "async_checkpoints": True}, **OPTIONS)
    never = make_run("never", trainer={**trainer, "save_every_n_steps": None}, **OPTIONS)
    run_ranks(meet_nan, 2, tmp_path, always, 5)  # two micro-batches in each step
    run_ranks(meet_nan, 2, tmp_path, never, 5)
    states = [read_checkpoint(checkpoints(config)[2]) for config in (always, never)]
    for state in states:
        state.pop("lit_llm_config")
        state["state_dict"] = dict(state["state_dict"])
    assert_identical(states[0], states[1])
