"""Putting the tasks of a battery to a model, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from lit_llm.config import SandboxConfig, UserError, to_plain
from lit_llm.config.battery import BatteryTask
from lit_llm.config.digests import digest_of, digest_of_files
from lit_llm.config.extras import optional_module
from lit_llm.config.progress import progress
from lit_llm.evaluation.battery.definition import LocatedTask
from lit_llm.evaluation.battery.finished import FinishedAnswers
from lit_llm.evaluation.battery.numbers import centred_mean, share_interval
from lit_llm.evaluation.battery.questions import Question, questions
from lit_llm.evaluation.battery.reading import QuestionReader
from lit_llm.evaluation.battery.scoring import ChoiceScorer, Encoded
from lit_llm.evaluation.battery.writing import AnswerWriter, check_verifiers, needs_sandbox
from lit_llm.evaluation.verifiers import reasoning_rows
from lit_llm.model import Decoder

Answers = dict[str, dict[str, Any]]
"""Finished answers by their question's id."""


@dataclass(frozen=True)
class AskedTask:
    """A task whose questions have been read.

    Attributes:
        task: the task.
        questions: in the order of their parts.
        files: where they were read.
        made_with: digests of the files and of the options, by name.
        runs_programs: whether answers are programs that run in a sandbox.
    """

    task: BatteryTask
    questions: list[Question]
    files: list[str]
    made_with: dict[str, str]
    runs_programs: bool


def open_tasks(located: Sequence[LocatedTask], limit: int | None) -> list[AskedTask]:
    """Read the questions of tasks, and refuse what is wrong with any of them.

    Raises:
        UserError: see `questions`; or a verifier is not known.
    """
    return [_open_task(each, limit) for each in located]


def _open_task(located: LocatedTask, limit: int | None) -> AskedTask:
    task = located.task
    found = questions(located, limit, lambda name: _reasoning_rows(task, name))
    check_verifiers(task, found)
    shots = {located.folder / task.shots_path.replace("{part}", each.part) for each in found} if task.shots_path else ()
    made_with = {
        "task file": digest_of_files([*located.paths, *sorted(shots)]),
        "task options": digest_of({name: value for name, value in to_plain(task).items() if name not in _NO_EFFECT}),
    }
    return AskedTask(task, found, [str(path) for path in located.paths], made_with, needs_sandbox(task, found))


_NO_EFFECT = ("paths", "source", "group", "shots_path")  # on an answer, once the files are read


def _reasoning_rows(task: BatteryTask, name: str) -> list[dict[str, Any]]:
    """The puzzles of one data set of reasoning_gym, at the task's level of its curriculum."""
    options: dict[str, Any] = {}
    if task.level is not None:
        factory = optional_module("reasoning_gym.factory", f"task {task.name} of form reasoning_gym", "battery")
        if not factory.has_curriculum(name):
            raise UserError(f"task {task.name}: reasoning_gym has no curriculum of {name}; leave level out")
        try:
            curriculum = factory.create_curriculum(name)
            curriculum.set_global_level(task.level)
            made = vars(curriculum.generate_configuration({"size": task.size, "seed": task.seed}))
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(f"task {task.name}: {name} has no level {task.level} ({error!r:.150})") from error
        options = {
            option: tuple(value) if isinstance(value, list) else value
            for option, value in made.items()
            if option not in ("size", "seed")
        }
    return list(reasoning_rows(name, task.size, task.seed, **options))


@dataclass(frozen=True)
class Share:
    """Which part of the questions this process answers: every `ranks`-th one."""

    rank: int = 0
    ranks: int = 1


@dataclass
class Examinee:
    """A model that is asked.

    Args:
        model: a language model.
        reader: encodes for it.
        stop_tokens: ids that end a text.
        batch_size: questions read, and answers written, at once.
        seed: of answers that are drawn.
        sandbox: where programs run that it writes.
    """

    model: Decoder
    reader: QuestionReader
    stop_tokens: Sequence[int] = ()
    batch_size: int = 8
    seed: int = 0
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)


