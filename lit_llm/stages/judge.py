"""Comparing models by a judge that reads their answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from lit_llm.config import JudgeConfig, LoadConfig, UserError, to_plain
from lit_llm.config.digests import digest_of, digest_of_model
from lit_llm.config.judge import is_endpoint
from lit_llm.config.lock import locked
from lit_llm.config.progress import progress
from lit_llm.data.sources.encoding import read_text
from lit_llm.evaluation.judging.answers import (
    Asked,
    clean,
    read_answers,
    read_asked,
    write_by_endpoint,
    write_by_engine,
)
from lit_llm.evaluation.judging.comparisons import Plan, key_of
from lit_llm.evaluation.judging.endpoint import Endpoint
from lit_llm.evaluation.judging.endpoint_judge import EndpointJudge
from lit_llm.evaluation.judging.judges import Judge
from lit_llm.evaluation.judging.labels import read_labels
from lit_llm.evaluation.judging.model_judges import LikelihoodJudge, RewardJudge
from lit_llm.evaluation.judging.records import check_setup
from lit_llm.evaluation.judging.report import FILES, write_report
from lit_llm.evaluation.judging.summary import summarize
from lit_llm.evaluation.judging.wording import CRITERION
from lit_llm.evaluation.line_file import LineFile
from lit_llm.interop import read_model_config
from lit_llm.stages.loading import find_model, is_only_pretrained, load

SETUP, ANSWERS, JUDGEMENTS = "setup.json", "answers.jsonl", "judgements.jsonl"
_REPEATED = 0.1
_KEPT = "{} are kept in {}: the same command goes on from there"


@dataclass(frozen=True)
class Judgement:
    """What came out.

    Attributes:
        folder: where judge.json, judge.md and judge.html are.
        report: the content of the first.
        tables: its tables, in Markdown.
    """

    folder: Path
    report: dict[str, Any]
    tables: str


def judge(config: JudgeConfig) -> Judgement:
    """Have the models answer, the judge judge, and write the report; goes on where an interrupted comparison was.

    Raises:
        UserError: something cannot be read or used, has changed since the comparison began, or an endpoint is down.
    """
    config.check_complete()
    _check_used(config)
    rubric = None if config.rubric is None else _rubric(config)
    asked = _prompts(config)
    labels = read_labels(config.labels, {each.id for each in asked}, list(config.models))
    given = {
        name: read_answers(name, place, asked, config.answer_field)
        for name, place in config.models.items()
        if _kind(name, place) == "rows"
    }
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "give another --output"):
        if config.overwrite:
            for name in (SETUP, ANSWERS, JUDGEMENTS, *FILES):
                (folder / name).unlink(missing_ok=True)
        check_setup(folder / SETUP, _setup(config, asked, given, rubric), _what_matters(folder))
        endpoint = EndpointJudge(config.judge, rubric) if config.judge.url is not None else None
        answers = _answers(config, asked, given, folder, endpoint)
        _check_answers(answers)
        chosen = endpoint or _judge_of_folder(config, rubric)
        plan = _plan(config, asked, answers, chosen)
        lines = _ask(plan, chosen, folder)
        report = {
            "judge": chosen.name,
            "mode": config.mode,
            "criterion": rubric or CRITERION,
            **summarize(plan, lines, labels, config.seed, config.examples),
            "options": to_plain(config),
        }
        return Judgement(folder, report, write_report(folder, report))


def _check_used(config: JudgeConfig) -> None:
    """Refuse options that nothing in this comparison would read."""
    kinds = {_kind(name, place) for name, place in config.models.items()}
    is_local = "model" in kinds or config.judge.url is None
    rows = {
        "sampling": (kinds != {"rows"}, "every model's answers are in a file already"),
        "answer_field": ("rows" in kinds, "no model's answers are in a file"),
        **dict.fromkeys(("accelerator", "dtype", "batch_size"), (is_local, "no model or judge is a folder")),
    }
    unset = JudgeConfig()
    for name, (is_used, why) in rows.items():
        if not is_used and getattr(config, name) != getattr(unset, name):
            raise UserError(f"{name} is given, but {why}; leave it out")


def _rubric(config: JudgeConfig) -> str:
    if config.judge.url is None and read_model_config(find_model(str(config.judge.model))).output == "score":
        raise UserError(f"rubric is given, but {config.judge.model} is a reward model, which reads none; leave it out")
    text = read_text(Path(str(config.rubric))).strip()
    if not text:
        raise UserError(f"rubric {config.rubric} is empty; say what makes an answer good")
    return text


def _kind(name: str, place: str) -> str:
    """What answers come from: "endpoint", "model" or "rows".

    Raises:
        UserError: there is nothing at `place`, or a folder without either.
    """
    if is_endpoint(place):
        return "endpoint"
    if (find_model(place) / "config.json").is_file() or place.endswith(".gguf"):
        return "model"
    if Path(place).is_dir() and not any(each.is_file() for each in Path(place).rglob("*.json*")):
        raise UserError(f"models.{name}: {place} has neither a model (config.json) nor rows of answers")
    return "rows"


def _prompts(config: JudgeConfig) -> list[Asked]:
    if config.prompts:
        return read_asked(config.prompts, config.max_prompts, "prompts")
    rows = [(name, place) for name, place in config.models.items() if _kind(name, place) == "rows"]
    if not rows:
        raise UserError("there are no prompts, and no file of answers that has them; give --prompts '[FILE]'")
    return read_asked([rows[0][1]], config.max_prompts, f"models.{rows[0][0]}")


def _setup(config: JudgeConfig, asked: list[Asked], given: dict[str, list[str]], rubric: str | None) -> dict[str, str]:
    """What the answers and the verdicts depend on."""
    prompts = [f"{message.role}\0{message.content}" for each in asked for message in each.messages]
    setup = {
        "mode": config.mode,
        "prompts": digest_of(*(each.id for each in asked), *prompts),
        "rubric": digest_of(rubric or CRITERION),
    }
    written = False
    for name, place in config.models.items():
        if name in given:
            setup[f"models.{name}"] = f"answers {digest_of(*given[name])}"
        else:
            written = True
            is_model = _kind(name, place) == "model"
            setup[f"models.{name}"] = f"model {digest_of_model(find_model(place))}" if is_model else place
    if written:
        setup |= {f"sampling.{name}": str(value) for name, value in to_plain(config.sampling).items()}
        setup["dtype"] = config.dtype
    source = config.judge
    if source.url is None:
        return setup | {"judge": f"model {digest_of_model(_judge_folder(config))}"}
    names = ("model", "temperature", "max_tokens", "json_verdict")
    return setup | {"judge": source.url, **{f"judge.{name}": str(getattr(source, name)) for name in names}}


def _what_matters(folder: Path) -> Callable[[str], bool]:
    """Which entries of the setup the answers and the verdicts that are kept depend on."""
    has_answers, has_verdicts = (
        (folder / name).exists() and (folder / name).stat().st_size > 0 for name in (ANSWERS, JUDGEMENTS)
    )

    def matters(name: str) -> bool:
        of_judge = name in ("mode", "rubric", "judge") or name.startswith("judge.")
        return has_verdicts or (has_answers and not of_judge)

    return matters


def _judge_folder(config: JudgeConfig) -> Path:
    folder = find_model(str(config.judge.model))
    if not folder.exists():
        raise UserError(f"judge.model {folder} is not there; give a model folder, or judge.url for an endpoint")
    return folder


def _answers(
    config: JudgeConfig,
    asked: list[Asked],
    given: dict[str, list[str]],
    folder: Path,
    endpoint: EndpointJudge | None,
) -> dict[str, list[str]]:
    """Every model's answers; those that are written are kept in `ANSWERS` one by one, once `endpoint` has answered."""
    answers = {}
    unheard = endpoint
    with closing(LineFile(folder / ANSWERS)) as kept:
        known = {(line["model"], line["prompt"]): line["answer"] for line in kept.lines}
        for name, place in config.models.items():
            if name in given:
                answers[name] = given[name]
                continue

            def keep(each: Asked, answer: str, name: str = name) -> None:
                known[name, each.id] = answer
                kept.add({"model": name, "prompt": each.id, "answer": answer})

            missing = [each for each in asked if (name, each.id) not in known]
            if missing:
                if unheard is not None:
                    unheard.check()
                    unheard = None
                _write(config, name, place, missing, keep)
            answers[name] = [known[name, each.id] for each in asked]
    return answers


