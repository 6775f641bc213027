"""A checkpoint becomes the model folder that the run itself would have written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, MakeRun
from ranks import run_ranks

from lit_llm.cli.commands import COMMANDS
from lit_llm.config import ExportConfig, PretrainConfig, UserError
from lit_llm.evaluation.model_card import CARD, UNMEASURED
from lit_llm.evaluation.safety.finding import About, Finding
from lit_llm.evaluation.safety.report import SafetyReport, write_summary
from lit_llm.interop import load_model_folder, load_weights, read_model_config
from lit_llm.stages.checkpoints import read_trained_model
from lit_llm.stages.pretrain import pretrain

export = COMMANDS["export"].run


def assert_same_model(one: Path, other: Path) -> None:
    config = read_model_config(one)
    assert config == read_model_config(other)
    weights, others = load_weights(one, config), load_weights(other, config)
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    load_model_folder(other)


@pytest.fixture
def run(make_run: MakeRun) -> PretrainConfig:
    config = make_run(trainer={"max_steps": 2, "save_every_n_steps": 1, "val_every_n_steps": None})
    pretrain(config)
    return config


def test_a_checkpoint_and_a_run_folder(
    run: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    newest = run.folder / "checkpoints" / "step_00000002.ckpt"
    export(ExportConfig(str(newest), str(tmp_path / "one")))
    assert_same_model(run.folder / "model", tmp_path / "one")
    export(ExportConfig(str(run.folder), str(tmp_path / "two"), tokenizer=str(shards / "tokenizer")))
    assert_same_model(run.folder / "model", tmp_path / "two")
    assert capsys.readouterr().out.splitlines()[-1] == f"model folder  {tmp_path / 'two'} (step 2 of {newest})"
    _what_is_known_of_its_safety_goes_along(run.folder, tmp_path / "exported")

    newest.write_bytes(newest.read_bytes()[:-100])
    export(ExportConfig(str(run.folder), str(tmp_path / "one"), overwrite=True))
    assert f"(step 1 of {run.folder}" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        assert_same_model(run.folder / "model", tmp_path / "one")


def _what_is_known_of_its_safety_goes_along(run: Path, folder: Path) -> None:
    """Into the cards of what has the same weights, and into no other."""
    about = About("Toxicity by list", "", "")
    write_summary(run / "model", SafetyReport({}, {"toxicity": Finding(about, "2 of 9 texts", {})}, {}), "none")
    older = run / "checkpoints" / "step_00000001.ckpt"
    exported = {
        "run": ExportConfig(str(run), str(folder / "run")),
        "model": ExportConfig(str(run / "model"), str(folder / "model")),
        "int8": ExportConfig(str(run), str(folder / "int8"), quantize="int8"),
        "gguf": ExportConfig(str(run), str(folder / "gguf"), format="gguf"),
        "older": ExportConfig(str(older), str(folder / "older")),
    }
    for name, config in exported.items():
        export(config)
        card = (folder / name / CARD).read_text()
        assert ("| Toxicity by list | 2 of 9 texts |" in card) is (name != "older") is (UNMEASURED not in card)
        assert card.count("## Safety") == (name != "older")
        assert ("The weights were rounded to int8 after that." in card) is (name == "int8")


def test_a_run_is_read_without_lightning(run: PretrainConfig, tmp_path: Path) -> None:
    expected, _ = load_model_folder(run.folder / "model")
    tokens = torch.arange(12).view(1, 12)
    for path, step in ((run.folder, 2), (str(run.folder / "checkpoints" / "step_00000001.ckpt"), 1)):
        trained = read_trained_model(path)
        decoder = trained.decoder()
        assert (trained.step, trained.model, trained.run["run_name"]) == (step, expected.config, run.run_name)
        with torch.no_grad():
            assert torch.equal(decoder(tokens), expected(tokens)) == (step == 2)
    # what is done to the model does not reach what was read
    with torch.no_grad():
        decoder.embedding.weight.zero_()
    assert trained.weights["embedding.weight"].any()
    with pytest.raises(UserError, match="neither a checkpoint"):
        read_trained_model(tmp_path / "nowhere")


def test_what_cannot_be_exported_is_said(run: PretrainConfig, tmp_path: Path, shards: Path) -> None:
    output = str(tmp_path / "model")
    with pytest.raises(UserError, match="neither a checkpoint"):
        export(ExportConfig(str(tmp_path), output))
    with pytest.raises(UserError, match="neither a checkpoint"):
        export(ExportConfig(str(tmp_path / "missing"), output))
    broken = tmp_path / "step_00000009.ckpt"
    broken.write_bytes(b"half")
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        export(ExportConfig(str(broken), output))
    export(ExportConfig(str(run.folder), output))
    with pytest.raises(UserError, match="already holds a model; --overwrite true"):
        export(ExportConfig(str(run.folder), output))
    (tmp_path / "gone" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export(ExportConfig(str(tmp_path / "gone"), output, overwrite=True))
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2"}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="was not written by this package"):
        export(ExportConfig(str(tmp_path / "foreign.ckpt"), output, overwrite=True))


def test_the_tokenizer_may_have_moved(make_run: MakeRun, tmp_path: Path, shards: Path) -> None:
    shutil.copytree(shards, tmp_path / "data")
    config = make_run(data={"paths": [str(tmp_path / "data")]}, trainer={"max_steps": 2, "val_every_n_steps": None})
    pretrain(config)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match=r"the tokenizer of the run is not at .*; give one with --tokenizer"):
        export(ExportConfig(str(config.folder), str(tmp_path / "model")))
    export(ExportConfig(str(config.folder), str(tmp_path / "model"), tokenizer=str(shards / "tokenizer")))
    assert_same_model(config.folder / "model", tmp_path / "model")


@pytest.mark.slow
def test_a_sharded_checkpoint_by_the_script(make_run: MakeRun, tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "fsdp", "tensor_parallel_size": 2, "sharded_checkpoints": True}
    config = make_run(trainer={**trainer, "max_steps": 2})
    run_ranks(pretrain, 2, tmp_path, config)
    command = [sys.executable, str(ROOT / "experiments" / "export.py"), "--checkpoint", str(config.folder)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "model")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_same_model(config.folder / "model", tmp_path / "model")
