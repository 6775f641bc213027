"""Samples along the way leave the training alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import pytest
from conftest import MakeRun
from run_files import assert_equal_weights

from lit_llm.config import SampleConfig, SamplingConfig, UserError
from lit_llm.interop import load_model_folder
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.samples import SamplePrompts


def test_sampling_does_not_disturb_training(make_run: MakeRun) -> None:
    options = {"model": {"dropout": 0.2}, "trainer": {"val_every_n_steps": 1}}
    sampling = SamplingConfig(max_new_tokens=8, temperature=1.0)
    talking = replace(make_run("talking", **options), samples=SampleConfig(["def ", ""], sampling))
    silent = replace(make_run("silent", **options), samples=SampleConfig([]))
    assert len(pretrain(talking).samples) == 2
    assert pretrain(silent).samples == []
    assert_equal_weights(talking, silent)


def test_the_last_sample_is_what_the_model_folder_writes(make_run: MakeRun) -> None:
    """Greedy, so the text follows from the weights alone."""
    from lit_llm.generation import generate

    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    config = replace(make_run(), samples=SampleConfig(["import "], sampling))
    result = pretrain(config)
    model, tokenizer = load_model_folder(result.model_folder)
    prompt = [tokenizer.eot_id, *tokenizer.encode("import ")]
    written = generate(model, [prompt], sampling, eos_id=tokenizer.eot_id)[0]
    assert result.samples == ["import " + tokenizer.decode(written)]


def test_a_context_shorter_than_the_sample_shortens_it(make_run: MakeRun) -> None:
    sampling = SamplingConfig(max_new_tokens=500, temperature=0.0)
    config = replace(make_run(trainer={"max_steps": 2}), samples=SampleConfig(["x"], sampling))
    result = pretrain(config)
    _, tokenizer = load_model_folder(result.model_folder)
    assert 1 <= len(tokenizer.encode(result.samples[0])) <= 32


def test_long_prompts_are_cut_or_refused() -> None:
    prompts = SamplePrompts(["given", "row", "short"], [list(range(8)), list(range(20)), [5]], (0,))
    for new, kept in ((3, 7), (500, 5), (1, 9)):
        fitted = prompts.fitted(10, SamplingConfig(max_new_tokens=new), given=1)
        assert fitted.ids == [list(range(8)), list(range(20 - kept, 20)), [5]]
        assert fitted.texts == ["given", f"(its last {kept} tokens are read) row", "short"]
    with pytest.raises(UserError, match=r"samples\.prompts: a prompt of 8 tokens leaves no room in the context of 8 "):
        prompts.fitted(8, SamplingConfig(), given=1)


class Modes(L.Callback):
    """Notes whether dropout is on at each step."""

    def __init__(self) -> None:
        self.training: list[bool] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self.training.append(all(module.training for module in pl_module.model.modules()))


def test_the_model_is_in_training_mode_again(make_run: MakeRun) -> None:
    modes = Modes()
    pretrain(make_run(trainer={"max_steps": 3, "val_every_n_steps": 1}), callbacks=[modes])
    assert modes.training == [True, True, True]
