"""Rows of task files, of any form, with where each of them stands."""

from __future__ import annotations

import csv
import gzip
import io
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.battery import BatteryTask
from lit_llm.config.json_text import parse_json

LETTERS = string.ascii_uppercase
_PARTS = ("paradigm", "UID", "subject", "category")
_ENDINGS = ("_test", "_val", "_dev", "_train")
_MOST_BYTES = 1 << 30  # of an unpacked file
_NEEDED = {
    "pairs": ("sentence_good", "sentence_bad"),
    "choices": ("question", "choices", "answer"),
    "answers": ("question", "answer"),
    "code": ("prompt", "test", "entry_point"),
    "instructions": ("prompt", "instruction_id_list", "kwargs"),
    "own": ("prompt",),
}


@dataclass(frozen=True)
class Row:
    """One row of a task's files.

    Attributes:
        values: its fields.
        part: the part of the task that it belongs to.
        where: its file and line, for messages.
    """

    values: Mapping[str, Any]
    part: str
    where: str

    def text(self, name: str) -> str:
        """A field that must be a text.

        Raises:
            UserError: it is missing, empty or something else.
        """
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise UserError(f"{self.where}: the field {name} must be a text that is not empty, and is {value!r:.60}")
        return value


def read_rows(path: Path, task: BatteryTask) -> list[Row]:
    """Read the rows of a file in the task's form, and check what each of them has.

    Raises:
        UserError: the file cannot be read, is empty, or a row lacks a field or has an answer that is none of its
            choices.
    """
    text = _text_of(path)
    is_table = path.name.removesuffix(".gz").endswith(".csv")
    if is_table and task.form != "choices":
        raise UserError(f"{path}: a .csv is read for form choices alone; give form {task.form} a .jsonl")
    found = _table_rows(path, text) if is_table else _json_rows(path, text)
    if not found:
        raise UserError(f"{path}: the file of task {task.name} has no row")
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    for ending in _ENDINGS:
        stem = stem.removesuffix(ending)
    rows = []
    for line, values in found:
        where = f"{path}, line {line}"
        missing = [name for name in _NEEDED[task.form] if name not in values]
        if missing:
            raise UserError(
                f"{where}: task {task.name} has no field {missing[0]!r}, which form {task.form} needs; it has "
                f"{', '.join(map(str, values)) or 'none'}"
            )
        rows.append(_checked(Row(values, _part(values, task, stem, where), where), task))
    return rows


def is_choice(row: Row, task: BatteryTask) -> bool:
    """Whether a row is answered by choosing rather than by writing."""
    return task.form == "choices" or (task.form == "own" and "choices" in row.values)


def gold(row: Row) -> int:
    """The index of the right one of a row's choices; `answer` is the index from 0, the letter, or the text of one.

    Raises:
        UserError: it is none of them.
    """
    choices, answer = row.values["choices"], row.values["answer"]
    index = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    if isinstance(answer, str):
        letter = answer.strip().upper()
        if answer in choices:
            index = choices.index(answer)
        elif len(letter) == 1 and letter in LETTERS:
            index = LETTERS.index(letter)
    if not 0 <= index < len(choices):
        raise UserError(
            f"{row.where}: the answer {answer!r:.60} is none of its {len(choices)} choices: an index from 0 to "
            f"{len(choices) - 1}, a letter from A to {LETTERS[len(choices) - 1]}, or the text of one"
        )
    return index


def _checked(row: Row, task: BatteryTask) -> Row:
    if task.form == "pairs":
        row.text("sentence_good"), row.text("sentence_bad")
        return row
    if not is_choice(row, task):
        values = dict(row.values)
        if task.form == "own":
            row.text("prompt")
            if "target" not in values and "verifier" not in values and not task.verifier:
                raise UserError(f"{row.where}: a row of form own has choices and answer, or target; it has neither")
            if "target" in values:
                if not isinstance(values["target"], str | list):
                    raise UserError(
                        f"{row.where}: target must be a text or a list of texts, and is {values['target']!r:.60}; "
                        "a number stands in quotes"
                    )
                values["answer"] = values["target"]  # what verifiers compare with
        return Row(values, row.part, row.where)
    choices = row.values["choices"]
    if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in choices):
        raise UserError(f"{row.where}: choices must be a list of texts that are not empty")
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{row.where}: choices must be 2 to {len(LETTERS)} texts; number of texts here: {len(choices)}")
    if "answer" not in row.values:
        raise UserError(f"{row.where}: a row with choices needs an answer")
    gold(row)
    return row


def _part(values: Mapping[str, Any], task: BatteryTask, stem: str, where: str) -> str:
    if task.part:
        if task.part not in values:
            raise UserError(f"{where}: task {task.name} has part {task.part}, and the row has no such field")
        return str(values[task.part])
    return next((str(values[name]) for name in _PARTS if isinstance(values.get(name), str)), stem)


def _text_of(path: Path) -> str:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                data = file.read(_MOST_BYTES + 1)
        else:
            data = path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path} is larger than 1 GiB, which no task is; correct the path")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (at byte {error.start:,})") from error


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values = parse_json(content)
            if "\\u" in content:
                json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{path}, line {line}: half of a surrogate pair, which is no character") from error
        except ValueError as error:
            raise UserError(f"{path}, line {line}: no JSON ({error})") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}, line {line}: each line must be an object, as {json.dumps({'prompt': '...'})}")
        rows.append((line, values))
    return rows


def _table_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Read MMLU's CSV, which has no header: question, choices, letter of the right one."""
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if not cells:
                continue
            if len(cells) < 4:
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} columns; there must be question, choices and letter"
                )
            question, *choices, letter = cells
            index = LETTERS.find(letter.strip()) if len(letter.strip()) == 1 else -1
            if not 0 <= index < len(choices):
                raise UserError(
                    f"{path}, line {reader.line_num}: the answer {letter!r:.60} is none of its {len(choices)} choices, "
                    f"A to {LETTERS[min(len(choices), len(LETTERS)) - 1]}"
                )
            rows.append((reader.line_num, {"question": question, "choices": choices, "answer": index}))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no CSV ({error})") from error
    return rows


def generated_rows(task: BatteryTask, make: Callable[[str], Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Rows of reasoning_gym's data sets, each of which is a part.

    Args:
        task: names the data sets.
        make: gives the rows of one.
    """
    return [
        Row(values, name, f"{name}, question {number}")
        for name in task.datasets
        for number, values in enumerate(make(name), 1)
    ]