def _write(config: JudgeConfig, name: str, place: str, asked: list[Asked], keep: Callable[[Asked, str], None]) -> None:
    if is_endpoint(place):
        address, model = urldefrag(place)
        endpoint = Endpoint(address, model or None, config.endpoint, f"models.{name}")
        try:
            write_by_endpoint(name, endpoint, asked, config.sampling, keep)
        except UserError as error:
            raise UserError(f"{error}; {_KEPT.format('answers', Path(config.output) / ANSWERS)}") from None
        return
    loaded = load(LoadConfig(place, accelerator=config.accelerator, dtype=config.dtype))
    if is_only_pretrained(loaded.folder.resolve()):
        print(
            f"models.{name}: {place} was only pretrained: it goes on with texts, and has not learned to answer; what "
            "the judge makes of that says little of it",
            file=sys.stderr,
        )
    parts = (loaded.model, loaded.tokenizer, loaded.stop_tokens)
    write_by_engine(name, *parts, asked, config.sampling, config.batch_size, keep)


def _check_answers(answers: dict[str, list[str]]) -> None:
    for name, texts in answers.items():
        empty = sum(not text.strip() for text in texts)
        if empty == len(texts):
            raise UserError(f"models.{name}: all {empty:,} answers are empty; there is nothing to judge")
        if empty:
            print(f"{empty:,} of {len(texts):,} answers of {name} are empty", file=sys.stderr)


