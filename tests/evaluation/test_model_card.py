"""The card in a model folder: what the Hub reads of it is right, and its code runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRun
from stage_runs import make_stage, run_stage

from lit_llm.evaluation.model_card import ModelCard, front_matter, hub_name, render, stage_of_options
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.run_facts import DataFacts

huggingface_hub = pytest.importorskip("huggingface_hub")


def run_code(folder: Path) -> dict[str, Any]:
    """Run the first Python of a card as it stands, but for the folder; returns what it has made."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(code.replace('"."', repr(str(folder))), names)
    return names


def test_a_pretrained_model(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_run("team/first", trainer={"max_steps": 2})
    result = pretrain(config)
    folder = result.model_folder
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert {"lit_llm", "pretrain"} <= set(card.data.tags)
    assert card.data.license is None and card.data.base_model is None and card.data.datasets is None
    assert card.data.model_name == "team-first-pretrain"
    found = {each.metric_name: each.metric_value for each in card.data.eval_results}
    wanted = {name: value for name, value in result.metrics.items() if name.startswith("val/")}
    assert found == {name: pytest.approx(value, abs=1e-6) for name, value in wanted.items()}
    assert {"val/loss", "val/perplexity", "val/bits_per_byte"} == found.keys()
    assert f"| val/loss | {result.metrics['val/loss']:.4f} |" in card.text
    for what in ("| steps | 2 |", "| tokens read | 256 |", "| optimizer.learning_rate | 0.003 |", "pretrained on text"):
        assert what in card.text
    assert result.facts.data[0].digest in card.text
    pytest.importorskip("transformers")
    capsys.readouterr()
    run_code(folder)
    assert capsys.readouterr().out.strip()
    # what starts from a model with a license is under it
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(
        text.replace("library_name:", "license: mit\nbase_model: some/base\nlibrary_name:", 1)
    )
    second = make_run("second", init_from=str(folder), trainer={"max_steps": 2})
    data = huggingface_hub.ModelCard.load(pretrain(second).model_folder / "README.md").data
    assert data.license == "mit" and data.base_model == "some/base"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_the_stages_after_it(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    schedule = {"name": "constant", "warmup_steps": 0}
    lora = {"rank": 2} if stage == "sft" else {}
    trainer = {"max_steps": 1, "val_every_n_steps": 1}
    config = make_stage(stage, tmp_path, trainer=trainer, data={"batch_size": 4}, schedule=schedule, lora=lora)
    folder = run_stage(config).model_folder
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    task = "text-classification" if stage == "reward" else "text-generation"
    assert card.data.pipeline_tag == task and stage in card.data.tags
    assert card.data.base_model is None and "starting from" in card.text
    assert str(tmp_path) not in (folder / "README.md").read_text()  # folders of this machine are its owner's business
    metrics = {each.metric_type for each in card.data.eval_results}
    assert "loss" in metrics and "accuracy" in metrics
    capsys.readouterr()
    run_code(folder)
    written = capsys.readouterr().out
    if stage == "reward":
        assert math.isfinite(float(written))
    if lora:
        pytest.importorskip("peft")
        adapter = huggingface_hub.ModelCard.load(config.folder / "adapter" / "README.md")
        assert adapter.data.library_name == "peft" and "An adapter (LoRA)" in adapter.text
        assert run_code(config.folder / "adapter")["model"].peft_config["default"].r == 2


def test_names_of_the_hub(tmp_path: Path, make_run: MakeRun) -> None:
    assert hub_name("/root/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/abc") == "Qwen/Qwen3-0.6B"
    assert hub_name(str(tmp_path)) is None
    model = make_run().model
    data = [
        DataFacts("train", "a.jsonl, b", "9 rows", "12", "a.jsonl, hf:user/rows:config[train], hf:squad"),
        DataFacts("validation", "shards", "9 tokens", "34", "hf:user/rows"),
    ]
    results = {"val/loss": 2.0, "test/loss": 3.0, "val/nan": math.nan, "train/loss": 1.0}
    card = ModelCard("name", model, "sft", data=data, results=results, license="mit", start="models--a--b")
    (tmp_path / "README.md").write_text(render(card, tmp_path))
    found = huggingface_hub.ModelCard.load(tmp_path / "README.md").data
    assert found.datasets == ["user/rows", "squad"] and found.base_model == "a/b" and found.license == "mit"
    numbers = {(each.dataset_type, each.metric_name): each.metric_value for each in found.eval_results}
    assert numbers == {("user/rows", "val/loss"): 2.0, ("private", "test/loss"): 3.0}
    for text in ("", "no yaml", "---\n[\n---\n", "---\n- 1\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert front_matter(tmp_path) == {}


def test_the_stage_of_a_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    for stage in ("sft", "reward", "dpo", "ppo"):
        options = dict(vars(make_stage(stage, tmp_path)))
        assert stage_of_options(options) == stage
        options.pop("seed")  # as one of an earlier version
        assert stage_of_options({**options, "gone": 1}) == stage
    assert stage_of_options(vars(make_run())) == "pretrain"


def test_what_is_ours_alone_is_read_by_us(make_run: MakeRun) -> None:
    folder = pretrain(make_run(architecture="modern-1m", trainer={"max_steps": 2})).model_folder
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert (card.data.library_name == "lit_llm") == ("lit-llm generate --model ." in card.text)
