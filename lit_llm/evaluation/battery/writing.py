"""Answers that the model writes, and whether they are right."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lit_llm.config import SamplingConfig, SandboxConfig, UserError
from lit_llm.config.battery import BatteryTask
from lit_llm.config.seeds import derived_seed
from lit_llm.evaluation.battery.questions import Question
from lit_llm.evaluation.battery.reading import QuestionReader
from lit_llm.evaluation.verifiers import ANSWERS, VERIFIERS, majority, pass_at_k
from lit_llm.evaluation.verifiers.answers import check_pattern
from lit_llm.evaluation.verifiers.harness_numbers import flexible_extract, strict_match
from lit_llm.evaluation.verifiers.programs import python
from lit_llm.generation import Completion, Engine
from lit_llm.model import Decoder

HARNESS_FILTERS = {"strict-match": strict_match, "flexible-extract": flexible_extract}
"""Other verdicts on the same numbers, under the names that published figures have them by."""


def check_verifiers(task: BatteryTask, questions: Sequence[Question]) -> None:
    """Refuse verifiers that there are not, or that lack their pattern, before anything long begins.

    Raises:
        UserError: names the row and what is wrong with it.
    """
    for question in questions:
        if question.choices:
            return
        name = verifier_of(question, task)
        if name not in VERIFIERS:
            raise UserError(
                f"{question.row.where}: there is no verifier {name!r}; known are {', '.join(sorted(VERIFIERS))}"
            )
        if name == "regex":
            try:
                check_pattern(question.row.values)
            except UserError as error:
                raise UserError(f"{question.row.where}: {error}") from None
        if task.majority and name not in ANSWERS:
            raise UserError(
                f"task {task.name}: majority cannot be had of verifier {name}, which compares no answers; leave it out"
            )


def needs_sandbox(task: BatteryTask, questions: Sequence[Question]) -> bool:
    """Whether an answer to one of the questions is a program that is to be run."""
    return any(not question.choices and verifier_of(question, task) == "python" for question in questions)


def verifier_of(question: Question, task: BatteryTask) -> str:
    """The verifier of a question."""
    return str(question.row.values.get("verifier", task.verifier_name))


@dataclass
class AnswerWriter:
    """Writes answers with one model, `batch_size` at a time."""

    model: Decoder
    reader: QuestionReader
    stop_tokens: Sequence[int]
    batch_size: int
    seed: int
    sandbox: SandboxConfig

    def write(self, questions: Sequence[Question], task: BatteryTask) -> Iterator[dict[str, Any]]:
        """Answer questions, those with long prompts first.

        Yields:
            What is known of a question once all its answers are written; see `judged`.

        Raises:
            UserError: predictions are not finite, or a row lacks what its verifier needs.
        """
        if not questions:
            return
        plan = SamplingConfig(
            max_new_tokens=task.answer_tokens,
            temperature=task.temperature,
            top_p=task.top_p,
            stop_strings=task.stops,
            context_full="stop",
        )
        limit = self.model.config.max_position_embeddings
        room = limit - plan.max_new_tokens
        kept = room if room > 0 else max(limit // 2, 1)
        prompts, cut = [], {}
        for question in questions:
            ids = self.reader.prompt(question, task)
            prompts.append((ids[-kept:], question))
            cut[question.id] = int(len(ids) > kept)
        prompts.sort(key=lambda each: len(each[0]), reverse=True)
        engine = Engine(
            self.model,
            min(self.batch_size, len(prompts) * task.samples),
            min(len(prompts[0][0]) + plan.max_new_tokens, limit),
            tokenizer=self.reader.tokenizer,
        )
        ends = list(self.stop_tokens)
        if self.reader.is_chat(task):
            ends += self.reader.chat_format.stop_ids
        places: dict[int, tuple[Question, int]] = {}
        for ids, question in prompts:
            for sample in range(task.samples):
                own = replace(plan, seed=derived_seed(self.seed, task.name, question.id, sample))
                places[engine.submit(ids, own, stop_tokens=ends)] = question, sample
        for answer in self._judge(engine, places, task):
            yield {**answer, "cut": cut[answer["id"]]}

    def _judge(
        self, engine: Engine, places: dict[int, tuple[Question, int]], task: BatteryTask
    ) -> Iterator[dict[str, Any]]:
        running: dict[int, Completion] = {}
        texts: dict[str, dict[int, str]] = {}
        while engine.busy:
            for event in engine.step():
                completion = running.setdefault(event.request, Completion())
                completion.add(event)
                if event.finish_reason is None:
                    continue
                del running[event.request]
                if completion.error is not None:
                    raise completion.error
                question, sample = places[event.request]
                of_question = texts.setdefault(question.id, {})
                of_question[sample] = self._text(completion.ids, task)
                if len(of_question) == task.samples:
                    answers = [text for _, text in sorted(texts.pop(question.id).items())]
                    yield judged(question, task, answers, self.sandbox)

    def _text(self, ids: Sequence[int], task: BatteryTask) -> str:
        """Decode an answer without special tokens, up to the first string that ends it."""
        text = self.reader.tokenizer.decode(ids, skip_special=True)
        for stop in task.stops:
            text = text.partition(stop)[0]
        return text


def judged(question: Question, task: BatteryTask, texts: Sequence[str], sandbox: SandboxConfig) -> dict[str, Any]:
    """Judge the answers to a question; programs run in the sandbox.

    Returns:
        `id`, `score` (the share of right answers), each `pass@k`, `majority`, and `samples` with their `text`, whether
        it is `correct` and the `reason` why not. Of numbers in form answers also the shares by `HARNESS_FILTERS`.
    """
    name = verifier_of(question, task)
    row = question.row.values
    verifier = partial(python, config=sandbox) if name == "python" else VERIFIERS[name]
    try:
        verdicts = [verifier(text, row) for text in texts]
    except UserError as error:
        raise UserError(f"{question.row.where}: {error}") from error
    right = sum(verdict.correct for verdict in verdicts)
    answer: dict[str, Any] = {"id": question.id, "score": right / len(texts)}
    for k in task.pass_at:
        answer[f"pass@{k}"] = pass_at_k(len(texts), right, k)
    if task.form == "answers" and name == "number":
        for measure, is_right in HARNESS_FILTERS.items():
            answer[measure] = sum(is_right(text, str(row["answer"])) for text in texts) / len(texts)
    if task.majority:
        answer["majority"] = _majority(name, texts, row, [verdict.correct for verdict in verdicts])
    answer["samples"] = [
        {"text": text, "correct": verdict.correct, "reason": verdict.reason}
        for text, verdict in zip(texts, verdicts, strict=True)
    ]
    return answer


def _majority(name: str, texts: Sequence[str], row: Any, correct: Sequence[bool]) -> float:
    answers: list[Hashable | None] = [ANSWERS[name](text, row) for text in texts]
    most = majority(answers)
    return 0.0 if most is None else float(correct[answers.index(most)])
