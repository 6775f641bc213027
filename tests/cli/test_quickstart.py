"""The main job on a tiny text: every stage, the comparison, going on and starting again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from lit_llm.cli import main
from lit_llm.cli.quickstart import quickstart
from lit_llm.config import QuickstartConfig
from lit_llm.interop import load_model_folder


def run(*arguments: str) -> None:
    main(QuickstartConfig, quickstart, list(arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> tuple[Path, list[str]]:
    """The folder of a finished quickstart, and its arguments."""
    root = tmp_path_factory.mktemp("quickstart")
    arguments = ["--corpus", str(corpus_folder), "--vocab_size", "400", "--minutes", "0.01"]
    arguments += ["--output_root", str(root)]
    run(*arguments)
    return root / "quickstart", arguments


def test_it_leaves_a_model_and_a_report(finished: tuple[Path, list[str]]) -> None:
    folder, _ = finished
    model, tokenizer = load_model_folder(folder / "model")
    assert tokenizer.vocab_size == 400
    ids = torch.tensor([tokenizer.encode("def f(self):\n    return")])
    assert model(ids).shape == (1, ids.size(1), 400)
    report = (folder / "report.md").read_text()
    numbers = dict(re.findall(r"\| (this model|unigram|gzip -9|xz -9e|model minus xz) \|.*\| (-?[\d.]+) \|", report))
    bits = {name: float(value) for name, value in numbers.items()}
    assert 0 < max(bits["xz -9e"], bits["gzip -9"]) < bits["unigram"] < 8
    assert bits["model minus xz"] == pytest.approx(bits["this model"] - bits["xz -9e"], abs=2e-3)
    # twenty steps take it well below guessing, ln 400 = 5.99 nats per token
    assert 2.0 < float(re.search(r"\| this model \| ([\d.]+)", report)[1]) < 4.8
    assert report.count("\n\n    ") >= 3
    assert list((folder / "tensorboard").glob("events*"))


def test_a_second_run_is_refused_and_says_what_to_do(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arguments = finished
    before = (folder / "report.md").read_text()
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "--ckpt_path last" in errors and "--overwrite true" in errors
    assert (folder / "report.md").read_text() == before


def test_it_goes_on_from_its_last_checkpoint(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arguments = finished
    newest = sorted((folder / "checkpoints").glob("step_*.ckpt"))
    newest[-1].unlink()
    before = (folder / "model" / "model.safetensors").read_bytes()
    run(*arguments, "--ckpt_path", "last")
    assert (folder / "model" / "model.safetensors").read_bytes() == before
    assert "model minus xz" in capsys.readouterr().out


def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in (
        (["--minutes", "0"], "minutes is 0"),
        (["--ckpt_path", "step_1.ckpt"], "ckpt_path is step_1.ckpt"),
        (["--corpus", str(tmp_path / "nothing.txt"), "--output_root", str(tmp_path)], "nothing.txt"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        errors = capsys.readouterr().err
        assert message in errors and errors.count("\n") == 1


def test_the_stdlib_recipe_is_the_quickstart(tmp_path: Path) -> None:
    """The YAML for longer runs trains the same model in the same way."""
    from lit_llm.cli import parse
    from lit_llm.cli.quickstart import pretraining
    from lit_llm.config import PretrainConfig

    recipe = parse(PretrainConfig, ["--config", str(ROOT / "experiments/configs/pretrain/stdlib.yaml")])
    quick = pretraining(QuickstartConfig(), steps=recipe.trainer.max_steps)
    assert (recipe.model, recipe.optimizer, recipe.schedule) == (quick.model, quick.optimizer, quick.schedule)
    assert recipe.data.sequence_length == quick.data.sequence_length
    assert recipe.data.batch_size == quick.data.batch_size
