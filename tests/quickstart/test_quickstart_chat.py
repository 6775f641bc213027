"""The chat quickstart on a tiny model: before and after, going on, starting again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from chat_rows import save_policy, some_pairs, some_talks, talk, write_rows
from conftest import ROOT
from stage_runs import chat_tokenizer

from lit_llm.cli.commands import run_command
from lit_llm.config import QuickstartChatConfig, UserError
from lit_llm.interop import load_model_folder
from lit_llm.quickstart.chat import quickstart_chat
from lit_llm.quickstart.chat_rows import ChatFiles, write_chat_rows
from lit_llm.tokenizer import Tokenizer

LONG = 87
"""Letters of a question that is held out."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("chat")
    save_policy(folder / "model", chat_tokenizer(), max_position_embeddings=64)
    longest = talk("b" * LONG, "c")  # among the first that are held out
    return {
        "model": str(folder / "model"),
        "instructions": write_rows(folder / "talks.jsonl", [longest, *some_talks(120)]),
        "preferences": write_rows(folder / "pairs.jsonl", some_pairs(120)),
        "output_root": str(folder),
    }


def arguments(options: dict[str, str], *more: str) -> list[str]:
    return [*(word for name, value in options.items() for word in (f"--{name}", value)), "--minutes", "0.001", *more]


