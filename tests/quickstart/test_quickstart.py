"""The main job on a tiny text: every stage, the comparison, going on and starting again."""

from __future__ import annotations

import json
import re
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from lit_llm.cli import main, parse
from lit_llm.config import CorpusConfig, PretrainConfig, QuickstartConfig
from lit_llm.data.corpus.documents import Corpus
from lit_llm.interop import load_model_folder, read_model_config
from lit_llm.quickstart.functions import parses
from lit_llm.quickstart.run import pretraining, quickstart

FEW = ("asyncio", "json", "wsgiref", "urllib")


def run(*arguments: str) -> None:
    main(QuickstartConfig, quickstart, list(arguments))


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some files of the standard library, of which those for validation have functions with docstrings."""
    folder = tmp_path_factory.mktemp("modules")
    for package in FEW:
        for path in (Path(sysconfig.get_paths()["stdlib"]) / package).glob("*.py"):
            if path.stat().st_size < 15_000:
                shutil.copy(path, folder / f"{package}_{path.name}")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> tuple[Path, list[str]]:
    """The folder of a finished quickstart, and its arguments."""
    root = tmp_path_factory.mktemp("quickstart")
    arguments = ["--corpus", str(modules), "--vocab_size", "400", "--minutes", "0.01"]
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
    assert list((folder / "tensorboard").glob("*/events*"))


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
    for option, value in (("--seed", "3"), ("--corpus", str(folder)), ("--vocab_size", "401")):
        with pytest.raises(SystemExit):
            run(*arguments, "--ckpt_path", "last", option, value)
        errors = capsys.readouterr().err
        assert f"was begun with {option[2:]} " in errors and f"(now: {value})" in errors and errors.count("\n") == 1
    run(*arguments, "--ckpt_path", "last")
    assert (folder / "model" / "model.safetensors").read_bytes() == before
    assert "model minus xz" in capsys.readouterr().out


def test_last_needs_something_to_go_on_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run("--ckpt_path", "last", "--output_root", str(tmp_path))
    errors = capsys.readouterr().err
    assert "there is nothing to resume" in errors and errors.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def aligned(finished: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder after the other stages, which have used the finished pretraining; and the arguments of that run."""
    source, arguments = finished
    root = tmp_path_factory.mktemp("aligned")
    shutil.copytree(source, root / "quickstart")
    arguments = [*arguments[:-1], str(root), "--stages", "pretrain,sft,reward,dpo"]
    run(*arguments)
    return root / "quickstart", arguments


