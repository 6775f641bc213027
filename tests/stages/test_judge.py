"""Models compared by a judge, from prompts to report."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import letter_tokenizer, save_policy, write_rows
from conftest import tiny_model
from judge_server import JudgeServer, judging, longer
from random_decoder import random_decoder

from lit_llm.cli.commands import run_command
from lit_llm.config import JudgeConfig, JudgeSourceConfig, SamplingConfig, UserError, from_plain
from lit_llm.evaluation.held_out import answer_scores
from lit_llm.evaluation.judging import endpoint as endpoint_module
from lit_llm.evaluation.judging.model_judges import LikelihoodJudge
from lit_llm.evaluation.judging.wording import Question, candidates, request
from lit_llm.interop import load_model_folder
from lit_llm.stages.judge import judge
from lit_llm.tokenizer import ChatFormat, Message

PROMPTS = [f"bcd {number}" for number in range(8)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge that prefers the longer answer."""
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE", 0.001)
    monkeypatch.delenv("LIT_LLM_API_KEY", raising=False)
    with judging(longer) as server:
        yield server


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two chat models that say nearly anything, a third with room for a question, and a reward model."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), letter_tokenizer()
    made = {}
    for number, (name, context, output) in enumerate(
        [("one", 64, "tokens"), ("other", 64, "tokens"), ("judge", 2048, "tokens"), ("reward", 64, "score")]
    ):
        sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": context}
        config = tiny_model(**sizes, output=output, tie_word_embeddings=output == "tokens")
        made[name] = save_policy(folder / name, tokenizer, random_decoder(config, seed=number, std=0.1))
    return made


def answers(path: Path, texts: list[str], **fields: Any) -> str:
    """A file of answers to the first prompts."""
    rows = [{"prompt": prompt, "answer": text, **fields} for prompt, text in zip(PROMPTS, texts, strict=False)]
    return write_rows(path, rows)


def comparison(tmp_path: Path, server: JudgeServer, **options: Any) -> JudgeConfig:
    """Of a, b and c, whose answers have 1 to 8, 4, and 9 to 2 letters."""
    models = {
        "a": answers(tmp_path / "a.jsonl", ["x" * (1 + number) for number in range(8)]),
        "b": answers(tmp_path / "b.jsonl", ["xyzw"] * 8),
        "c": answers(tmp_path / "c.jsonl", ["y" * (9 - number) for number in range(8)]),
    }
    chosen = {name: models[name] for name in options.pop("names", "ab")}
    source = JudgeSourceConfig(url=server.url, **options.pop("judge", {}))
    return JudgeConfig(chosen, judge=source, output=str(tmp_path / "out"), **{"repeat": 0.0, **options})


