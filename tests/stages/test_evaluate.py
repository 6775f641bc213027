"""evaluate.py: rows, differences, files, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import pair, save_policy, some_pairs, some_talks, write_rows
from conftest import MakeRun, tiny_model
from random_decoder import random_decoder
from stage_runs import chat_tokenizer

from lit_llm.cli import main, parse
from lit_llm.cli.commands import COMMANDS, run_command
from lit_llm.config import CorpusConfig, EvaluateConfig, PrepareConfig, UserError
from lit_llm.evaluation.baselines import compressor_bits_per_byte
from lit_llm.evaluation.held_out import answer_loss, preference_log_probs
from lit_llm.interop import load_model_folder, save_model_folder
from lit_llm.objectives import accuracy_interval
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer, with_chat_tokens
from lit_llm.tokenizer.alphabet import BYTE_TO_CHARACTER

evaluate = COMMANDS["evaluate"].run

TEXTS = ["def f(x):\n    return x\n" * 3, "import os\n", "é" * 20, "class A:\n    pass\n" * 2]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    model = random_decoder(tiny_model(tie_word_embeddings=False), std=0.1)
    save_model_folder(tmp_path / "full", model.config, model.state_dict(), tokenizer)
    return tmp_path / "full"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    return tmp_path / "texts"


def found(output: Path, folder: Path, **options: Any) -> dict[str, Any]:
    evaluate(EvaluateConfig(str(folder), output=str(output), **options))
    return json.loads((output / "evaluation.json").read_text())


@pytest.mark.parametrize("mask_documents", [False, True])
def test_the_validation_loss_of_a_run_comes_out_again(
    mask_documents: bool, make_run: MakeRun, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows as pretraining has them: of the same context, moved on by all of it."""
    run = make_run(data={"mask_documents": mask_documents, "validation_windows": None}, trainer={"max_steps": 3})
    result = pretrain(run)
    assert result is not None
    options: dict[str, Any] = {"shards": [str(shards)], "mask_documents": mask_documents}
    evaluate(EvaluateConfig(str(run.folder), context=32, stride=32, **options))
    (row,) = json.loads((run.folder / "evaluation" / "evaluation.json").read_text())["losses"]
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert row[name] == pytest.approx(result.metrics[f"val/{name}"], rel=2e-6)
    # half of a window before each token makes for another loss
    assert f"| {shards / 'validation'} | {row['loss']:.4f} " in capsys.readouterr().out
    evaluate(EvaluateConfig(str(run.folder), overwrite=True, **options))
    (again,) = json.loads((run.folder / "evaluation" / "evaluation.json").read_text())["losses"]
    assert again["tokens"] == row["tokens"] or mask_documents
    assert again["loss"] != row["loss"]


