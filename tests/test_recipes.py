"""Every recipe is read and run for a step, with the model and the data made small."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from lit_llm.cli import parse
from lit_llm.cli.stages import pretrain
from lit_llm.config import PrepareConfig, PretrainConfig, TokenizerTrainingConfig
from lit_llm.planning import count_parameters

RECIPES = sorted((ROOT / "experiments" / "configs" / "pretrain").glob("*.yaml"))
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
    text = "\n".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    commands = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.startswith("python ")]
    scripts = {Path(words[1]).stem: words[2:] for words in commands}
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