def read(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines()


def lines(config: JudgeConfig, name: str = "judgements.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(Path(config.output) / name)]


def test_both_orders_are_asked_and_counted(tmp_path: Path, server: JudgeServer) -> None:
    config = comparison(tmp_path, server)
    found = judge(config).report
    # a's answers of 1, 2 and 3 letters lose, that of 4 ties, and those of 5 to 8 win
    pair = found["pairs"][0]
    assert (pair["wins"], pair["ties"], pair["losses"], pair["unparsed"]) == (4, 1, 3, 0)
    assert pair["win_rate"]["value"] == 4.5 / 8
    order = found["order"]
    assert order["comparisons"] == 8 and order["agreed"]["value"] == 1.0 and order["first_wins"]["value"] == 0.5
    assert {(line["first"], line["second"]) for line in lines(config)} == {("a", "b"), ("b", "a")}
    assert found["replies"] == 16 == len(server.bodies)
    assert found["tokens"] == {"prompt_tokens": 1600, "completion_tokens": 112}
    assert found["models"][0]["name"] == "a" and found["models"][0]["mean_length"] == 4.5


def test_a_judge_that_minds_the_order(tmp_path: Path, server: JudgeServer) -> None:
    """It takes the first answer unless the other is longer by more than two letters."""

    def rule(answers: list[str], messages: list[dict[str, str]]) -> str:
        return "[[B]]" if len(answers[1]) > len(answers[0]) + 2 else "[[A]]"

    server.rule = rule
    done = judge(comparison(tmp_path, server))
    # a has 1 to 8 letters and b 4: 1 loses, 7 and 8 win, 2 to 6 depend on the order
    pair, order = done.report["pairs"][0], done.report["order"]
    assert (pair["wins"], pair["ties"], pair["losses"]) == (2, 5, 1)
    assert order["agreed"]["value"] == 3 / 8 and order["first_wins"]["value"] == 13 / 16
    assert "sees places rather than answers" in done.report["notes"][0]
    shown = done.report["disagreements"]
    assert [each["prompt"] for each in shown] == ["2", "3", "4", "5", "6"]
    assert [reply["better"] for reply in shown[0]["replies"]] == ["a", "b"]
    assert shown[0]["answers"] == {"a": "xx", "b": "xyzw"}
    for name in ("judge.md", "judge.html"):
        text = (done.folder / name).read_text()
        assert "Where the order decided" in text and "37.5%" in text and "81.2%" in text


def test_several_models_and_a_baseline(tmp_path: Path, server: JudgeServer) -> None:
    every = judge(comparison(tmp_path, server, names="abc")).report
    assert [(pair["one"], pair["other"]) for pair in every["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert every["replies"] == 3 * 16
    assert [model["name"] for model in every["models"]] == ["c", "a", "b"]
    assert sum(model["bradley_terry"]["value"] for model in every["models"]) == pytest.approx(3000)
    before = len(server.bodies)
    with_baseline = judge(comparison(tmp_path, server, names="abc", baseline="b")).report
    assert [(pair["one"], pair["other"]) for pair in with_baseline["pairs"]] == [("a", "b"), ("c", "b")]
    # c against b in their order of before counts here as well, turned around
    assert with_baseline["pairs"][1]["win_rate"]["value"] == 1 - every["pairs"][2]["win_rate"]["value"]
    assert len(server.bodies) == before


def test_replies_without_a_verdict_are_left_out_and_named(tmp_path: Path, server: JudgeServer) -> None:
    server.rule = lambda answers, messages: "Both <b>fine</b>." if "xx" in answers else longer(answers, messages)
    config = comparison(tmp_path, server)
    done = judge(config)
    pair, unparsed = done.report["pairs"][0], done.report["unparsed"]
    assert (pair["losses"], pair["unparsed"], pair["comparisons"]) == (2, 1, 7)
    assert unparsed["problems"] == {"no verdict in its reply": 2} and done.report["reminded"] == 2
    assert {each["prompt"] for each in unparsed["examples"]} == {"2"}
    assert "Both &lt;b&gt;fine" in (done.folder / "judge.html").read_text()
    server.rule = lambda answers, messages: "I cannot say."
    with pytest.raises(UserError, match=r"no comparison has a verdict: 16 replies .* 'I cannot say\.'"):
        judge(replace(config, overwrite=True))


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path: Path, server: JudgeServer) -> None:
    config = comparison(tmp_path, server, judge={"at_once": 1, "attempts": 2})
    server.faults = [None] * 5
    server.always = 503
    with pytest.raises(
        UserError, match=r"no answer after 2 attempts .*503.*; 5 replies are kept in .*goes on"
    ) as found:
        judge(config)
    assert "\n" not in str(found.value)
    kept = lines(config)
    assert len(kept) == 5
    path = Path(config.output) / "judgements.jsonl"
    path.write_bytes(path.read_bytes() + b'{"prompt": "4", "fir')  # as of a process that was killed while it wrote
    server.always = None
    whole = judge(config).report
    assert len(server.bodies) == 16 and lines(config)[:5] == kept
    again = judge(replace(config, output=str(tmp_path / "anew"))).report
    assert {**whole, "options": 0} == {**again, "options": 0}
    before = len(server.bodies)
    assert judge(config).report == whole and len(server.bodies) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config, folder: answers(folder / "b.jsonl", ["other"] * 8), "models.b (was answers "),
        (lambda config, folder: replace(config, max_prompts=4), "prompts (was "),
        (lambda config, folder: replace(config, mode="grades"), "mode (was pairs, is grades)"),
        (lambda config, folder: replace(config, rubric=str(folder / "rubric.txt")), "rubric (was "),
        (
            lambda config, folder: replace(config, judge=replace(config.judge, temperature=1.0)),
            "judge.temperature (was 0.0, is 1.0)",
        ),
    ],
    ids=["answers", "prompts", "mode", "rubric", "judge"],
)
def test_what_has_changed_since_is_named(
    change: Callable[[JudgeConfig, Path], Any], named: str, tmp_path: Path, server: JudgeServer
) -> None:
    config = comparison(tmp_path, server)
    judge(config)
    (tmp_path / "rubric.txt").write_text("Rhymes are good.")
    changed = change(config, tmp_path)
    changed = changed if isinstance(changed, JudgeConfig) else config
    before = lines(config)
    with pytest.raises(UserError, match=re.escape(named)) as found:
        judge(changed)
    assert "begin anew with --overwrite true" in str(found.value) and lines(config) == before
    if changed.rubric is not None:
        judge(replace(changed, overwrite=True))
        assert "Rhymes are good." in server.bodies[-1]["messages"][0]["content"]