def test_report(folder: Path, texts: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tmp_path / "one.txt"
    one.write_text("".join(TEXTS))
    sources: dict[str, Any] = {"texts": [str(texts), str(one)], "shards": [str(shards)], "max_tokens": 60}
    report = found(tmp_path / "out", folder, context=16, **sources)
    assert (report["context"], report["stride"]) == (16, 8)
    rows = report["losses"]
    assert [row["kind"] for row in rows] == ["texts", "texts", "shards", "all"]
    assert [row["tokens"] for row in rows] == [60, 60, 60, 180]
    assert [row["interval_over"] for row in rows[:2]] == ["documents", "windows"]
    for row in rows:
        assert row["interval"][0] < row["loss"] < row["interval"][1]
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert row["bits_per_byte"] == pytest.approx(row["loss"] * row["tokens"] / math.log(2) / row["bytes"])
    assert rows[3]["loss"] == pytest.approx(sum(row["loss"] for row in rows[:3]) / 3)
    assert rows[3]["bytes"] == sum(row["bytes"] for row in rows[:3])
    # compressors get what was scored
    start = "".join(TEXTS).encode()[: rows[1]["bytes"]]
    assert report["compressors"][1] == {"source": str(one), "bytes": len(start), **compressor_bits_per_byte(start)}
    assert report["config"]["max_tokens"] == 60 and report["versions"]["torch"].startswith(torch.__version__[:4])
    markdown = (tmp_path / "out" / "evaluation.md").read_text()
    assert markdown in capsys.readouterr().out
    assert f"{rows[0]['loss']:.4f}" in markdown and f"{report['compressors'][0]['xz -9e']:.4f}" in markdown
    again = found(tmp_path / "again", folder, context=16, batch_size=1, **sources)
    for row, other in zip(rows, again["losses"], strict=True):
        assert row["interval"] == pytest.approx(other["interval"], rel=1e-5)
    reseeded = found(tmp_path / "reseeded", folder, context=16, seed=1, **sources)
    assert reseeded["losses"][0]["loss"] == rows[0]["loss"]
    assert reseeded["losses"][1]["interval"] != rows[1]["interval"]


def test_texts_and_shards_of_one_document_agree(folder: Path, shards: Path, tmp_path: Path) -> None:
    """But for the first token, before which a stream has nothing."""
    text = "def f(x):\n    return x\n" * 20
    (tmp_path / "text.txt").write_text(text)
    corpus = CorpusConfig(str(tmp_path / "text.txt"), validation_fraction=0.0)
    prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(tmp_path / "shards")))
    options: dict[str, Any] = {"context": 32, "stride": 1, "split": "train", "shards": [str(tmp_path / "shards")]}
    one, other, _ = found(tmp_path / "out", folder, texts=[str(tmp_path / "text.txt")], **options)["losses"]
    assert one["tokens"] == other["tokens"] + 1
    assert one["bytes"] == len(text) > other["bytes"]
    assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
    (named,) = found(tmp_path / "named", folder, context=32, stride=1, shards=[str(tmp_path / "shards" / "train")])[
        "losses"
    ]
    assert named["loss"] == other["loss"]


@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
def test_what_quantization_costs(
    kind: str, folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"texts": [str(texts)], "context": 16}
    full = found(tmp_path / "full_report", folder, **options)["losses"]
    report = found(tmp_path / "out", folder, quantize=kind, **options)
    assert [row["model"] for row in report["losses"]] == ["full", kind]
    assert report["losses"][0] == full[0]
    (row,) = report["differences"]
    assert row["from"] == full[0]["loss"] and row["to"] == report["losses"][1]["loss"] != row["from"]
    assert row["difference"] == row["to"] - row["from"]
    assert row["interval"][0] < row["difference"] < row["interval"][1]
    assert row["interval"][1] - row["interval"][0] < (full[0]["interval"][1] - full[0]["interval"][0]) / 5
    assert f"{row['from']:.4f} -> {row['to']:.4f} nats/token with {kind}, " in capsys.readouterr().out


