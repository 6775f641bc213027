"""Invariant 9 for the stages after pretraining, continued: options whose effect is another than other numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import save_policy
from run_files import checkpoints, tensorboard_events
from safetensors.torch import load_file, save_file
from stage_runs import chat_tokenizer, make_stage, run_stage
from test_bad_input import refused
from test_options import Watch, values
from test_resume import curves, final_state
from test_stage_options import PPO, STAGES, Seen, quiet

from lit_llm.config import ExportConfig, SampleConfig, SamplingConfig
from lit_llm.stages.export import export


@pytest.mark.parametrize("stage", STAGES)
def test_max_steps_and_epochs(stage: str, tmp_path: Path) -> None:
    """48 rows are 6 batches of pairs; packs are counted, not rows."""
    for epochs, steps in ((None, 2), (1.5, 9), (0.01, 1)):
        data = {"packing": False} if stage == "sft" else {}
        trainer = {"max_steps": 2, "save_every_n_steps": None, "val_every_n_steps": None}
        config = quiet(stage, tmp_path, "run", epochs=epochs, data=data, trainer=trainer, overwrite=True)
        watch = Watch()
        run_stage(config, watch)
        assert config.trainer.max_steps == len(watch.micro_batches) == final_state(config)["global_step"] == steps
        ids = torch.cat([batch["sample_ids"] for batch in watch.micro_batches]).tolist()
        assert ids == list(range(8 * steps))
        # the schedule ends with the run
        rates = values(curves(config)["learning_rate/adamw_decay"])
        assert rates[-1] < 0.7 * 3e-3 or steps < 6
    if stage == "sft":
        config = quiet(stage, tmp_path, "packed", epochs=1.0, data={"batch_size": 2})
        run_stage(config)
        assert config.trainer.max_steps == 12  # of about 24 packs


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_clip_val(stage: str, tmp_path: Path) -> None:
    for limit in (None, 0.02):
        watch = Watch()
        config = quiet(stage, tmp_path, f"clip_{limit}", trainer={"gradient_clip_val": limit})
        run_stage(config, watch)
        norms = values(curves(config)["train/gradient_norm"])
        assert min(norms) > 0.02
        assert watch.gradient_norms == pytest.approx(norms if limit is None else [limit] * 3, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_lora_trains_the_additions_alone_and_leaves_them_apart(stage: str, tmp_path: Path) -> None:
    config = quiet(stage, tmp_path, "run", lora={"rank": 4, "targets": ["q_proj", "down_proj"]})
    run_stage(config)
    head = {"model.head.weight"} if stage == "reward" else set()
    for name in set(final_state(config)["state_dict"]) - head:
        assert ".lora_" in name and ("q_proj" in name or "down_proj" in name)
    start = load_file(tmp_path / "policy" / "model.safetensors")
    merged = load_file(config.folder / "model" / "model.safetensors")
    changed = {name for name in start.keys() & merged.keys() if not torch.equal(start[name], merged[name])}
    changed -= {"lm_head.weight"} if head else set()
    assert changed and all("q_proj" in name or "down_proj" in name for name in changed)
    adapter = json.loads((config.folder / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], set(adapter["target_modules"])) == (4, 16.0, {"q_proj", "down_proj"})
    # and goes on from there
    reference = {"reference_model": str(config.folder)} if stage == "dpo" else {}
    more = quiet(stage, tmp_path, "more", lora={"adapter": str(config.folder / "adapter")}, **reference)
    run_stage(more)
    losses = [values(curves(each)["train/loss"]) for each in (config, more)]
    assert more.lora.rank == 4 and losses[0] != losses[1]
    other = quiet(stage, tmp_path, "other", lora={"adapter": str(config.folder / "adapter"), "rank": 2}, **reference)
    refused(lambda: run_stage(other), "lora.rank is 2", "leave the option out")
    # the base that is not in the checkpoint has to be the one of the training
    lora = {"rank": 4, "targets": ["q_proj", "down_proj"]}
    longer = quiet(stage, tmp_path, "run", lora=lora, ckpt_path="last", trainer={"max_steps": 4})
    newest = max(checkpoints(config).items())[1]
    save_file({name: 1.1 * weight for name, weight in start.items()}, tmp_path / "policy" / "model.safetensors")
    refused(lambda: run_stage(longer), "are not those that the checkpoint's adapter was trained over")
    refused(lambda: export(ExportConfig(str(newest), str(tmp_path / "out"))), "was trained over other weights than")


def test_lora_over_an_adapter_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the run leaves needs the adapter and the base below that; PEFT would read it otherwise."""
    first = quiet("sft", tmp_path, "first", lora={"rank": 2})
    run_stage(first)
    second = quiet("sft", tmp_path, "second", lora={"rank": 2}, init_from=first.folder / "adapter")
    run_stage(second)
    assert not (second.folder / "adapter").exists()
    told = f"no adapter folder: {first.folder / 'adapter'}, which the additions are to, is an adapter folder itself"
    assert told in capsys.readouterr().err
    export(ExportConfig(str(second.folder), str(tmp_path / "out")))
    merged, exported = (load_file(each / "model.safetensors") for each in (second.folder / "model", tmp_path / "out"))
    assert merged.keys() == exported.keys() and all(torch.equal(merged[name], exported[name]) for name in merged)
    start = load_file(tmp_path / "policy" / "model.safetensors")
    save_file({name: 1.1 * weight for name, weight in start.items()}, tmp_path / "policy" / "model.safetensors")
    again = ExportConfig(str(second.folder), str(tmp_path / "out"), overwrite=True)
    refused(lambda: export(again), "was trained over other weights than")