def test_what_nothing_depends_on_yet_may_change(tmp_path: Path, server: JudgeServer) -> None:
    config = comparison(tmp_path, server, judge={"at_once": 1})
    server.always = 401
    with pytest.raises(UserError, match="it wants a key"):
        judge(config)
    server.always = None
    answers(tmp_path / "b.jsonl", ["other"] * 8)
    found = judge(replace(config, judge=replace(config.judge, temperature=1.0))).report
    assert found["replies"] == 16 and {body["temperature"] for body in server.bodies} == {1.0}


def test_questions_that_are_put_twice(tmp_path: Path, server: JudgeServer) -> None:
    seen: dict[str, int] = {}

    def rule(answers: list[str], messages: list[dict[str, str]]) -> str:
        """Says something else the second time where a has five letters or more."""
        key = repr(answers)
        seen[key] = seen.get(key, 0) + 1
        return "[[C]]" if seen[key] == 2 and "xxxxx" in key else longer(answers, messages)

    server.rule = rule
    found = judge(comparison(tmp_path, server, repeat=1.0, judge={"at_once": 1})).report
    assert found["itself"]["questions"] == 16 and found["itself"]["share"]["value"] == 0.5
    assert found["pairs"][0]["wins"] == 4  # the first reply counts
    some = judge(comparison(tmp_path, server, repeat=0.25, overwrite=True)).report
    assert 1 <= some["itself"]["questions"] < 10
    assert judge(comparison(tmp_path, server, overwrite=True)).report["itself"] is None


def test_labels_of_people(tmp_path: Path, server: JudgeServer) -> None:
    # the judge says b b b tie a a a a
    labels = ["b", "b", "a", "tie", "a", "a", "tie", "a"]
    rows = [{"id": str(number), "label": label} for number, label in enumerate(labels, start=1)]
    path = write_rows(tmp_path / "labels.jsonl", rows)
    found = judge(comparison(tmp_path, server, labels=[path])).report["labels"]
    assert (found["labels"], found["compared"], found["share"]["value"]) == (8, 8, 6 / 8)
    by_chance = (4 * 4 + 3 * 2 + 1 * 2) / 64
    assert found["kappa"]["value"] == pytest.approx((6 / 8 - by_chance) / (1 - by_chance))
    # of three models the rows name two, in any order: their a and b are what they say
    turned = [{"id": "1", "a": "b", "b": "a", "label": "a"}, {"id": "8", "a": "a", "b": "b", "label": "a"}]
    path = write_rows(tmp_path / "three.jsonl", turned)
    three = judge(comparison(tmp_path, server, names="abc", labels=[path], overwrite=True)).report
    assert three["labels"]["share"]["value"] == 1.0
    contrary = write_rows(tmp_path / "contrary.jsonl", [turned[0], {"id": "1", "a": "a", "b": "b", "label": "a"}])
    with pytest.raises(UserError, match="row 2: the prompt '1' has another label before; keep one"):
        judge(comparison(tmp_path, server, names="abc", labels=[contrary], overwrite=True))


def test_labels_by_row_where_a_prompt_is_there_twice(tmp_path: Path, server: JudgeServer, capsys: Any) -> None:
    # the judge says b b b tie a a a a of the prompts, of which the second row is the first once more
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in (PROMPTS[0], *PROMPTS)])
    verdicts = {1: "b", 3: "b", 4: "b", 5: "tie", 6: "a", 9: "a"}
    path = write_rows(tmp_path / "labels.jsonl", [{"id": str(row), "label": said} for row, said in verdicts.items()])
    config = comparison(tmp_path, server, prompts=[prompts], labels=[path])
    found = judge(config).report["labels"]
    assert (found["compared"], found["share"]["value"]) == (6, 1.0)
    assert "1 of 9 prompts are there twice, and taken once" in capsys.readouterr().err
    write_rows(tmp_path / "labels.jsonl", [{"id": "2", "label": "b"}])
    with pytest.raises(UserError, match=re.escape("no prompt has: 2; ") + ".*those of its first row"):
        judge(replace(config, overwrite=True))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "99", "label": "a"}, "labels has ids that no prompt has: 99"),
        ({"id": "1", "label": "better"}, "row 1: the label is 'better'; it must be a, b or tie"),
        ({"label": "a"}, 'row 1: not an object with "id" and "label"'),
        ({"id": "1", "label": "a", "a": "a", "b": "z"}, "row 1: a and b have to name two of the models: a, b"),
    ],
)
def test_labels_that_fit_nothing(row: dict[str, str], message: str, tmp_path: Path, server: JudgeServer) -> None:
    config = comparison(tmp_path, server, labels=[write_rows(tmp_path / "labels.jsonl", [row])])
    with pytest.raises(UserError, match=re.escape(message)):
        judge(config)
    assert not server.times


