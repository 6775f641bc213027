"""The run folder, and what `fit` does around training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import MakeRun

from lit_llm.config import CorpusConfig, PrepareConfig, SampleConfig, SamplingConfig, UserError, to_plain
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.interop import load_model_folder
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain


def test_a_test_split_is_evaluated_once_at_the_end(
    make_run: MakeRun, corpus_folder: Path, shards: Path, tmp_path: Path
) -> None:
    corpus = CorpusConfig(path=str(corpus_folder), validation_fraction=0.15, test_fraction=0.15)
    prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(tmp_path / "three")))
    config = make_run("tested", data={"paths": [str(tmp_path / "three")]}, trainer={"max_steps": 2})
    result = pretrain(config)
    model, _ = load_model_folder(result.model_folder)
    split = ShardedTokens(tmp_path / "three" / "test")
    tokens = torch.from_numpy(split.read(0, len(split)).astype("int64"))
    loss, count = 0.0, 0
    for start in range(0, len(tokens) - 1, 32):
        window = tokens[start : start + 33]
        with torch.no_grad():
            logits = model(window[None, :-1])[0]
        loss += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        count += len(window) - 1
    assert count == len(tokens) - 1
    assert result.metrics["test/loss"] == pytest.approx(loss / count, rel=1e-5)
    assert "val/loss" in result.metrics


def test_config_yaml_is_that_of_the_run(make_run: MakeRun) -> None:
    config = make_run("saved", trainer={"max_steps": 2})
    pretrain(config)
    assert yaml.safe_load((config.folder / "config.yaml").read_text()) == to_plain(config)


def test_a_refused_resume_leaves_config_yaml_alone(make_run: MakeRun) -> None:
    config = make_run("kept", trainer={"max_steps": 2})
    pretrain(config)
    before = (config.folder / "config.yaml").read_text()
    other = make_run("kept", model={"num_layers": 1}, trainer={"max_steps": 4}, ckpt_path="last")
    with pytest.raises(UserError, match="num_layers 2"):
        pretrain(other)
    assert (config.folder / "config.yaml").read_text() == before


def test_a_run_that_was_killed_before_its_report_gets_the_one_it_would_have_had(make_run: MakeRun) -> None:
    samples = SampleConfig(["def "], SamplingConfig(max_new_tokens=4))
    config = replace(make_run(trainer={"max_steps": 2, "loggers": []}), samples=samples)
    whole = pretrain(config)
    values = {name: pytest.approx(value, rel=1e-6, nan_ok=True) for name, value in whole.metrics.items()}
    report = (config.folder / "report.md").read_text()
    for path in (config.folder / "report.md", config.folder / "report.html", config.folder / "model" / "README.md"):
        path.unlink()
    with (config.folder / "metrics.jsonl").open("a") as file:  # of steps after the checkpoint
        file.write('{"step": 3, "train/loss": 0.0}\n')
    result = pretrain(replace(config, ckpt_path="last"))
    assert result.metrics == values and {"train/loss", "val/loss"} < values.keys()
    assert result.tokens_per_second == pytest.approx(whole.tokens_per_second, rel=1e-6) and result.tokens == 256
    assert result.samples == whole.samples != []
    again = (config.folder / "report.md").read_text()
    for line in ("| speed |", "| training |"):
        line = next(each for each in report.splitlines() if each.startswith(line))
        assert line in again and " 0 tokens/s" not in line
    assert "\n| val/loss |" in again and "\n## Samples\n" in again
    assert "name: val/loss" in (config.folder / "model" / "README.md").read_text()
