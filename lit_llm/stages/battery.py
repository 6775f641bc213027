"""Batteries, asked of each model of an evaluation or of a model in training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.config import EvaluateConfig, RunConfig, SandboxConfig, UserError, to_plain
from lit_llm.config.digests import digest_of, digest_of_model
from lit_llm.config.json_text import parse_json
from lit_llm.distributed.ranks import failing_together, gather, rank, world_size
from lit_llm.distributed.tensors import is_sharded
from lit_llm.evaluation.battery.definition import open_batteries
from lit_llm.evaluation.battery.finished import read_answers
from lit_llm.evaluation.battery.numbers import paired_difference
from lit_llm.evaluation.battery.reading import QuestionReader
from lit_llm.evaluation.battery.run import (
    Answers,
    AskedTask,
    Examinee,
    Share,
    answers_path,
    ask,
    open_tasks,
    result_of,
    together,
)
from lit_llm.evaluation.battery.sharing import ask_together
from lit_llm.evaluation.sandbox import UNPROTECTED, usable_isolation
from lit_llm.stages.loading import is_only_pretrained
from lit_llm.training.measuring import MeasureEvery

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.model import Decoder
    from lit_llm.stages.loading import LoadedModel
    from lit_llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class AnsweredBattery:
    """What one model has answered.

    Attributes:
        model: "full", or how it is quantized.
        answers: of each task.
    """

    model: str
    answers: list[Answers]


def open_battery(config: EvaluateConfig) -> list[AskedTask]:
    """Read the tasks that are asked for, before anything long begins.

    Raises:
        UserError: a battery, a file or a row is not as it should be.
    """
    if not config.battery:
        return []
    asked = open_tasks(open_batteries(config.battery, config.battery_data, config.battery_tasks), config.limit)
    if config.compare_to is not None:
        for each in asked:
            _earlier(Path(config.compare_to), each)
    for each in asked:
        _tell_of_equal_choices(each)
    if any(each.runs_programs for each in asked):
        unprotected = UNPROTECTED[usable_isolation(config.sandbox)]
        if unprotected:
            print(f"programs run in no sandbox: {unprotected}", file=sys.stderr)
    return asked


def _tell_of_equal_choices(asked: AskedTask) -> None:
    offered = [(question.row, question.row.values.get("choices", question.choices)) for question in asked.questions]
    doubtful = [row for row, choices in offered if len({*choices}) < len(choices)]
    if doubtful:
        print(
            f"task {asked.task.name}: questions with two equal choices, which no model can tell apart: {len(doubtful)} "
            f"of {len(offered)} ({doubtful[0].where})",
            file=sys.stderr,
        )


def ask_battery(
    config: EvaluateConfig, loaded: LoadedModel, asked: Sequence[AskedTask], output: Path
) -> AnsweredBattery:
    """Ask a model all tasks; what is done is kept in the folder `battery` of the output, and is not asked again.

    Every rank must call, and answers its share.

    Raises:
        UserError: what is there was made with something else, or something cannot be asked.
    """
    name = label_of(config)
    answered = AnsweredBattery(name, [])
    if not asked:
        return answered
    reader = QuestionReader(loaded.tokenizer, config.begin_token, config.chat_template)
    chats = [each.task.name for each in asked if reader.is_chat(each.task)]
    if chats:
        with failing_together():
            _ = reader.chat_format  # that there is none should be known at once
        if is_only_pretrained(loaded.folder.resolve()):
            print(
                f"{config.model} was only pretrained, and has not learned to answer in a conversation, which is asked "
                f"of it in {', '.join(chats)}",
                file=sys.stderr,
            )
    examinee = Examinee(loaded.model, reader, loaded.stop_tokens, config.batch_size, config.seed, config.sandbox)
    made_with = {
        "model": digest_of_model(loaded.folder),
        "precision": f"{str(loaded.model.embedding.weight.dtype).removeprefix('torch.')}, {name}",
        "begin_token": config.begin_token,
        "chat_template": str(config.chat_template),
    }
    for each in asked:
        drawn = {"seed": str(config.seed)} if each.task.temperature > 0 else {}
        if each.runs_programs:
            drawn["sandbox"] = digest_of(to_plain(config.sandbox))
        path, all_of_it = answers_path(output, each.task.name, name), {**made_with, **each.made_with, **drawn}
        answers = ask_together(each, examinee, path, all_of_it, config.overwrite, f"{each.task.name} ({name})")
        answered.answers.append(answers)
    return answered


def label_of(config: EvaluateConfig) -> str:
    """What the model that the options describe is called beside another."""
    return "full" if config.quantize == "none" else config.quantize


def battery_report(
    config: EvaluateConfig, asked: Sequence[AskedTask], answered: Sequence[AnsweredBattery]
) -> dict[str, Any]:
    """What was found, for JSON: of each model `tasks`, `groups` and the `centred` mean; and paired `differences`."""
    if not asked:
        return {}
    models = []
    for each in answered:
        results = [result_of(*entry) for entry in zip(asked, each.answers, strict=True)]
        models.append({"model": each.model, "tasks": results, **together(results)})
    differences = []
    if len(answered) == 2:
        first, second = answered
        pairs = zip(asked, first.answers, second.answers, strict=True)
        differences += [_difference(task, first.model, second.model, *found) for task, *found in pairs]
    if config.compare_to is not None:
        for task, answers in zip(asked, answered[-1].answers, strict=True):
            before = _earlier(Path(config.compare_to), task)
            differences.append(_difference(task, config.compare_to, answered[-1].model, before, answers))
    isolation = usable_isolation(config.sandbox) if any(each.runs_programs for each in asked) else None
    return {"limit": config.limit, "isolation": isolation, "models": models, "differences": differences}


def _difference(asked: AskedTask, one: str, other: str, before: Answers, after: Answers) -> dict[str, Any]:
    names = [question.id for question in asked.questions if question.id in before]
    scores = [[found[name]["score"] for name in names] for found in (before, after)]
    return {"task": asked.task.name, "first": one, "second": other, **paired_difference(*scores)}


def _earlier(folder: Path, asked: AskedTask) -> Answers:
    """The answers to a task in an earlier evaluation."""
    path = folder / "evaluation.json"
    try:
        report = parse_json(path.read_bytes())
        models = [each["model"] for each in report["battery"]["models"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"compare_to {folder}: there is no evaluation with a battery in it; give the folder of one that is done"
        ) from error
    made_with, answers = read_answers(answers_path(folder, asked.task.name, models[-1]))
    differing = [name for name, digest in asked.made_with.items() if made_with.get(name) != digest]
    if differing:
        raise UserError(
            f"compare_to {folder}: task {asked.task.name} was asked with another {' and another '.join(differing)}, so "
            "that answers cannot be paired; evaluate both models with the same battery"
        )
    if not any(question.id in answers for question in asked.questions):
        raise UserError(f"compare_to {folder}: task {asked.task.name} has no question in common; raise limit")
    return answers


def open_training_battery(config: RunConfig) -> list[AskedTask]:
    """Read the tasks of `config.trainer.battery`, before data and model are built; none where there is no battery.

    Raises:
        UserError: a battery, a file or a row is not as it should be, or its programs cannot run here.
    """
    options = config.trainer
    if options.battery is None:
        return []
    asked = open_tasks(
        open_batteries(options.battery, options.battery_data, options.battery_tasks), options.battery_limit
    )
    if any(each.runs_programs for each in asked):
        usable_isolation(SandboxConfig())
    return asked


def battery_curves(config: RunConfig, asked: Sequence[AskedTask], tokenizer: Tokenizer) -> list[Callback]:
    """The callback that asks the tasks of `open_training_battery` during training, if there are any.

    Raises:
        UserError: the tokenizer has no form for conversations, or a choice does not fit the model's context.
    """
    options = config.trainer
    if not asked or options.evaluate_every_n_steps is None:
        return []
    reader = QuestionReader(tokenizer)
    if any(reader.is_chat(each.task) for each in asked):
        _ = reader.chat_format
    for each in asked:  # what a measurement would refuse after hours is refused now
        for question in each.questions if each.questions[0].choices else ():
            reader.choices(question, each.task).check_fits(config.model.max_position_embeddings)
    stop_tokens = [] if tokenizer.eot_id is None else [tokenizer.eot_id]

    def measure(model: Decoder) -> dict[str, float]:
        examinee = Examinee(model, reader, stop_tokens, seed=config.seed)
        # ranks that share a sharded model must take the same passes, others take their share of the questions
        share = Share() if is_sharded(model) else Share(rank(), world_size())
        results = []
        for each in asked:
            answers: Answers = {}
            for part in gather(ask(each, examinee, share=share)):
                answers |= part
            results.append(result_of(each, answers))
        figures = {result["task"]: result["accuracy"] for result in results}
        return {f"battery/{name}": value for name, value in figures.items()} | {
            "battery/centred": together(results)["centred"]["value"]
        }

    return [MeasureEvery(options.evaluate_every_n_steps, measure)]