def test_empty_and_equal_answers_are_not_asked_about(tmp_path: Path, server: JudgeServer, capsys: Any) -> None:
    config = comparison(tmp_path, server)
    answers(tmp_path / "a.jsonl", ["", "xyzw", " ", *["xxxxx"] * 5])
    found = judge(config).report
    assert found["without_judge"] == {"same": 1, "empty": 2} and len(server.bodies) == 10
    pair = found["pairs"][0]
    assert (pair["wins"], pair["ties"], pair["losses"]) == (5, 1, 2)
    assert "2 of 8 answers of a are empty" in capsys.readouterr().err
    answers(tmp_path / "a.jsonl", [""] * 8)
    with pytest.raises(UserError, match=r"models\.a: all 8 answers are empty"):
        judge(replace(config, overwrite=True))


def test_answers_that_are_not_there(tmp_path: Path, server: JudgeServer) -> None:
    config = comparison(tmp_path, server)
    answers(tmp_path / "b.jsonl", ["xyzw"] * 3)
    with pytest.raises(UserError, match=r"models\.b: .* has no answer to 5 of 8 prompts: 4, 5, 6 and 2 more"):
        judge(config)
    write_rows(tmp_path / "b.jsonl", [{"prompt": PROMPTS[0], "output": "x"}])
    with pytest.raises(UserError, match=r"row 1: no text in the field 'answer' \(its fields: prompt, output\)"):
        judge(config)
    write_rows(tmp_path / "b.jsonl", [{"prompt": PROMPTS[0], "answer": text} for text in "xy"])
    with pytest.raises(UserError, match="row 2: the prompt has another answer before"):
        judge(config)
    write_rows(tmp_path / "b.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match="row 1: no prompt"):
        judge(config)
    write_rows(tmp_path / "p.jsonl", [{"prompt": text, "id": 1} for text in "xy"])
    with pytest.raises(UserError, match="row 2: the id '1' is that of"):
        judge(replace(config, prompts=[str(tmp_path / "p.jsonl")]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"models\.b: .*empty has neither a model \(config\.json\) nor rows"):
        judge(replace(config, models={"a": config.models["a"], "b": str(tmp_path / "empty")}))
    assert not server.times


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sampling": SamplingConfig(max_new_tokens=9)}, "every model's answers are in a file already"),
        ({"batch_size": 2}, "no model or judge is a folder"),
        ({"dtype": "float32"}, "no model or judge is a folder"),
    ],
)
def test_options_that_nothing_would_read(
    options: dict[str, Any], why: str, tmp_path: Path, server: JudgeServer
) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} is given, but {why}; leave it out"):
        judge(comparison(tmp_path, server, **options))


def test_grades(tmp_path: Path, server: JudgeServer) -> None:
    server.rule = lambda answers, messages: f"[[{len(answers[0])}]]"
    done = judge(comparison(tmp_path, server, mode="grades", repeat=1.0))
    found = {model["name"]: model for model in done.report["models"]}
    assert found["a"]["grade"]["value"] == 4.5 and found["b"]["grade"] == {"value": 4.0, "interval": [4.0, 4.0]}
    assert done.report["order"] is None and done.report["replies"] == 32
    assert done.report["itself"]["share"]["value"] == 1.0 and done.report["itself"]["mean_difference"] == 0.0
    pair = done.report["pairs"][0]
    assert (pair["wins"], pair["ties"], pair["losses"]) == (4, 1, 3)
    assert "grade" in done.tables and "4.50" in done.tables


HOSTILE = "<script>alert(1)</script>\x1b[31m | ![x](http://evil) `\u2028# heading"