def test_answers_and_preferences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = chat_tokenizer()
    policy = random_decoder(tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=64))
    folder = save_policy(tmp_path / "policy", tokenizer, policy)
    talks, pairs = some_talks(11), some_pairs(9)
    answers = write_rows(tmp_path / "talks.jsonl", talks)
    preferences = write_rows(tmp_path / "pairs.jsonl", pairs)
    options: dict[str, Any] = {"answers": [answers], "preferences": [preferences]}
    report = found(tmp_path / "out", folder, batch_size=4, quantize="int8", **options)

    model, _ = load_model_folder(folder)

    def losses(messages: list[Message]) -> list[float]:
        rendered = ChatFormat(tokenizer).render(messages)
        with torch.no_grad():
            log_probs = model(torch.tensor([rendered.ids]))[0].log_softmax(1)
        places = [place for place, learned in enumerate(rendered.supervised) if learned]
        return [-float(log_probs[place - 1, rendered.ids[place]]) for place in places]

    found_losses = [losses([Message(**message) for message in row["messages"]]) for row in talks]
    flat = [loss for row in found_losses for loss in row]
    full, rounded = report["losses"]
    assert full["loss"] == pytest.approx(sum(flat) / len(flat), abs=1e-5) != rounded["loss"]
    assert full["loss"] == pytest.approx(answer_loss(model, tokenizer, Path(answers)), abs=1e-5)
    assert (full["tokens"], full["documents"], full["interval_over"]) == (len(flat), 11, "conversations")
    assert full["bytes"] is None and full["bits_per_byte"] is None and full["token_accuracy"] is None
    assert report["differences"][0]["difference"] == pytest.approx(rounded["loss"] - full["loss"])

    sums = [
        [
            -sum(losses([Message("user", row["prompt"]), Message("assistant", row[side])]))
            for side in ("chosen", "rejected")
        ]
        for row in pairs
    ]
    accuracy = sum(chosen > rejected for chosen, rejected in sums) / 9
    full, rounded = report["preferences"]
    assert (full["model"], rounded["model"]) == ("full", "int8")
    assert 0 < full["accuracy"] < 1 and full["accuracy"] == accuracy and full["pairs"] == 9
    assert full["mean_margin"] == pytest.approx(sum(one - other for one, other in sums) / 9, abs=1e-4)
    assert full["interval"][0] < accuracy < full["interval"][1]
    assert f"{accuracy:.2%}" in capsys.readouterr().out


def save_chat_model(folder: Path, seed: int, output: str = "tokens") -> Path:
    tokenizer = chat_tokenizer()
    shape = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=64)
    return save_policy(folder, tokenizer, random_decoder(shape.as_score() if output == "score" else shape, seed=seed))


def test_a_reward_model_ranks_held_out_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, pairs = save_chat_model(tmp_path / "reward", 3, "score"), some_pairs(23)
    model, tokenizer = load_model_folder(folder)
    sides: list[list[float]] = []
    for row in pairs:
        sides.append([])
        for side in ("chosen", "rejected"):
            rendered = ChatFormat(tokenizer).render([Message("user", row["prompt"]), Message("assistant", row[side])])
            end = len(rendered.ids) - rendered.supervised[::-1].index(True)
            with torch.no_grad():
                sides[-1].append(float(model(torch.tensor([rendered.ids[:end]]))[0, -1]))
    margins = [chosen - rejected for chosen, rejected in sides]
    rows = write_rows(tmp_path / "pairs.jsonl", pairs)
    (row,) = found(tmp_path / "out", folder, preferences=[rows], batch_size=4)["preferences"]
    right = sum(margin > 0 for margin in margins)
    assert 0 < right < 23 and row["accuracy"] == right / 23 and row["ranks_by"] == "score"
    assert row["interval"] == pytest.approx(accuracy_interval(right, 23))
    assert row["mean_margin"] == pytest.approx(sum(margins) / 23, rel=1e-4)
    assert row["margin_interval"][0] < row["mean_margin"] < row["margin_interval"][1]
    error = 0.0
    claims = [1 / (1 + math.exp(-abs(margin))) for margin in margins]
    for each in row["calibration"]:
        inside = [n for n, claim in enumerate(claims) if each["from"] <= claim < each["to"]]
        assert each["pairs"] == len(inside) > 0
        assert each["predicted"] == pytest.approx(sum(claims[n] for n in inside) / len(inside), rel=1e-5)
        assert each["observed"] == pytest.approx(sum(margins[n] > 0 for n in inside) / len(inside))
        error += abs(each["predicted"] - each["observed"]) * len(inside) / 23
    assert len(row["calibration"]) > 1 and sum(each["pairs"] for each in row["calibration"]) == 23
    assert row["calibration_error"] == pytest.approx(error)
    printed = capsys.readouterr()
    assert "reward model, " in printed.out and f"expected calibration error {error:.4f}" in printed.out
    assert "23 pairs scored in" in printed.err and "left out" not in printed.err
    longest = {"prompt": "b", "chosen": "c" * 80, "rejected": "d" * 80}
    rows = write_rows(tmp_path / "more.jsonl", [*pairs, longest, pair("ghj", "bb", "bb")])
    (row,) = found(tmp_path / "more", folder, preferences=[rows])["preferences"]
    assert row["pairs"] == 24
    said = capsys.readouterr().err
    assert "more.jsonl: 1 of 25 rows left out" in said and "more.jsonl: 1 of 25 rows truncated" in said