@pytest.mark.parametrize("stage", STAGES)
def test_rows_that_are_too_long(stage: str, tmp_path: Path) -> None:
    options = {"sequence_length": 20, "max_dropped_share": 1.0}
    seen = {}
    for choice in ("drop", "truncate"):
        seen[choice] = Seen()
        run_stage(quiet(stage, tmp_path, choice, data={**options, "too_long": choice}, epochs=2), seen[choice])
    rows = [sum(len(batch["sample_ids"]) for batch in seen[choice].micro_batches) for choice in seen]
    assert rows[0] < rows[1]
    assert all(batch["tokens"].size(1) <= 20 for each in seen.values() for batch in each.micro_batches)
    few = quiet(stage, tmp_path, "few", data={**options, "max_dropped_share": 0.05})
    refused(lambda: run_stage(few), "longer than data.sequence_length 20", "data.max_dropped_share 0.05")
    assert not few.folder.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_validation_rows(stage: str, tmp_path: Path) -> None:
    """Set aside from the rows, or read from files of their own."""
    data = {"packing": False} if stage == "sft" else {}
    own = make_stage(stage, tmp_path, "own").data.paths

    def validated(name: str, **options: Any) -> int:
        watch = Watch()
        run_stage(quiet(stage, tmp_path, name, data={**data, **options}), watch)
        return int((torch.cat(watch.validation_batches) >= 0).sum()) if watch.validation_batches else 0

    some = validated("some", validation_fraction=0.5)
    assert 20 < some < 40
    assert validated("none", validation_fraction=0.0) == 0
    assert validated("own_files", validation_paths=own) == 60
    assert validated("first", validation_paths=own, validation_rows=1) == 1


def texts(config: Any) -> dict[str, list[int]]:
    """Steps at which texts were written, by name."""
    events = tensorboard_events(config)
    return {name: [event.step for event in events.Tensors(name)] for name in events.Tags()["tensors"] if "text" in name}


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_samples(stage: str, tmp_path: Path) -> None:
    sampling = SamplingConfig(max_new_tokens=4)
    config = make_stage(stage, tmp_path, "run", sample_prompts=2, samples=SampleConfig(["bcd"], sampling))
    result = run_stage(config)
    assert texts(config) == {f"samples/{number}/text_summary": [3, 6] for number in range(3)}
    assert result.samples[0].startswith("user: bcd\nassistant: ")
    assert all(text.startswith("user: ") and "assistant: " in text for text in result.samples)
    silent = quiet(stage, tmp_path, "silent", samples=SampleConfig([]))
    assert run_stage(silent).samples == [] and not texts(silent)


def test_a_reward_model_writes_no_samples(tmp_path: Path) -> None:
    assert "samples" not in str(texts_of_reward(tmp_path))
    for options in ({"sample_prompts": 1}, {"samples": SampleConfig(["b"])}):
        refused(lambda options=options: make_stage("reward", tmp_path, **options), "a reward model writes no text")
    refused(lambda: make_stage("reward", tmp_path, loss_chunk_tokens=7), "loss_chunk_tokens has no effect")


def texts_of_reward(folder: Path) -> dict[str, list[int]]:
    config = quiet("reward", folder, "run")
    run_stage(config)
    return texts(config)


def test_form(tmp_path: Path) -> None:
    alpaca = [{"instruction": text, "output": text[::-1]} for text in ("bcd", "cdf", "dfg", "fgh") * 4]
    for form in ("auto", "alpaca"):
        run_stage(quiet("sft", tmp_path, form, rows=alpaca, data={"form": form, "batch_size": 2}))
    wrong = quiet("sft", tmp_path, "wrong", rows=alpaca, data={"form": "gsm8k"})
    refused(lambda: run_stage(wrong), "row 1", "question")


def test_reference_and_critic_of_ppo(tmp_path: Path) -> None:
    """Models of other widths with the same tokenizer."""
    other = save_policy(tmp_path / "other", chat_tokenizer(), hidden_size=64)
    found = {}
    for name, options in {
        "plain": {},
        "reference": {"reference_model": str(other)},
        "critic": {"critic_from": str(other)},
    }.items():
        config = quiet("ppo", tmp_path, name, **PPO, **options)
        run_stage(config)
        found[name] = curves(config)
    assert found["plain"]["objective/kl"][0] == (1, 0.0)
    assert abs(found["reference"]["objective/kl"][0][1]) > 1e-3
    assert found["critic"]["objective/kl"][0] == (1, 0.0)
    assert found["critic"]["loss/value"][0] != found["plain"]["loss/value"][0]


def test_reference_model(tmp_path: Path) -> None:
    """A wider reference with the same tokenizer judges the same answers, and otherwise."""
    other = save_policy(tmp_path / "other", chat_tokenizer(), hidden_size=64)
    losses = {}
    for name, options in {
        "same": {},
        "precomputed": {"reference_model": str(other)},
        "live": {"reference_model": str(other), "reference": "live"},
    }.items():
        config = quiet("dpo", tmp_path, name, **options)
        run_stage(config)
        losses[name] = values(curves(config)["train/loss"])
    assert losses["live"] == pytest.approx(losses["precomputed"], abs=2e-5)
    assert losses["same"][0] == pytest.approx(0.693147, abs=1e-6)
    assert abs(losses["live"][0] - losses["same"][0]) > 1e-3