def ask(
    asked: AskedTask,
    examinee: Examinee,
    finished: FinishedAnswers | None = None,
    share: Share | None = None,
    label: str = "",
    known: Mapping[str, dict[str, Any]] | None = None,
) -> Answers:
    """Put one task to a model.

    Args:
        asked: the task.
        examinee: the model.
        finished: what is done already is taken from here, and what becomes done is noted here.
        share: of the questions; None: all.
        label: is shown with the progress; empty shows nothing.
        known: more answers that are done; ranks that answer shares must know the same.

    Returns:
        The answers that are there: of each question its `id`, its `score`, how many of its texts were `cut` at their
        left to fit the context, and what else is known of it.

    Raises:
        UserError: something in the task cannot be asked.
    """
    done: Answers = {**({} if finished is None else finished.answers), **(known or {})}
    share = share or Share()
    missing = [question for question in asked.questions if question.id not in done][share.rank :: share.ranks]
    is_choice = bool(asked.questions[0].choices)
    scorer = ChoiceScorer(examinee.model, examinee.batch_size)
    writer = AnswerWriter(
        examinee.model,
        examinee.reader,
        examinee.stop_tokens,
        examinee.batch_size,
        examinee.seed,
        examinee.sandbox,
    )
    found = _choose(missing, asked.task, examinee.reader, scorer) if is_choice else _write(missing, asked.task, writer)
    with progress(label, len(missing), "questions", shown=bool(label) and bool(missing)) as advance:
        for several in found:
            if finished is not None:
                finished.add(several)
            done |= {answer["id"]: answer for answer in several}
            advance(len(several))
    return done


def _write(missing: Sequence[Question], task: BatteryTask, writer: AnswerWriter) -> Iterator[list[dict[str, Any]]]:
    for answer in writer.write(missing, task):
        yield [answer]


def _choose(
    missing: Sequence[Question], task: BatteryTask, reader: QuestionReader, scorer: ChoiceScorer
) -> Iterator[list[dict[str, Any]]]:
    for _, members in groupby(missing, key=lambda question: question.part if question.examples else ""):
        group = list(members)
        encoded: list[Encoded] = [reader.choices(question, task) for question in group]
        for several in scorer.score(encoded):
            yield [
                {**_chosen(group[number], log_probs), "cut": scorer.cut(encoded[number])}
                for number, log_probs in several
            ]


def _chosen(question: Question, log_probs: Sequence[float]) -> dict[str, Any]:
    """What is known of a question from the log-probabilities of its choices; of equals the first is chosen."""
    right = float(_likeliest(log_probs) == question.gold)
    answer: dict[str, Any] = {"id": question.id, "score": right, "acc": right, "log_probs": list(log_probs)}
    if question.weights:
        by_length = [value / weight for value, weight in zip(log_probs, question.weights, strict=True)]
        answer["score"] = answer["acc_norm"] = float(_likeliest(by_length) == question.gold)
    return answer


def _likeliest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


def result_of(asked: AskedTask, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What came out of a task, for JSON.

    Args:
        asked: the task, all questions of which have an answer.
        answers: by id.

    Returns:
        Its `task`, `form`, `group`, `files`, `questions`, `cut`; `metric`, which its `accuracy` with `interval` is;
        `chance`; `more`: of every other measure its mean with interval; `parts`: of each part, if there are several,
        `part`, `questions`, `accuracy` and `interval`.
    """
    task, found = asked.task, [answers[question.id] for question in asked.questions]
    scores = [answer["score"] for answer in found]
    kept = ("id", "score", "cut", "log_probs", "samples")
    names = [name for name in found[0] if name not in kept and all(name in answer for answer in found)]
    metric = "acc_norm" if "acc_norm" in names else "acc"
    more = {name: _mean([answer[name] for answer in found]) for name in names if name != metric}
    parts: dict[str, list[float]] = {}
    for question, score in zip(asked.questions, scores, strict=True):
        parts.setdefault(question.part, []).append(score)
    of_parts = [{"part": part, "questions": len(each), **_mean(each)} for part, each in parts.items()]
    chances = [1 / len(question.choices) if question.choices else 0.0 for question in asked.questions]
    return {
        "task": task.name,
        "form": task.form,
        "group": task.group,
        "files": asked.files,
        "questions": len(found),
        "cut": sum(answer["cut"] for answer in found),
        "metric": metric,
        **_mean(scores),
        "chance": math.fsum(chances) / len(chances),
        "more": more,
        "parts": of_parts if len(of_parts) > 1 else [],
    }


def _mean(scores: Sequence[float]) -> dict[str, Any]:
    return {"accuracy": math.fsum(scores) / len(scores), "interval": share_interval(scores)}


def together(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What came out of several tasks together: `groups` (mean over their tasks) and the `centred` mean."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if result["group"]:
            groups.setdefault(result["group"], []).append(result)
    means = [
        {
            "group": name,
            "tasks": len(members),
            "accuracy": math.fsum(member["accuracy"] for member in members) / len(members),
            "centred": centred_mean(members),
        }
        for name, members in groups.items()
    ]
    return {"groups": means, "centred": centred_mean(results)}


def answers_path(folder: Path, task: str, model: str) -> Path:
    """Where the finished answers of a task are kept.

    Args:
        folder: of the evaluation.
        task: its name.
        model: "full", or how it is quantized.
    """
    return folder / "battery" / f"{task}.{model}.jsonl"
