"""Answers that are done, in files beside the report: a battery that was killed goes on where it stood."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_llm.config import UserError


class FinishedAnswers:
    """An append-only file of JSON lines: what the answers were made with, and then one line for each question.

    Args:
        path: the file.
        made_with: what the answers depend on, by name: they are taken up only where all of it is the same.
        afresh: drop what is there, if it was made with something else.

    Raises:
        UserError: what is there was made with something else, or cannot be read or written.
    """

    def __init__(self, path: Path, made_with: Mapping[str, str], afresh: bool = False) -> None:
        self.path = path
        self.answers: dict[str, dict[str, Any]] = {}
        """What is done, by the question's id."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._take_up(dict(made_with), afresh)
            self._file = path.open("ab", buffering=0)
            if self._file.tell() == 0:
                self._write([{"made_with": dict(made_with)}])
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Note answers, each with its question's `id`; they outlast the process, and after `close` a power cut.

        Raises:
            UserError: the disk is full.
        """
        try:
            self._write(answers)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        self.answers |= {str(answer["id"]): dict(answer) for answer in answers}

    def close(self) -> None:
        """Put the file on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        while data:
            data = data[self._file.write(data) :]

    def _take_up(self, made_with: dict[str, str], afresh: bool) -> None:
        data = self.path.read_bytes()
        size = data.rfind(b"\n") + 1
        if size < len(data):  # half a line is what a killed process leaves
            with self.path.open("r+b") as file:
                file.truncate(size)
        if not size:
            return
        before, answers = read_answers(self.path)
        differing = [name for name in {**before, **made_with} if before.get(name) != made_with.get(name)]
        if not differing:
            self.answers = answers
        elif afresh:
            self.path.unlink()
        else:
            raise UserError(
                f"{self.path} has {len(answers)} answers that were made with another "
                f"{' and another '.join(differing)}; give another --output, or drop them with --overwrite true"
            )


def read_answers(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Read a file of finished answers: what they were made with, and the answers by id.

    Raises:
        UserError: it is not there or damaged.
    """
    try:
        head, *lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        return head["made_with"], {line["id"]: line for line in lines}
    except OSError as error:
        raise UserError(f"{path}: there are no answers of an earlier evaluation ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no file of finished answers; move it away ({error!r:.80})") from error


def digest_of(*values: Any) -> str:
    """A short digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_of_files(paths: Iterable[Path]) -> str:
    """A short digest of the contents of files.

    Raises:
        UserError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:16]


def digest_of_model(folder: Path) -> str:
    """A short digest of all that decides what a model says: its weights, its configuration and its tokenizer."""
    if folder.is_file():
        return digest_of_files([folder])
    names = ("*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    return digest_of_files(sorted(path for name in names for path in folder.glob(name)))