def _judge_of_folder(config: JudgeConfig, rubric: str | None) -> Judge:
    folder = _judge_folder(config)
    place = str(config.judge.model)
    loaded = load(LoadConfig(str(folder), accelerator=config.accelerator, dtype=config.dtype), reward_models=True)
    if loaded.model.config.output == "score":
        return RewardJudge(loaded.model, loaded.tokenizer, place, config.batch_size)
    return LikelihoodJudge(loaded.model, loaded.tokenizer, place, rubric, config.batch_size)


def _plan(config: JudgeConfig, asked: list[Asked], answers: dict[str, list[str]], chosen: Judge) -> Plan:
    default = 0.0 if config.judge.url is None else _REPEATED
    return Plan(
        asked,
        answers,
        config.baseline,
        graded=config.mode == "grades",
        both_orders=chosen.minds_order,
        repeat=default if config.repeat is None else config.repeat,
        seed=config.seed,
    )


def _ask(plan: Plan, chosen: Judge, folder: Path) -> dict[Any, dict[str, Any]]:
    """The replies to all questions; those that are not known yet are asked for and kept one by one."""
    with closing(LineFile(folder / JUDGEMENTS)) as kept:
        known = {key_of(line): line for line in kept.lines}
        missing = [key for key in plan.keys if key not in known]
        if len(missing) < len(plan.keys):
            print(f"{len(plan.keys) - len(missing):,} of {len(plan.keys):,} replies are there already", file=sys.stderr)
        try:
            with progress("judging", len(missing), "replies") as advance:
                for number, reply in chosen.judge([plan.question(key) for key in missing]):
                    names = dict(zip(("prompt", "first", "second", "repeat"), missing[number], strict=True))
                    kept.add({**names, **to_plain(reply), "text": clean(reply.text)})
                    known[missing[number]] = kept.lines[-1]
                    advance(1)
        except UserError as error:
            raise UserError(f"{error}; {_KEPT.format(f'{len(kept.lines):,} replies', kept.path)}") from None
    return {key: known[key] for key in plan.keys}