def test_what_strangers_say_stays_text(tmp_path: Path, server: JudgeServer, capsys: Any) -> None:
    rows = [{"id": f"{HOSTILE}{number}", "prompt": f"{HOSTILE}{number}", "answer": "x" * number} for number in (1, 2)]
    other = [{**row, "answer": f"{HOSTILE}\ud800"} for row in rows]
    models = {"a": write_rows(tmp_path / "a.jsonl", rows), "b": write_rows(tmp_path / "b.jsonl", other)}
    server.models = [HOSTILE]
    server.rule = lambda answers, messages: HOSTILE + ("[[A]]" if len(messages) == 1 else "")
    config = JudgeConfig(models, judge=JudgeSourceConfig(url=server.url), output=str(tmp_path / "out"))
    done = judge(config)
    page = (done.folder / "judge.html").read_text()
    assert "<script" not in page and "\x1b" not in page and page.count("&lt;script&gt;alert(1)") >= 4
    for line in (done.folder / "judge.md").read_text().split("\n"):
        if not line.startswith("    "):
            assert not re.search(r"(?<!\\)[<\[`]", line) and "\x1b" not in line
    assert "\x1b" not in done.tables


# models of this machine


def test_folders_answer_and_are_judged_by_length(
    folders: dict[str, Path], tmp_path: Path, server: JudgeServer, capsys: Any
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"question": text} for text in PROMPTS])
    words = ["--prompts", f"[{prompts}]", "--models.one", str(folders["one"]), "--models.other", str(folders["other"])]
    words += ["--judge.url", server.url, "--sampling.max_new_tokens", "12", "--batch_size", "3"]
    run_command("judge", [*words, "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "| one " in shown and f"report   {tmp_path}/out/judge.html" in shown
    path = tmp_path / "out" / "answers.jsonl"
    written = read(path)
    assert len(written) == 16
    # as it would be after 5 answers: the rest is written again, as it was
    path.write_text("".join(f"{line}\n" for line in written[:5]))
    run_command("judge", [*words, "--output", str(tmp_path / "out")])
    assert sorted(read(path)) == sorted(written) and read(path)[:5] == written[:5]
    with pytest.raises(SystemExit):
        run_command("judge", [*words, "--output", str(tmp_path / "out"), "--sampling.temperature", "0.5"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "differs in sampling.temperature (was 0.8, is 0.5)" in error


def test_a_judge_that_does_not_answer_is_known_before_anything_is_written(
    folders: dict[str, Path], tmp_path: Path, server: JudgeServer, capsys: Any
) -> None:
    """Its model is named, and it has no list of models: nothing but a question shows that it wants a key."""
    pretrained = tmp_path / "run" / "model"
    shutil.copytree(folders["one"], pretrained)
    (tmp_path / "run" / "config.yaml").write_text("{schedule: {}, init_from: null}")
    server.models = None
    config = JudgeConfig(
        {"one": str(pretrained), "other": str(folders["other"])},
        prompts=[write_rows(tmp_path / "prompts.jsonl", [{"question": text} for text in PROMPTS[:2]])],
        judge=JudgeSourceConfig(url=server.url, model="m", attempts=2),
        sampling=SamplingConfig(max_new_tokens=4),
        repeat=0.0,
        output=str(tmp_path / "out"),
    )
    for fault, message in ((401, "it wants a key"), (503, "no answer after 2 attempts"), (404, "correct the address")):
        server.always = fault
        with pytest.raises(UserError, match=rf"judge\.url .*{message}"):
            judge(config)
        assert not lines(config, "answers.jsonl")
    # one that refuses this question may take others
    server.faults, server.always = [400], None
    before = len(server.times)
    assert judge(config).report["replies"] == 4 == len(server.times) - before - 1
    told = [line for line in capsys.readouterr().err.splitlines() if "was only pretrained" in line]
    assert len(told) == 1 and told[0].startswith(f"models.one: {pretrained} was only pretrained: it goes on with texts")
    # what is written already needs no judge that is up before the first question
    (Path(config.output) / "judgements.jsonl").unlink()
    judge(config)
    assert len(server.times) - before == 1 + 4 + 4


def test_the_likelihood_of_a_verdict(folders: dict[str, Path]) -> None:
    model, tokenizer = load_model_folder(folders["judge"])
    found = LikelihoodJudge(model, tokenizer, "judge", None, batch_size=2)
    asked = [Question((Message("user", text),), text[::-1], "b" * number) for number, text in enumerate(PROMPTS[:3], 1)]
    asked.append(Question((Message("user", "x" * 3000),), "b", "c"))
    replies = dict(found.judge(asked))
    assert replies[3].verdict is None and "its context is 2,048" in replies[3].problem
    chat = ChatFormat(tokenizer)
    for number, question in enumerate(asked[:3]):
        totals = []
        for text in candidates(question):
            prompt = request(question, None, aloud=False)
            ids = chat.render([*prompt, Message("assistant", text)]).ids
            begin = len(chat.render_prompt(prompt))
            end = begin + len(tokenizer.encode(text))
            with torch.no_grad():
                log_probs = model(torch.tensor([ids]))[0].log_softmax(-1)
            totals.append(sum(float(log_probs[place - 1, ids[place]]) for place in range(begin, end)))
        shares = torch.tensor(totals).softmax(0)
        assert replies[number].verdict == ("first", "second", "tie")[int(shares.argmax())]
        told = [float(share) for share in re.findall(r"\]\] (\d\.\d+)", replies[number].text)]
        assert told == pytest.approx(shares.tolist(), abs=2e-3)
    graded = dict(found.judge([Question(asked[0].prompt, "b")]))[0]
    assert graded.grade is not None and 1 <= graded.grade <= 10


def test_a_folder_as_judge(folders: dict[str, Path], tmp_path: Path, server: JudgeServer) -> None:
    source = JudgeSourceConfig(model=str(folders["judge"]))
    config = replace(comparison(tmp_path, server, repeat=None, max_prompts=3), judge=source)
    found = judge(config).report
    assert found["replies"] == 6 and found["itself"] is None and found["judge"] == str(folders["judge"])
    pair = found["pairs"][0]
    assert pair["wins"] + pair["ties"] + pair["losses"] == 3
    assert not server.times


def test_a_reward_model_as_judge(folders: dict[str, Path], tmp_path: Path, server: JudgeServer) -> None:
    config = replace(comparison(tmp_path, server), judge=JudgeSourceConfig(model=str(folders["reward"])))
    found = judge(config).report
    model, tokenizer = load_model_folder(folders["reward"])
    scores = [
        answer_scores(model, tokenizer, PROMPTS, [json.loads(line)["answer"] for line in read(path)])
        for path in config.models.values()
    ]
    pair = found["pairs"][0]
    assert pair["wins"] == int((scores[0] > scores[1] + 1e-6).sum())
    assert found["order"] is None and found["replies"] == 8
    graded = judge(replace(config, mode="grades", output=str(tmp_path / "grades"))).report
    grades = {each["name"]: each["grade"]["value"] for each in graded["models"]}
    assert grades == pytest.approx({"a": float(scores[0].mean()), "b": float(scores[1].mean())}, rel=1e-4, abs=1e-5)
    assert graded["pairs"][0]["wins"] == pair["wins"]
    with pytest.raises(UserError, match="is a reward model, which reads none"):
        judge(replace(config, rubric=str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": {"a": "x"}}, "models has fewer than two"),
        ({"models": {"a": "x", "tie": "y"}}, "models has one named tie"),
        ({"judge": {}}, "there is no judge; give --judge.url ADDRESS, or --judge.model FOLDER"),
        ({"judge": {"model": "http://x"}}, "judge.model is the address"),
        ({"judge": {"model": "x", "at_once": 2}}, "judge.at_once is for an endpoint alone"),
        ({"judge": {"url": "localhost:8000"}}, "judge.url is 'localhost:8000'; it must be http://HOST"),
        ({"judge": {"url": "http://me:pass@host"}}, "judge.url has a name or password in it"),
        ({"judge": {"url": "http://host:port"}}, "it must be http://HOST"),
        ({"baseline": "z"}, "baseline is 'z'; it must be one of models: a, b"),
        ({"repeat": 1.5}, "repeat is 1.5; it must be from 0 to 1"),
        ({"models": {"a": "x", "b": "http://h"}, "sampling": {"top_k": 3}}, "sampling.top_k cannot be asked of"),
        ({"endpoint": {"at_once": 2}}, "endpoint is given, but none of models is one"),
        ({"judge": {"url": "http://h", "timeout": 0}}, "timeout is 0"),
        ({"judge": {"url": "http://h", "attempts": 0}}, "attempts is 0; it must be at least 1"),
        ({"mode": "duel"}, "mode"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    given = {"models": {"a": "x", "b": "y"}, "judge": {"url": "http://h"}, **options}
    with pytest.raises(UserError, match=re.escape(message)) as found:
        judge(from_plain(JudgeConfig, given))
    assert "\n" not in str(found.value)