def test_rows_that_cannot_be_read_are_left_out_however_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, reference = (save_chat_model(tmp_path / name, seed) for name, seed in (("policy", 1), ("reference", 2)))
    equal = [pair(f"gh{letter}", "bb", "bb") for letter in "bcdfgjk"]
    pairs = write_rows(tmp_path / "pairs.jsonl", [*some_pairs(13), *equal])
    long = {"messages": [{"role": "user", "content": "b" * 80}, {"role": "assistant", "content": "c"}]}
    talks = write_rows(tmp_path / "talks.jsonl", [long, long, *some_talks(2)])
    options: dict[str, Any] = {"preferences": [pairs], "answers": [talks], "reference": str(reference)}
    report = found(tmp_path / "out", folder, **options)
    assert [row["pairs"] for row in report["preferences"]] == [13, 13] and report["losses"][0]["documents"] == 2
    said = capsys.readouterr().err
    assert "pairs.jsonl: 7 of 20 rows left out (35.0%): 7 whose two answers are the same" in said
    assert "talks.jsonl: 2 of 4 rows left out" in said
    write_rows(tmp_path / "pairs.jsonl", equal)
    write_rows(tmp_path / "talks.jsonl", [long])
    for given, message in (
        (options, "preferences .*pairs.jsonl: all 7 rows are left out: 7 whose two answers are the same; give other"),
        ({"answers": [talks]}, "answers .*talks.jsonl: all 1 rows are left out: .*; give other files"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            found(tmp_path / "none", folder, **given)
        assert "data." not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": ["{tmp}/x.txt"]}, "texts cannot be had of .*reward, which is a reward model: it gives scores"),
        ({"answers": ["{tmp}/x.jsonl"]}, "answers cannot be had of .*reward"),
        ({"tasks": ["arc_easy"]}, "tasks cannot be had of .*reward"),
        (
            {"preferences": ["{tmp}/x.jsonl"], "reference": "{tmp}"},
            "reference is given, but .*reward is a reward model.*leave reference out",
        ),
        ({"preferences": ["{tmp}/x.jsonl"], "quantize": "int8"}, "quantize cannot be had of .*reward"),
    ],
)
def test_a_reward_model_is_asked_for_nothing_else(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path / "reward", 3, "score")
    (tmp_path / "x.txt").write_text("text")
    write_rows(tmp_path / "x.jsonl", some_pairs(3))
    filled = json.loads(json.dumps(options).replace("{tmp}", str(tmp_path)))
    with pytest.raises(UserError, match=message):
        found(tmp_path / "out", folder, **filled)