def rows_of(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_the_stages_leave_their_models(aligned: tuple[Path, list[str]], finished: tuple[Path, list[str]]) -> None:
    folder, _ = aligned
    weights = {"pretrain": folder / "model", **{stage: folder / stage / "model" for stage in ("sft", "reward", "dpo")}}
    contents = {stage: (path / "model.safetensors").read_bytes() for stage, path in weights.items()}
    assert contents["pretrain"] == (finished[0] / "model" / "model.safetensors").read_bytes()
    assert len(set(contents.values())) == 4
    assert [read_model_config(path).output for path in weights.values()] == ["tokens", "tokens", "score", "tokens"]
    assert all((folder / stage / "report.md").exists() for stage in ("sft", "reward", "dpo"))


@pytest.mark.slow
def test_rows_are_split_by_file_as_the_text_is(aligned: tuple[Path, list[str]], modules: Path) -> None:
    folder, _ = aligned
    split = {
        document.key: document.split for document in Corpus(CorpusConfig(path=str(modules), split="hash")).documents()
    }
    for part in ("train", "validation"):
        rows = rows_of(folder / "pairs" / f"{part}.jsonl")
        assert rows and {split[row["place"].partition(":")[0]] for row in rows} == {part}
        spoiled = rows_of(folder / "preferences" / f"corrupted_{part}.jsonl")
        assert [row["chosen"][0] for row in spoiled] == [row["messages"][1] for row in rows]
        assert all(parses(row["chosen"][0]["content"]) for row in spoiled)
    train, held_out = (
        {row["prompt"][0]["content"] for row in rows_of(folder / "preferences" / f"sampled_{part}.jsonl")}
        for part in ("train", "validation")
    )
    assert train and held_out and not train & held_out


@pytest.mark.slow
def test_the_report_compares_the_stages(aligned: tuple[Path, list[str]]) -> None:
    folder, _ = aligned
    report = (folder / "report.md").read_text()
    assert "| this model |" in report  # what pretraining has reported is still there
    rows = {
        cells[0]: cells[1:]
        for line in report.partition("## On held-out requests")[2].splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 7
    }
    assert [name for name in rows if name in ("pretrain", "sft", "reward", "dpo")] == [
        "pretrain",
        "sft",
        "reward",
        "dpo",
    ]
    for stage in ("pretrain", "sft", "dpo"):
        parse_rate, loss, tokens, reward, accuracy, margin = rows[stage]
        assert 0 <= int(parse_rate.rstrip("%")) <= 100
        assert 2.0 < float(loss) < 7.0 and 0 < float(tokens) <= 112 and -20 < float(reward) < 20 and accuracy == ""
        assert (margin == "") == (stage != "dpo")
    # fine-tuning has to bring the loss of the held-out functions down
    assert float(rows["sft"][1]) < float(rows["pretrain"][1])
    assert re.fullmatch(r"\d+% \(\d+% to \d+%\)", rows["reward"][4])
    assert rows["reward"][:4] == [""] * 4
    for name in ("request", "pretrain", "sft", "dpo"):
        assert 2 <= report.count(f"\n{name}:\n") <= 3


@pytest.mark.slow
def test_an_interrupted_stage_goes_on(
    aligned: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without its model the stage is not finished; what comes after it is not there yet either."""
    source, arguments = aligned
    folder = tmp_path / "quickstart"
    shutil.copytree(source, folder)
    arguments = [*arguments[:-3], str(tmp_path), "--stages", "sft"]
    before = (folder / "sft" / "model" / "model.safetensors").read_bytes()
    rows = (folder / "sft" / "config.yaml").read_text()
    (folder / "sft" / "config.yaml").write_text(rows.replace(str(source.parent), str(tmp_path)))
    shutil.rmtree(folder / "sft" / "model")
    sorted((folder / "sft" / "checkpoints").glob("step_*.ckpt"))[-1].unlink()
    with pytest.raises(SystemExit):
        run(*arguments)
    errors = capsys.readouterr().err
    assert "quickstart/sft already holds a run" in errors and "--ckpt_path last" in errors
    run(*arguments, "--ckpt_path", "last")
    assert (folder / "sft" / "model" / "model.safetensors").read_bytes() == before
    assert f"experiments/chat.py --model {folder / 'sft'}" in " ".join(capsys.readouterr().out.split())


def test_a_stage_without_its_input_names_what_to_add(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for stages, message in (
        ("sft", "stage sft starts from the model of stage pretrain"),
        ("pretrain,dpo", "add it: --stages pretrain,sft,dpo"),
        ("reward", "add it: --stages pretrain,sft,reward"),
        ("pretrain,sfft", "stages has 'sfft'; it takes pretrain, sft, reward, dpo"),
    ):
        with pytest.raises(SystemExit):
            run("--stages", stages, "--output_root", str(tmp_path))
        errors = capsys.readouterr().err
        assert message in errors and errors.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_text_without_functions_is_pretrained_on_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert parse(QuickstartConfig, ["--corpus", "texts"]).stages == ["pretrain"]
    assert parse(QuickstartConfig, []).stages == ["pretrain", "sft", "reward", "dpo"]
    text = tmp_path / "prose.txt"
    text.write_text("It was a dark and stormy night. " * 400)
    with pytest.raises(SystemExit):
        run("--corpus", str(text), "--stages", "pretrain,sft", "--vocab_size", "270", "--output_root", str(tmp_path))
    errors = capsys.readouterr().err
    assert "no train file has a function with a docstring" in errors
    assert not (tmp_path / "quickstart" / "model").exists()


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
    """The YAML for longer runs trains the same model in the same way, at lower rates as it has more steps."""
    recipe = parse(PretrainConfig, ["--config", str(ROOT / "experiments/configs/pretrain/stdlib.yaml")])
    quick = pretraining(QuickstartConfig(), steps=recipe.trainer.max_steps)
    names = ("learning_rate", "muon_learning_rate")
    rates, higher = ([getattr(run.optimizer, name) for name in names] for run in (recipe, quick))
    assert all(rate < other for rate, other in zip(rates, higher, strict=True))
    optimizer = replace(recipe.optimizer, **dict(zip(names, higher, strict=True)))
    assert (recipe.model, optimizer, recipe.schedule) == (quick.model, quick.optimizer, quick.schedule)
    assert recipe.data.sequence_length == quick.data.sequence_length
    assert recipe.data.batch_size == quick.data.batch_size
