"""How far work has come: lines in a pipe, a bar on a terminal, nothing on other ranks."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from stage_runs import make_stage, run_stage

from lit_llm.cli.generate import generate
from lit_llm.config import CorpusConfig, EvaluateConfig, GenerateConfig, PrepareConfig, SamplingConfig
from lit_llm.config import progress as module
from lit_llm.config.progress import in_words, progress, track
from lit_llm.stages.evaluate import evaluate
from lit_llm.stages.prepare import prepare_data
from lit_llm.tokenizer.training import train_bpe


class Clock:
    """A clock that moves on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_pipe_gets_a_line_now_and_then_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    for number in track(range(1000), "tokenising rows"):
        done.append(number)
        clock.now += 0.025  # 25 seconds in all
    assert done == list(range(1000))
    assert capsys.readouterr().err.splitlines() == [
        "tokenising rows: 40% of 1,000 rows, about 15 seconds left",
        "tokenising rows: 80% of 1,000 rows, about 5 seconds left",
        "tokenising rows: 1,000 rows in 25 seconds",
    ]
    with progress("encoding", None, "bytes") as advance:
        for _ in range(3):
            clock.now += 11
            advance(2_500_000)
    assert capsys.readouterr().err.splitlines() == [
        *(f"encoding: {size} MB so far" for size in ("2.5", "5.0", "7.5")),
        "encoding: 7.5 MB in 33 seconds",
    ]


def test_what_is_done_at_once_or_fails_or_is_another_ranks_is_not_told(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(track([1, 2], "short")) == [1, 2]
    clock.now += 5
    with progress("hidden", 3, shown=False) as advance:
        clock.now += 50
        advance(3)
    with pytest.raises(ZeroDivisionError), progress("failing", 3):
        clock.now += 50
        _ = 1 / 0
    monkeypatch.setenv("RANK", "1")
    with progress("elsewhere", 3) as advance:
        clock.now += 50
        advance(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    for unit, shown in (("texts", "3/3 texts"), ("bytes", "3/3 bytes")):
        with progress("writing", 3, unit) as advance:
            advance(3)
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
        assert "writing" in drawn and "━" in drawn and shown in drawn


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (75, "75 seconds"),
        (95, "2 minutes"),
        (3600, "1 hour"),
        (4800, "1 hour 20 minutes"),
        (3 * 86400 + 3600, "3 days 1 hour"),
    ],
)
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_every_long_work_tells_a_pipe_how_far_it_is(
    corpus_folder: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    train_bpe(["bcd dfg\n" * 20], 261, total_bytes=160)
    said = capsys.readouterr().err
    assert said == "reading text: 100% of 160 bytes\nreading text: 160 bytes in 1 second\nfinding merges\n"
    train_bpe(["bcd dfg\n" * 20], 261, show_progress=False)
    assert capsys.readouterr().err == ""
    corpus = CorpusConfig(path=str(corpus_folder), validation_fraction=0.15)
    prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(tmp_path / "shards")))
    assert "encoding: 100% of " in capsys.readouterr().err
    config = make_stage("dpo", tmp_path, trainer={"max_steps": 1, "val_every_n_steps": None}, sample_prompts=0)
    run_stage(config)
    said = capsys.readouterr().err
    for line in (
        f"reading {config.data.paths[0]}: 60 rows so far",
        "tokenising rows: 100% of 60 rows",
        "log-probabilities of the reference, train pairs: 100% of 6 batches",
    ):
        assert f"{line}\n" in said
    model = str(config.folder / "model")
    generate(GenerateConfig(model, ["b", "c"], stream=False, sampling=SamplingConfig(max_new_tokens=2)))
    assert "writing: 100% of 2 texts\n" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("bcd dfg\n" * 20)
    evaluate(EvaluateConfig(model, texts=[str(tmp_path / "text.txt")], preferences=config.data.paths))
    said = capsys.readouterr().err
    assert re.search(r"text\.txt.*: 100% of 160 bytes\n", said) and "reading answers: 100% of 8 batches\n" in said