def test_implicit_rewards_against_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save_chat_model(run / "model", 1)
    reference = save_chat_model(tmp_path / "reference", 2)
    rows = write_rows(tmp_path / "pairs.jsonl", some_pairs(9))
    options: dict[str, Any] = {"preferences": [rows], "reference": str(reference)}
    sums = {}
    for folder in (run / "model", reference):
        log_probs = preference_log_probs(*load_model_folder(folder), rows)
        sums[folder.name] = log_probs[:, 0] - log_probs[:, 1]
    (run / "config.yaml").write_text("loss: sigmoid\nbeta: 0.25\n")
    plain, implicit = found(tmp_path / "one", run, **options)["preferences"]
    margins = 0.25 * (sums["model"] - sums["reference"])
    assert (plain["ranks_by"], implicit["ranks_by"]) == ("log-probability", "implicit reward")
    assert plain["mean_margin"] == pytest.approx(float(sums["model"].mean())) and "calibration" not in plain
    assert implicit["mean_margin"] == pytest.approx(float(margins.mean())) and implicit["calibration"]
    assert implicit["accuracy"] == float((margins > 0).double().mean()) != plain["accuracy"]
    assert implicit["margin_interval"][0] < implicit["mean_margin"] < implicit["margin_interval"][1]
    assert "Implicit reward: 0.25 log(model / " in capsys.readouterr().out
    # what is given wins; outside of a DPO run it is DPO's own default
    (run / "config.yaml").write_text("loss: simpo\nbeta: 2.0\n")
    assert found(tmp_path / "two", run, beta=0.5, **options)["preferences"][1]["mean_margin"] == pytest.approx(
        2 * implicit["mean_margin"]
    )
    with pytest.raises(UserError, match=r"trained with loss simpo, whose rewards have no reference; .* give --beta"):
        found(tmp_path / "three", run, **options)
    (run / "config.yaml").unlink()
    assert found(tmp_path / "four", run, **options)["beta"] == 0.1
    assert "beta 0.1, as dpo.py has it" in capsys.readouterr().err


