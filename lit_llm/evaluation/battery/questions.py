"""What a task asks: each row with its examples, as a text or as a conversation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.battery import BatteryTask
from lit_llm.evaluation.battery.definition import LocatedTask
from lit_llm.evaluation.battery.rows import LETTERS, Row, generated_rows, gold, is_choice, read_rows
from lit_llm.tokenizer.chat import Message

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Attributes:
        id: its part and its number in it, which is the same whatever is left out.
        row: the row that it is made of.
        description: what stands before everything.
        examples: prompts and answers of the solved examples.
        prompt: the question itself.
        choices: what is scored after the prompt; empty where an answer is written.
        gold: index of the right choice.
        weights: what the log-probability of each choice is divided by for acc_norm, its characters; empty: none.
    """

    id: str
    row: Row
    description: str
    examples: tuple[tuple[str, str], ...]
    prompt: str
    choices: tuple[str, ...] = ()
    gold: int = 0
    weights: tuple[int, ...] = ()

    @property
    def part(self) -> str:
        """The part of the task that it belongs to."""
        return self.row.part

    def context(self, task: BatteryTask) -> str:
        """The text before the answer."""
        solved = "".join(f"{prompt}{task.delimiter}{answer}{task.separator}" for prompt, answer in self.examples)
        return f"{self.description}{solved}{self.prompt}"

    def turns(self) -> list[Message]:
        """The same as a conversation, in which each example is a turn of the user and one of the assistant."""
        turns = [
            Message(role, text)
            for example in self.examples
            for role, text in zip(("user", "assistant"), example, strict=True)
        ]
        turns.append(Message("user", self.prompt))
        turns[0] = Message("user", self.description + turns[0].content)
        return turns


def questions(
    located: LocatedTask, limit: int | None, make_rows: Callable[[str], Sequence[Mapping[str, Any]]] | None = None
) -> list[Question]:
    """Make the questions of a task, part by part.

    Args:
        located: the task and its files.
        limit: of each part, take only the first so many.
        make_rows: gives the rows of a data set of reasoning_gym.

    Raises:
        UserError: files are missing or have something wrong, or there are too few examples.
    """
    task = located.task
    if task.form == "reasoning_gym":
        assert make_rows is not None
        rows = generated_rows(task, make_rows)
    else:
        rows = [row for path in located.paths for row in read_rows(path, task)]
        if len({is_choice(row, task) for row in rows}) > 1:
            raise UserError(
                f"task {task.name}: some rows have choices and others have none; put them into tasks of their own"
            )
        if is_choice(rows[0], task):
            task.refuse_generation("a task whose rows have choices")
    found: list[Question] = []
    for part, members in groupby(sorted(rows, key=lambda row: row.part), key=lambda row: row.part):
        of_part = list(members)
        examples = _examples(located, part, of_part)
        asked = of_part if task.shots_path else of_part[task.shots :]
        if not asked:
            raise UserError(
                f"task {task.name}: part {part} has {len(of_part)} rows, all of them taken as examples; lower shots, "
                "or give shots_path"
            )
        description = task.description.replace("{subject}", part.replace("_", " ")).replace("{part}", part)
        solved = tuple((_prompt(row, task), _answer(row, task)) for row in examples)
        found += [
            _question(f"{part}/{number}", row, task, description, solved) for number, row in enumerate(asked[:limit])
        ]
    return found


def _examples(located: LocatedTask, part: str, rows: Sequence[Row]) -> list[Row]:
    task = located.task
    if not task.shots:
        return []
    found = list(rows)
    if task.shots_path:
        path = located.folder / task.shots_path.replace("{part}", part)
        if not path.is_file():
            raise UserError(f"task {task.name}: the examples {path} are not there; correct shots_path")
        found = read_rows(Path(path), task)
    if len(found) < task.shots:
        raise UserError(f"task {task.name}: part {part} has {len(found)} examples, and shots is {task.shots}")
    return found[: task.shots]


def _question(
    name: str, row: Row, task: BatteryTask, description: str, examples: tuple[tuple[str, str], ...]
) -> Question:
    if task.form == "pairs":
        choices = row.text("sentence_good"), row.text("sentence_bad")
        return Question(name, row, description, examples, task.prompt, choices)
    prompt = _prompt(row, task)
    if not is_choice(row, task):
        return Question(name, row, description, examples, prompt)
    choices = tuple(row.values["choices"])
    if task.form == "choices" and task.score == "letter":
        return Question(name, row, description, examples, prompt, tuple(LETTERS[: len(choices)]), gold(row))
    return Question(name, row, description, examples, prompt, choices, gold(row), tuple(map(len, choices)))


def _prompt(row: Row, task: BatteryTask) -> str:
    """Fill the task's template with the row's fields; it is no place for code, as it knows names alone."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "lettered" and is_choice(row, task):
            lines = zip(LETTERS, row.values["choices"], strict=False)
            return "\n".join(f"{letter}. {text}" for letter, text in lines)
        if name not in row.values:
            raise UserError(f"{row.where}: the prompt of task {task.name} has {{{name}}}, and the row no such field")
        text = str(row.values[name])
        return text.strip() if name == "question" else text

    return _FIELD.sub(value, task.prompt_form)


def _answer(row: Row, task: BatteryTask) -> str:
    if is_choice(row, task):
        index = gold(row)
        by_letter = task.form == "choices" and task.score == "letter"
        return LETTERS[index] if by_letter else str(row.values["choices"][index])
    if "answer" not in row.values:
        raise UserError(f"{row.where}: an example needs an answer; give target, or lower shots of task {task.name}")
    return str(row.values["answer"])
