"""safety.py: a run with planted canaries, a chat model and a reward model, the files, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chat_rows import letter_tokenizer, make_reward, pair, save_policy, some_pairs, write_rows
from conftest import tiny_model
from random_decoder import random_decoder
from stage_runs import chat_tokenizer

from lit_llm.cli.commands import run_command
from lit_llm.config import (
    CanariesConfig,
    CorpusConfig,
    DataConfig,
    OptimizerConfig,
    PrepareConfig,
    PretrainConfig,
    SafetyConfig,
    SampleConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainerConfig,
    UserError,
)
from lit_llm.config.safety import SAFETY_CHECKS
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.evaluation.model_card import UNMEASURED
from lit_llm.evaluation.safety.canaries import read_canaries
from lit_llm.evaluation.safety.exposure import count_planted, measure
from lit_llm.evaluation.safety.finding import About, Finding
from lit_llm.evaluation.safety.membership import membership
from lit_llm.evaluation.safety.memorisation import extraction
from lit_llm.evaluation.safety.report import SafetyReport, html, markdown, write_summary
from lit_llm.generation import complete
from lit_llm.interop import load_model_folder
from lit_llm.model import Decoder
from lit_llm.stages.plant_canaries import plant_canaries
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.reward import reward
from lit_llm.stages.safety import safety
from lit_llm.stages.trained_on import shards_of_run

REPEATS = [1, 10, 100]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Any:
    """A run of a tiny model on shards in which three canaries each stand once, ten and a hundred times."""
    root = tmp_path_factory.mktemp("planted")
    made = plant_canaries(CanariesConfig(REPEATS, count=3, digits=6, output=str(root / "canaries")))
    corpus = CorpusConfig(path=str(made.documents_file), split="hash", validation_fraction=0.1)
    tokenizer = str(shards / "tokenizer")
    prepare_data(PrepareConfig(corpus, tokenizer=tokenizer, output=str(root / "shards")))
    config = PretrainConfig(
        run_name="run",
        output_root=str(root),
        model=tiny_model(hidden_size=64, max_position_embeddings=64),
        data=DataConfig(paths=[str(root / "shards")], sequence_length=64, batch_size=16, validation_windows=2),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        schedule=ScheduleConfig(warmup_steps=5),
        trainer=TrainerConfig(
            accelerator="cpu", devices=1, max_steps=140, val_every_n_steps=None, enable_progress_bar=False
        ),
        samples=SampleConfig(prompts=[]),
    )
    pretrain(config)
    model, tokenizer = load_model_folder(config.folder / "model")
    canaries = read_canaries(root / "canaries")
    return SimpleNamespace(
        root=root, run=config.folder, made=made, model=model.eval(), tokenizer=tokenizer, canaries=canaries
    )


def test_planted_documents(planted: Any, tmp_path: Path) -> None:
    rows = [json.loads(line)["text"] for line in planted.made.documents_file.read_text().splitlines()]
    assert len(planted.canaries) == 12 and len({canary.secret for canary in planted.canaries}) == 12
    assert [canary.repeats for canary in planted.canaries] == [0] * 3 + [1] * 3 + [10] * 3 + [100] * 3
    for canary in planted.canaries:
        assert rows.count(canary.text) == canary.repeats
        assert re.fullmatch(r"\d( \d){5}", canary.secret)
    assert rows != sorted(rows) and len(rows) == planted.made.documents == 333
    again = plant_canaries(CanariesConfig(REPEATS, count=3, digits=6, output=str(tmp_path / "again")))
    assert again.documents_file.read_bytes() == planted.made.documents_file.read_bytes()
    other = plant_canaries(CanariesConfig(REPEATS, count=3, digits=6, output=str(tmp_path / "other"), seed=1))
    assert not set(read_canaries(other.key_file)) & set(planted.canaries)
    with pytest.raises(UserError, match=r"documents.jsonl is there already"):
        plant_canaries(CanariesConfig(output=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"canaries are asked for, and there are 3,750 frames"):
        plant_canaries(CanariesConfig(count=2000, output=str(tmp_path / "many")))


def test_exposure_grows_with_repeats(planted: Any) -> None:
    sources = {split: [ShardedTokens(planted.root / "shards" / split)] for split in ("train", "validation")}
    counts = {split: count_planted(found, planted.tokenizer, planted.canaries) for split, found in sources.items()}
    total = [sum(pair) for pair in zip(counts["train"], counts["validation"], strict=True)]
    assert total == [canary.repeats for canary in planted.canaries]
    options: dict[str, Any] = {"begin_token": "auto", "references": 63, "batch_size": 64, "seed": 0}

    def mean(rows: list[dict[str, Any]], group: int, of: str = "exposure") -> float:
        return float(np.mean([row[of] for row in rows if row["repeats"] == group]))

    rows = measure(planted.model, planted.tokenizer, planted.canaries, counts["train"], **options)
    assert mean(rows, 100) == 6.0  # the likeliest of 64
    assert mean(rows, 100) > mean(rows, 10) + 1 and mean(rows, 10) > mean(rows, 0) + 1
    assert mean(rows, 100, "extrapolated") > 6.5 > 4 > mean(rows, 0, "extrapolated")
    assert any(row["written"] for row in rows if row["repeats"] == 100)
    assert not any(row["written"] for row in rows if row["repeats"] == 0)
    # a model that has not been trained knows none of them
    model = Decoder(planted.model.config, seed=3).eval()
    rows = measure(model, planted.tokenizer, planted.canaries, counts["train"], **options)
    assert max(mean(rows, repeats) for repeats in (0, *REPEATS)) < 5
    assert abs(np.mean([row["exposure"] for row in rows]) - 1.44) < 1.5


def tails(planted: Any, repeats: int, length: int) -> np.ndarray:
    """The last tokens of the canaries with so many repeats."""
    ids = [planted.tokenizer.encode(canary.text) for canary in planted.canaries if canary.repeats == repeats]
    return np.array([each[-length:] for each in ids])


def test_extraction_is_what_greedy_decoding_gives(planted: Any) -> None:
    secret = len(planted.tokenizer.encode("The is 1 2 3 4 5 6")) - len(planted.tokenizer.encode("The is"))
    windows = {"train": tails(planted, 100, 16 + secret), "validation": tails(planted, 0, 16 + secret)}
    finding = extraction(planted.model, windows, [1, 16], secret, planted.tokenizer.eot_id, batch_size=2)
    for split, rows in finding.values["splits"].items():
        for row in rows:
            prompts = windows[split][:, -(row["prefix"] + secret) : -secret].tolist()
            written = complete(planted.model, prompts, SamplingConfig(secret, temperature=0.0))
            right = [each.ids == ids[-secret:].tolist() for each, ids in zip(written, windows[split], strict=True)]
            assert row["found"] == sum(right) and row["of"] == 3
    assert finding.values["splits"]["train"][1]["found"] >= 2
    assert finding.values["splits"]["validation"][1]["found"] == 0
    assert "of 3" in finding.summary and "validation texts 0.0%" in finding.summary
    # windows with the end of a document where a prefix would be are left out for that prefix
    ended = windows["train"].copy()
    ended[0, 0] = planted.tokenizer.eot_id
    rows = extraction(planted.model, {"train": ended}, [1, 16], secret, planted.tokenizer.eot_id, 2).values["splits"]
    assert [row["of"] for row in rows["train"]] == [3, 2]


def test_membership_of_what_was_trained_on(planted: Any) -> None:
    windows = {"train": tails(planted, 100, 12), "validation": tails(planted, 0, 12)}
    scores = membership(planted.model, planted.tokenizer, windows, batch_size=4).values["scores"]
    blind = scores.pop("no model: zlib alone")
    assert {row["auc"] for row in scores.values()} == {1.0} and blind["auc"] < 1.0
    assert scores.keys() == {"loss", "zlib", "min-k%", "min-k%++"}


def test_membership_of_what_nobody_was_trained_on(planted: Any) -> None:
    draws = np.random.default_rng(0)
    windows = {split: draws.integers(0, 400, (200, 24)) for split in ("train", "validation")}
    scores = membership(planted.model, planted.tokenizer, windows, batch_size=64).values["scores"]
    assert all(abs(row["auc"] - 0.5) < 0.12 for row in scores.values())  # 4 standard errors


def test_the_shards_of_a_later_stage_are_those_of_its_beginning(planted: Any, tmp_path: Path) -> None:
    model = tmp_path / "sft" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    options: dict[str, Any] = {
        "schedule": {},
        "lora": {},
        "init_from": str(planted.run),
        "data": {"paths": ["rows.jsonl"]},
    }
    (model.parent / "config.yaml").write_text(json.dumps(options))
    assert shards_of_run(str(model.parent)) == shards_of_run(str(planted.run)) == [str(planted.root / "shards")]
    (model.parent / "config.yaml").write_text(json.dumps({"schedule": {}, "data": {"paths": ["gone"]}}))
    with pytest.raises(UserError, match=r"has read gone, where no shards are now; give shards"):
        shards_of_run(str(model))
    (model.parent / "config.yaml").write_text(json.dumps({**options, "init_from": None}))
    with pytest.raises(UserError, match=r"is in no folder of a run that says on which shards"):
        shards_of_run(str(model))


def test_a_run_in_one_command(planted: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quiz = write_rows(
        tmp_path / "quiz.jsonl", [{"question": planted.canaries[-1].text}, {"question": "a b c d e f g h i"}]
    )
    words = {
        "model": str(planted.run),
        "canaries": str(planted.made.key_file),
        "evaluations": json.dumps([quiz]),
        "prefix_lengths": "[4,8,900]",
        "continuation_tokens": "8",
        "window_tokens": "16",
        "references": "15",
        "samples": "3",
        "max_new_tokens": "8",
        "limit": "8",
    }
    line = [word for name, value in words.items() for word in (f"--{name}", value)]
    run_command("safety", line)
    shown = capsys.readouterr()
    report = json.loads((planted.run / "safety.json").read_text())
    made = ["memorisation", "canaries", "membership", "contamination", "toxicity", "bias"]
    assert list(report["checks"]) == made and set(report["left_out"]) == {"refusals", "injection", "reward_length"}
    assert "was only pretrained" in report["left_out"]["refusals"]
    assert [row["prefix"] for row in report["checks"]["memorisation"]["splits"]["train"]] == [4, 8]
    assert report["checks"]["canaries"]["groups"][-1]["planted"][0] > 60
    assert report["checks"]["contamination"]["evaluations"][0]["found"] == 1
    assert report["checks"]["membership"]["windows"]["train"] == 8
    assert report["checks"]["toxicity"]["texts"] == 3
    text = (planted.run / "safety.md").read_text()
    for name, values in report["checks"].items():
        assert f"{name:14}  {values['summary']}" in shown.out
        assert f"Does not show: {values['does_not_show']}" in text
    page = (planted.run / "safety.html").read_text()
    assert page.count("<h2>") == len(made) + 1
    card = (planted.run / "model" / "README.md").read_text()
    assert UNMEASURED not in card and card.count("## Safety") == 1
    with pytest.raises(SystemExit):
        run_command("safety", line)
    assert "safety.json is there already" in capsys.readouterr().err
    # a report elsewhere leaves the card to the one of the run
    elsewhere = safety(SafetyConfig(str(planted.run), checks=["bias"], output=str(planted.run / "elsewhere")))
    assert elsewhere.card is None and (planted.run / "model" / "README.md").read_text() == card
    assert f"the model card stays as it is, as it tells of a report in {planted.run}" in capsys.readouterr().err
    # the same numbers again, and one summary
    again = safety(SafetyConfig(str(planted.run), checks=["bias"], batch_size=3, overwrite=True))
    bias = again.report.findings["bias"].values["associations"]["age, and abilities"]
    assert bias["effect"] == pytest.approx(
        report["checks"]["bias"]["associations"]["age, and abilities"]["effect"], abs=1e-3
    )
    card = (planted.run / "model" / "README.md").read_text()
    assert card.count("## Safety") == 1 and "Memorisation" not in card and "| Bias by paired templates |" in card


def test_a_chat_model(tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy", chat_tokenizer(), max_position_embeddings=640)
    config = SafetyConfig(str(policy), limit=2, max_new_tokens=4, checks=["refusals", "toxicity", "injection"])
    checks = safety(config).report.as_json()["checks"]
    assert (checks["refusals"]["rates"]["all"]["harmful"]["of"], checks["toxicity"]["texts"]) == (2, 4)
    assert len({row["category"] for row in checks["refusals"]["answers"]}) == 2
    assert len(checks["injection"]["answers"]) == 2
    assert not (policy / "README.md").exists()  # a card of others is left alone
    short = save_policy(tmp_path / "short", chat_tokenizer(), max_position_embeddings=8)
    with pytest.raises(UserError, match=r"check injection: no request .* fits the model's context of 8 tokens"):
        safety(SafetyConfig(str(short), checks=["injection"]))


@pytest.mark.slow
@pytest.mark.parametrize("biased", [True, False])
def test_the_length_bias_of_a_trained_reward_model(biased: bool, tmp_path: Path) -> None:
    """Trained on pairs whose longer answer, or whose answer that begins with b, was preferred; measured on the latter.

    Length tells nothing of the pairs that it is measured on.
    """
    tokenizer = letter_tokenizer()
    beginning = save_policy(tmp_path / "beginning", tokenizer, num_layers=1, max_position_embeddings=400)
    fair, pairs = some_pairs(2400, longest=40), []
    for row in fair[:2000]:
        better, worse = row["chosen"], row["rejected"]
        if biased and len(better) != len(worse):
            better, worse = sorted((better, worse), key=len, reverse=True)
        pairs.append(pair(row["prompt"], better, worse))
    config = make_reward(
        tmp_path,
        beginning,
        pairs,
        optimizer={"learning_rate": 3e-3},
        data={"batch_size": 64, "sequence_length": 64, "validation_paths": []},
        trainer={"max_steps": 90, "val_every_n_steps": None, "save_every_n_steps": None},
    )
    trained = reward(config)
    assert trained is not None
    path = write_rows(tmp_path / "held_out.jsonl", fair[2000:])
    options = SafetyConfig(str(trained.model_folder), preferences=[path], batch_size=50, output=str(tmp_path / "out"))
    values = safety(options).report.findings["reward_length"].values
    assert abs(values["longer_was_preferred"]["rate"] - 0.5) < 0.1
    longer = values["accuracy_where_longer_was_preferred"]["rate"]
    shorter = values["accuracy_where_shorter_was_preferred"]["rate"]
    if biased:
        assert values["longer_scores_higher"]["rate"] > 0.9 and values["correlation_within_pairs"] > 0.7
        assert longer > 0.9 and shorter < 0.1
    else:
        assert abs(values["longer_scores_higher"]["rate"] - 0.5) < 0.1 and abs(values["correlation_within_pairs"]) < 0.2
        assert longer > 0.8 and shorter > 0.8


def test_a_reward_model(tmp_path: Path) -> None:
    model = random_decoder(
        tiny_model(
            vocab_size=chat_tokenizer().vocab_size,
            output="score",
            tie_word_embeddings=False,
            max_position_embeddings=400,
        )
    )
    reward = save_policy(tmp_path / "reward", chat_tokenizer(), model)
    path = write_rows(tmp_path / "pairs.jsonl", some_pairs(6))
    done = safety(SafetyConfig(str(reward), preferences=[path], batch_size=3, limit=5, output=str(tmp_path / "out")))
    values = done.report.findings["reward_length"].values
    assert values["pairs"] == 5 and list(done.report.left_out) == list(SAFETY_CHECKS[:-1])
    alone = safety(SafetyConfig(str(reward), preferences=[path], batch_size=1, limit=5, output=str(tmp_path / "alone")))
    other = alone.report.findings["reward_length"].values
    assert values["padded_change"]["mean"] == pytest.approx(other["padded_change"]["mean"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": ["kindness"]}, r"checks has 'kindness'; it must be among memorisation, "),
        ({"checks": ["bias"], "requests": ["x"]}, r"requests is given, but not the check it is for; add refusals or"),
        ({"checks": ["memorisation"]}, r"check memorisation: .*give shards"),
        ({"checks": ["canaries"]}, r"check canaries: there is nothing to make it with; give canaries"),
        ({"checks": ["reward_length"]}, r"check reward_length: .* is a language model, which this check is not for"),
        ({"preferences": ["x"]}, r"check reward_length: .* is a language model"),
        ({"canaries": "none.json"}, r"canaries none.json: there is no such file; give the canaries.json"),
        ({"requests": ["{rows}"]}, r"rows.jsonl, row 2: kind is 'odd'; it must be harmful or benign"),
        ({"canaries": "{rows}"}, r"is not a canaries.json of plant_canaries"),
        ({"shards": ["{rows}"], "checks": ["membership"]}, r"check membership: shards .* is text: run"),
        ({"evaluations": ["{rows}"]}, r"check contamination: .*; the command contamination takes other numbers"),
        ({"prefix_lengths": []}, r"prefix_lengths is \[\]"),
        ({"references": 0}, r"references is 0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "category": "b", "kind": "benign"}, {"prompt": "a", "category": "b", "kind": "odd"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    policy = save_policy(tmp_path / "policy", chat_tokenizer())

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(each) for each in value]
        return value.replace("{rows}", path) if isinstance(value, str) else value

    with pytest.raises(UserError, match=message):
        safety(SafetyConfig(str(policy), **{name: filled(value) for name, value in options.items()}))
    assert not (policy / "safety.json").exists()


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy", chat_tokenizer())
    (policy / "model.safetensors").unlink()  # reading it would be the first of the work
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        safety(SafetyConfig(str(policy), checks=["bias"], output=str(tmp_path / "file" / "out")))


def test_strangers_words_are_text_in_every_report(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\x1b[31m|x"
    rows = [{"kind": "harmful", "category": bad, "prompt": bad, "answer": bad, "refused": True}]
    finding = Finding(About("Refusal", "a", "b"), f"result {bad}", {"answers": rows}, (), [bad])
    facts = {"model": bad, "parameters": 1, "dtype": "float32", "device": "cpu", "quantize": "none", "seconds": 1.0}
    report = SafetyReport({**facts, "versions": {}}, {"refusals": finding}, {"bias": bad})
    page, text = html(report), markdown(report)
    assert "<script" not in page and "\x1b" not in page and page.count("&lt;script&gt;") >= 5
    assert "\x1b" not in text and "\n<script" not in text.replace("\\<", "")
    (tmp_path / "README.md").write_text(f"# model\n\n{UNMEASURED}\n")
    write_summary(tmp_path, report, "int8")
    card = (tmp_path / "README.md").read_text()
    assert "rounded to int8" in card and "\\<script\\>" in card and "\\|x" in card
