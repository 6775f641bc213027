"""Every recipe is read and run for a step, with the model and the data made small."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from chat_rows import pair, save_policy, talk, write_rows
from conftest import ROOT
from ranks import STAGES
from recipe_comments import commands_above
from stage_runs import chat_tokenizer

from lit_llm.cli import parse
from lit_llm.config import (
    DPOConfig,
    PostTrainingConfig,
    PPOConfig,
    PrepareConfig,
    PretrainConfig,
    QuickstartConfig,
    RewardConfig,
    SFTConfig,
    TokenizerTrainingConfig,
)
from lit_llm.planning import count_parameters
from lit_llm.quickstart.later_stages import Files
from lit_llm.stages.pretrain import pretrain

CONFIGS = ROOT / "experiments" / "configs"
RECIPES = sorted((CONFIGS / "pretrain").glob("*.yaml"))
KINDS: dict[str, type[PostTrainingConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
}
POST_TRAINING = sorted(path for stage in KINDS for path in (CONFIGS / stage).glob("*.yaml"))
MILLIONS = {"gpt2_124m": 124.5, "llama3_1b": 1038.7}
SMALL = shlex.split("""
    --model.hidden_size 32 --model.num_layers 2 --model.num_heads 4 --model.num_key_value_heads null
    --model.head_dim null --model.intermediate_size null --model.max_position_embeddings 32
    --data.sequence_length 32 --data.batch_size 4 --data.validation_windows 2 --data.validation_batch_size 2
    --schedule.warmup_steps 1 --trainer.max_steps 1 --trainer.accelerator cpu --trainer.devices 1
    --trainer.compile false --trainer.log_every_n_steps 1 --trainer.enable_progress_bar false
    --samples.sampling.max_new_tokens 2
""")


def test_there_are_recipes() -> None:
    assert set(MILLIONS) < {path.stem for path in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_one_step(recipe: Path, shards: Path, tmp_path: Path) -> None:
    whole = parse(PretrainConfig, ["--config", str(recipe)])
    assert whole.run_name == recipe.stem
    micro = "null" if whole.data.micro_batch_size is None else "2"
    places = ["--data.paths", f"[{shards}]", "--data.micro_batch_size", micro, "--output_root", str(tmp_path)]
    config = parse(PretrainConfig, ["--config", str(recipe), *SMALL, *places])
    # what is not about size is as the recipe has it
    for group in ("optimizer", "samples"):
        assert type(getattr(config, group)) is type(getattr(whole, group))
    assert config.optimizer == whole.optimizer
    assert config.trainer.precision == whole.trainer.precision
    assert config.model.activation == whole.model.activation
    result = pretrain(config)
    assert 4.0 < result.metrics["train/loss"] < 8.0
    assert torch.load(config.folder / "checkpoints" / "step_00000001.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_commands_above_it_are_right(recipe: Path) -> None:
    """The comment says how to make the data that the recipe reads, and how to run it."""
    scripts = commands_above(recipe)
    assert list(scripts) == ["train_tokenizer", "prepare_data", "pretrain"]
    tokenizer = parse(TokenizerTrainingConfig, scripts["train_tokenizer"])
    prepared = parse(PrepareConfig, scripts["prepare_data"])
    assert scripts["pretrain"] == ["--config", str(recipe.relative_to(ROOT))]
    run = parse(PretrainConfig, ["--config", str(recipe)])
    assert prepared.tokenizer == tokenizer.output
    assert run.data.paths == [prepared.output]


@pytest.mark.parametrize("name", MILLIONS)
def test_the_size_in_the_name(name: str) -> None:
    recipe = ROOT / "experiments" / "configs" / "pretrain" / f"{name}.yaml"
    config = parse(PretrainConfig, ["--config", str(recipe)])
    words = recipe.read_text().partition("--vocab_size ")[2].split()
    config.model.vocab_size = int(words[0])
    assert count_parameters(config.model) / 1e6 == pytest.approx(MILLIONS[name], rel=0.005)


# the stages after pretraining


def name_of(recipe: Path) -> str:
    return f"{recipe.parent.name}_{recipe.stem}"


def test_each_stage_has_recipes() -> None:
    found = {name_of(path) for path in POST_TRAINING}
    assert {"sft_stdlib", "reward_stdlib", "dpo_stdlib", "sft_instructions", "dpo_preferences"} < found
    assert {path.parent.name for path in POST_TRAINING} == set(KINDS)


@pytest.mark.parametrize("recipe", POST_TRAINING, ids=name_of)
def test_one_step_of_a_later_stage(recipe: Path, tmp_path: Path) -> None:
    kind = KINDS[recipe.parent.name]
    whole = parse(kind, ["--config", str(recipe)])
    assert whole.run_name == name_of(recipe)
    policy = save_policy(tmp_path / "policy", chat_tokenizer())
    form = getattr(whole.data, "form", "auto")
    if kind is not SFTConfig:
        rows = [pair(letter, "b", "cc") for letter in "bcdfghjk"]
    elif form == "alpaca":
        rows = [{"instruction": letter, "input": "d", "output": "fgh"} for letter in "bcdfghjk"]
    else:
        rows = [talk(letter, "fgh") for letter in "bcdfghjk"]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    small = f"""
        --config {recipe} --init_from {policy} --output_root {tmp_path} --data.paths [{data}] --sample_prompts 0
        --data.sequence_length 40 --data.batch_size 2 --schedule.warmup_steps 0 --epochs null --trainer.max_steps 1
        --trainer.accelerator cpu --trainer.devices 1 --trainer.log_every_n_steps 1 --trainer.enable_progress_bar false
    """
    words = shlex.split(small)
    if whole.data.validation_paths:
        words += ["--data.validation_paths", f"[{data}]"]
    if kind is PPOConfig:
        words += shlex.split("--max_new_tokens 8")
    config = parse(kind, words)
    # what is not about size is as the recipe has it
    assert config.optimizer == whole.optimizer and config.lora == whole.lora
    assert config.trainer.precision == whole.trainer.precision
    result = STAGES[kind](config)
    assert "val/loss" in result.metrics or kind is PPOConfig
    assert (config.folder / "checkpoints" / "step_00000001.ckpt").exists()
    assert (config.folder / "adapter").exists() is whole.lora.active


@pytest.mark.parametrize("recipe", POST_TRAINING, ids=name_of)
def test_the_commands_above_a_later_stage_are_right(recipe: Path) -> None:
    """The comment says how to make what the recipe reads, or what to give it instead."""
    stage = recipe.parent.name
    scripts = commands_above(recipe)
    assert list(scripts)[-1] == stage
    assert scripts[stage][:2] == ["--config", str(recipe.relative_to(ROOT))]
    config = parse(KINDS[stage], scripts[stage])
    assert config.init_from and config.data.paths
    if "quickstart" not in scripts:
        return
    quickstart = parse(QuickstartConfig, scripts["quickstart"])
    files = Files(quickstart.folder)
    assert Path(config.init_from) in {quickstart.folder, quickstart.folder / "sft"}
    known = {
        str(kind(split)) for kind in (files.pairs, files.corrupted, files.sampled) for split in ("train", "validation")
    }
    assert {*config.data.paths, *config.data.validation_paths} <= known
    assert "sft" in quickstart.stages or Path(config.init_from) == quickstart.folder