def test_before_and_after_and_going_on(options: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The model reads less than the usual length, and not even all of one question."""
    run_command("quickstart_chat", arguments(options))
    printed = capsys.readouterr().out
    folder = Path(options["output_root"]) / "quickstart_chat"
    files = ChatFiles(folder)
    held_out, learned = (
        {json.dumps(row) for row in rows(files.conversations(each))} for each in ("validation", "train")
    )
    assert held_out and learned and not held_out & learned and len(held_out | learned) <= 121
    assert "b" * LONG in files.conversations("validation").read_text()
    found = {
        stage: json.loads((folder / "measured" / f"{stage}.json").read_text()) for stage in ("before", "sft", "dpo")
    }
    assert len({each["loss"] for each in found.values()}) == 3
    assert found["sft"]["loss"] < found["before"]["loss"]
    report = (folder / "report.md").read_text()
    earlier: list[float] = []
    for stage, name in (("before", "as it came"), ("sft", "after LoRA on"), ("dpo", "after DPO on")):
        share = r"(\d+)% \((\d+)% to (\d+)%\)"
        row = re.search(rf"\| {name}[^|]*\| ([\d.]+) \| {share} \| (\d+) \| (?:{share})? ?\|", report)
        assert row is not None and float(row[1]) == pytest.approx(found[stage]["loss"], abs=6e-4)
        margins = found[stage]["margins"]
        assert int(row[5]) == len(margins)
        assert (
            int(row[3]) <= int(row[2]) == round(100 * sum(each > 0 for each in margins) / len(margins)) <= int(row[4])
        )
        if stage != "before":
            rose = sum(now > then for now, then in zip(margins, earlier, strict=True))
            assert int(row[7]) <= int(row[6]) == round(100 * rose / len(margins)) <= int(row[8])
        earlier = margins
    assert "sft: 2 steps of 8 samples, LoRA of rank 16" in report and report.count("the user:") == 4
    assert "conversations of more than 64 tokens are cut off" in report
    assert "<table>" in (folder / "report.html").read_text()
    assert f"experiments/serve.py --model {folder / 'dpo'}" in printed
    model, _ = load_model_folder(folder / "dpo" / "model")
    assert model.config.num_layers == 2

    with pytest.raises(SystemExit):
        run_command("quickstart_chat", arguments(options))
    assert "already holds a run: --ckpt_path last goes on with it" in capsys.readouterr().err
    before = (folder / "sft" / "model" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(folder / "dpo" / "model")
    (folder / "measured" / "dpo.json").unlink()
    (folder / "report.md").unlink()
    measured = folder / "measured" / "sft.json"
    measured.write_text(json.dumps({**found["sft"], "answers": ["\x1b[2Jcleared"] * 4}))
    run_command("quickstart_chat", arguments(options, "--ckpt_path", "last"))
    printed = capsys.readouterr().out
    assert "goes on with the 2 steps that it was begun with" in printed
    assert "\u241b[2Jcleared" in printed and "\x1b" not in printed
    assert (folder / "sft" / "model" / "model.safetensors").stat().st_mtime_ns == before
    again = json.loads((folder / "measured" / "dpo.json").read_text())
    assert again == found["dpo"] and (folder / "report.md").exists()
    with pytest.raises(SystemExit):
        run_command("quickstart_chat", arguments(options, "--ckpt_path", "last", "--seed", "5"))
    assert "was begun with seed 1337 (now: 5)" in capsys.readouterr().err


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_cannot_be_begun(options: dict[str, str], tmp_path: Path) -> None:
    def config(**changes: object) -> QuickstartChatConfig:
        return QuickstartChatConfig(**{**options, "output_root": str(tmp_path), **changes})  # type: ignore[arg-type]

    for changes, message in (
        ({"minutes": 0.0}, "minutes is 0.0; it must be above 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"preferences": None}, "instructions is given without preferences"),
        ({"ckpt_path": "step_1.ckpt"}, "ckpt_path is step_1.ckpt"),
        ({"ckpt_path": "last", "overwrite": True}, "give one of the two"),
    ):
        with pytest.raises(UserError, match=message):
            config(**changes)
    few = write_rows(tmp_path / "few.jsonl", some_talks(2))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    for changes, message in (
        ({"ckpt_path": "last"}, "there is nothing to resume"),
        ({"run_name": "taken"}, "taken holds something else; give another --run_name"),
        ({"instructions": few, "run_name": "few"}, r"few.jsonl: \d rows are too few"),
        ({"instructions": str(tmp_path / "none.jsonl"), "run_name": "none"}, "none.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            quickstart_chat(config(**changes))
    assert (tmp_path / "taken" / "thesis.txt").exists()


def whole(question: str, chosen: str, rejected: str) -> dict[str, object]:
    """A preference that gives its prompt in both conversations."""
    return {"chosen": talk(question, chosen)["messages"], "rejected": talk(question, rejected)["messages"]}


def test_prompts_of_whole_conversations_are_held_out_of_both_files(options: dict[str, str], tmp_path: Path) -> None:
    asked = [f"question {n}" for n in range(40)]
    pairs = [whole(question, f"good {n}", f"bad {n}") for question in asked for n in range(5)]
    files = {
        "instructions": write_rows(tmp_path / "a.jsonl", [talk(question, "good") for question in asked]),
        "preferences": write_rows(tmp_path / "b.jsonl", pairs),
    }
    config = QuickstartChatConfig(model=options["model"], output_root=str(tmp_path), **files)
    write_chat_rows(config, Tokenizer.load(options["model"]))
    found = ChatFiles(config.folder)
    learned = [json.dumps(row) for row in rows(found.preferences("train")) + rows(found.conversations("train"))]
    held_out = {row["chosen"][0]["content"] for row in rows(found.preferences("validation"))}  # type: ignore[index]
    assert held_out == {row["messages"][0]["content"] for row in rows(found.conversations("validation"))}  # type: ignore[index]
    assert held_out and not [row for row in learned if any(f'"{question}"' in row for question in held_out)]
    assert len(learned) == 6 * (40 - len(held_out))


def test_a_prompt_is_held_out_of_both_files(options: dict[str, str], tmp_path: Path) -> None:
    talks = [{"instruction": f"question {n}", "input": "", "output": "yes"} for n in range(200)]
    pairs = [{"instruction": row["instruction"], "input": "", "chosen": "yes", "rejected": "no"} for row in talks]
    files = {
        "instructions": write_rows(tmp_path / "a.jsonl", talks),
        "preferences": write_rows(tmp_path / "b.jsonl", pairs),
    }
    config = QuickstartChatConfig(model=options["model"], output_root=str(tmp_path), **files)
    write_chat_rows(config, Tokenizer.load(options["model"]))
    found = ChatFiles(config.folder)
    for split, most in (("train", 200), ("validation", 32)):
        asked, preferred = (
            {row["instruction"] for row in rows(path)}
            for path in (found.conversations(split), found.preferences(split))
        )
        assert asked == preferred and 5 < len(asked) <= most


def test_functions_of_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lit_llm.data.corpus.documents as documents
    from lit_llm.config import CorpusConfig

    few = [str(path) for path in sorted((ROOT / "lit_llm" / "tokenizer").glob("*.py"))]
    (tmp_path / "source").mkdir()
    for number, path in enumerate(few * 3):
        text = Path(path).read_text(encoding="utf-8").replace("def ", f"def f{number}_")
        (tmp_path / "source" / f"{number}.py").write_text(text)
    whole = documents.Corpus
    monkeypatch.setattr(
        documents,
        "Corpus",
        lambda corpus: whole(CorpusConfig(path=str(tmp_path / "source"), split="hash", validation_fraction=0.2)),
    )
    model = save_policy(tmp_path / "model", chat_tokenizer(), max_position_embeddings=256)
    config = QuickstartChatConfig(model=str(model), output_root=str(tmp_path))
    write_chat_rows(config, chat_tokenizer())
    found = ChatFiles(config.folder)
    for split in ("train", "validation"):
        talks, pairs = rows(found.conversations(split)), rows(found.preferences(split))
        assert talks and len(talks) == len(pairs)
        assert talks[0]["messages"][1]["content"] == pairs[0]["chosen"][0]["content"]  # type: ignore[index]
        assert pairs[0]["rejected"] != pairs[0]["chosen"]