def test_a_reference_grows_as_its_policy_has(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What a policy that was given chat tokens started from gives the same log-probabilities to all other tokens."""
    bare = Tokenizer.from_gpt2_files(*gpt2_files(tmp_path))
    base = save_policy(tmp_path / "base", bare)
    grown = with_chat_tokens(bare)
    assert grown.vocab_size > bare.vocab_size
    policy = save_policy(tmp_path / "policy", grown)
    rows = write_rows(tmp_path / "pairs.jsonl", some_pairs(4))
    report = found(tmp_path / "out", policy, preferences=[rows], reference=str(base))
    assert math.isfinite(report["preferences"][1]["mean_margin"])
    other = save_policy(tmp_path / "other", tokenizer)
    with pytest.raises(UserError, match=r"reference .*other has another tokenizer"):
        found(tmp_path / "two", policy, preferences=[rows], reference=str(other))
    short = save_policy(tmp_path / "short", grown, max_position_embeddings=32)
    with pytest.raises(UserError, match=r"reference .*short has 32 positions, fewer than the model's 64"):
        found(tmp_path / "three", policy, preferences=[rows], reference=str(short))


def test_tasks_come_with_their_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "tasks").mkdir()
    rows = [{"question": f"{number} +", "answers": [" 1", " two"], "label": number % 2} for number in range(6)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "tasks" / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: " + data + "\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{answers}}'\ndoc_to_target: label\nmetric_list:\n  - metric: acc\n"
    )
    report = found(
        tmp_path / "out", folder, tasks=["sums"], tasks_folder=str(tmp_path / "tasks"), limit=4, num_fewshot=0
    )
    assert report["losses"] == report["differences"] == []
    value, error = report["tasks"]["sums"]["acc"], report["tasks"]["sums"]["acc_stderr"]
    # of four questions, by the harness's formula
    assert value in (0.0, 0.25, 0.5, 0.75, 1.0) and error == pytest.approx(math.sqrt(value * (1 - value) / 3))
    assert f"| {value:.4f} | {error:.4f}" in (tmp_path / "out" / "evaluation.md").read_text()


def test_where_the_files_go(folder: Path, texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"texts": [str(texts)], "max_documents": 1}
    evaluate(EvaluateConfig(str(folder), **options))
    assert (folder / "evaluation" / "evaluation.md").is_file()
    before = (folder / "evaluation" / "evaluation.json").read_bytes()
    with pytest.raises(UserError, match=r"evaluation.json is there already; .*--overwrite true"):
        evaluate(EvaluateConfig(str(folder), **options))
    assert (folder / "evaluation" / "evaluation.json").read_bytes() == before
    evaluate(EvaluateConfig(str(folder), overwrite=True, seed=5, **options))
    assert (folder / "evaluation" / "evaluation.json").read_bytes() != before
    run = tmp_path / "run"
    folder.rename(folder.with_name("model"))
    run.mkdir()
    folder.with_name("model").rename(run / "model")
    (run / "config.yaml").write_text("{}")
    for named in (run, run / "model"):
        evaluate(EvaluateConfig(str(named), overwrite=True, **options))
        assert (run / "evaluation" / "evaluation.json").is_file()
        (run / "evaluation" / "evaluation.json").unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0, "texts": ["x"]}, "context is 0"),
        ({"stride": 9, "context": 8, "texts": ["x"]}, "stride 9 is more than context 8"),
        ({"max_documents": 0, "texts": ["x"]}, "max_documents is 0"),
        ({"max_tokens": -1, "texts": ["x"]}, "max_tokens is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_fewshot": -1, "tasks": ["x"]}, "num_fewshot is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "dev"}, "split is 'dev'; it must be train, validation or test"),
        ({"stride": 4, "answers": ["x"]}, "stride is given, but no texts or shards"),
        ({"mask_documents": True, "texts": ["x"]}, "mask_documents is given, but no shards"),
        ({"split": "test", "texts": ["x"]}, "split is given, but no shards, which alone it is for; give shards"),
        ({"verify": False, "texts": ["x"]}, "verify is given, but no shards"),
        ({"end_of_text": False, "shards": ["x"]}, "end_of_text is given, but no texts"),
        ({"text_field": "foo", "shards": ["x"]}, "text_field is given, but no texts"),
        ({"limit": 4, "texts": ["x"]}, "limit is given, but no tasks"),
        ({"chat_template": True, "texts": ["x"]}, "chat_template is given, but no tasks"),
        ({"begin_token": "never", "answers": ["x"]}, "begin_token is given, but no texts or tasks"),
        ({"quantize": "int3"}, "quantize is 'int3'"),
        ({"reference": "x", "answers": ["x"]}, "reference is given, but no preferences"),
        ({"beta": 0.1, "preferences": ["x"]}, "beta is given, but no reference"),
        ({"beta": -1.0, "reference": "y", "preferences": ["x"]}, "beta is -1.0; it must be above 0"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluateConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to evaluate on; give at least one of texts, shards, answers, preferences, tasks"),
        ({"texts": ["{tmp}/missing.txt"]}, "texts '.*missing.txt': no such file, folder or glob"),
        ({"texts": ["{tmp}/none/*.txt"]}, "texts '.*': no file found there"),
        ({"texts": ["{tmp}/empty.txt"]}, "empty.txt: no document has text"),
        ({"texts": ["{tmp}/rows.jsonl"]}, "no field 'text'; set text_field to one of: body"),
        ({"texts": ["{tmp}/broken.jsonl"]}, "broken.jsonl"),
        ({"texts": ["{tmp}/broken.parquet"]}, "broken.parquet: not a parquet file"),
        ({"shards": ["{tmp}/nowhere"]}, "there are no shards at .*nowhere"),
        ({"shards": ["{shards}"], "split": "test"}, "has no test split; set split to train or validation"),
        ({"shards": ["{other}"]}, "was encoded with another tokenizer"),
        ({"texts": ["{tmp}/full.txt"], "context": 33}, "context 33 is more than the model's context of 32 tokens"),
        ({"texts": ["{tmp}/full.txt"], "stride": 33}, "stride 33 is more than the context of 32 tokens"),
        ({"answers": ["{tmp}/missing.jsonl"]}, "answers '.*missing.jsonl': no such file"),
        ({"preferences": ["{tmp}/missing.jsonl"]}, "preferences '.*missing.jsonl': no such file"),
        ({"answers": ["{tmp}/full.jsonl"]}, "full.jsonl"),
        ({"texts": ["{tmp}/full.txt"], "model": "{tmp}"}, "config.json"),
        ({"texts": ["{tmp}/full.txt"], "output": "{tmp}/full.txt"}, "full.txt"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    options: dict[str, Any], message: str, folder: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full.txt").write_text("some text")
    (tmp_path / "full.jsonl").write_text('{"neither": "nor"}\n')
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    (tmp_path / "broken.parquet").write_text("PAR0")
    other = tmp_path / "other"
    if options.get("shards") == ["{other}"]:
        corpus = CorpusConfig(str(tmp_path / "full.txt"), split="tail", validation_fraction=0.5)
        chat_tokenizer().save(tmp_path / "tok")
        prepare_data(PrepareConfig(corpus, tokenizer=str(tmp_path / "tok"), output=str(other)))

    def filled(value: Any) -> str:
        words = json.dumps(value) if not isinstance(value, str) else value
        return words.replace("{tmp}", str(tmp_path)).replace("{shards}", str(shards)).replace("{other}", str(other))

    given = {"model": str(folder), "output": "{tmp}/out", **options}
    words = [word for name, value in given.items() for word in (f"--{name}", filled(value))]
    with pytest.raises(SystemExit) as stopped:
        main(EvaluateConfig, evaluate, words)
    assert stopped.value.code == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert re.search(message, said), said
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_model_without_chat_tokens_has_no_answers(shards: Path, tmp_path: Path) -> None:
    bare = Tokenizer.from_gpt2_files(*gpt2_files(tmp_path))
    folder = save_policy(tmp_path / "policy", bare)
    path = write_rows(tmp_path / "talks.jsonl", some_talks(3))
    with pytest.raises(UserError, match=r"answers and preferences need a chat model, and .*policy is none") as error:
        found(tmp_path / "out", folder, answers=[path])
    assert "data." not in str(error.value)


def gpt2_files(folder: Path) -> tuple[Path, Path]:
    """A byte-level vocabulary without merges."""
    (folder / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(BYTE_TO_CHARACTER)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder / "vocab.json", folder / "merges.txt"


def test_shards_that_were_changed_are_refused(folder: Path, shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards / "validation", tmp_path / "copy"))
    file = copy / "shard_00000.npy"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"shard_00000.npy does not match the sha256"):
        found(tmp_path / "out", folder, shards=[str(copy)])
    assert found(tmp_path / "out", folder, shards=[str(copy)], verify=False, max_tokens=5)["losses"][0]["tokens"] == 5


def test_the_command(
    folder: Path, texts: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(folder), "--shards", f"[{shards}]", "--max_tokens", "50"]
    words += ["--texts", f"[{texts}/0.txt, '{texts}/[12].txt']"]
    run_command("evaluate", [*words, "--quantize", "int8", "--output", str(tmp_path / "results")])
    out, err = capsys.readouterr()
    assert "tokens scored in" in err.splitlines()[-1] and "int8 against the full model" in err
    assert "## What int8 costs" in out and str(tmp_path / "results" / "evaluation.md") in out
    report = json.loads((tmp_path / "results" / "evaluation.json").read_text())
    assert len(report["losses"]) == 8 and len(report["differences"]) == 4


def test_every_option_is_read_from_the_command_line() -> None:
    words = ["--texts", "[a.txt, b/*.jsonl]", "--tasks", "[arc_easy]", "--quantize", "int8", "--split", "train"]
    config = parse(EvaluateConfig, [*words, "--shards", "[s]", "--stride", "null", "--num_fewshot", "5"])
    assert config.texts == ["a.txt", "b/*.jsonl"] and config.tasks == ["arc_easy"] and config.num_fewshot == 5
    assert (config.quantize, config.split, config.stride) == ("int8", "train", None)


def test_rows_left_out_are_told_once_beside_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, reference = (save_chat_model(tmp_path / name, seed) for seed, name in enumerate(("model", "reference")))
    pairs = some_pairs(40)
    pairs[3] = {**pairs[3], "rejected": pairs[3]["chosen"]}
    rows = write_rows(tmp_path / "pairs.jsonl", pairs)
    found(tmp_path / "out", model, preferences=[rows], reference=str(reference))
    assert capsys.readouterr().err.count("1 of 40 rows left out") == 1
