"""Answers that are done, in files beside the report: a battery that was killed goes on where it stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.evaluation.line_file import LineFile, read_lines


class FinishedAnswers:
    """An append-only file of JSON lines: what the answers were made with, and then one line for each question.

    What other ranks have left beside it, as they were killed, is taken up into it.

    Args:
        path: the file, `<task>.<model>.jsonl`; its folder is made.
        made_with: what the answers depend on, by name: they are taken up only where all of it is the same.
        afresh: drop what is there, if it was made with something else.

    Attributes:
        answers: what is done, by the question's id.

    Raises:
        UserError: what is there was made with something else, or cannot be read or written.
    """

    def __init__(self, path: Path, made_with: Mapping[str, str], afresh: bool = False) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        self.path = path
        self.answers = _usable(path, made_with, afresh)
        left = {other: _usable(other, made_with, afresh) for other in _of_other_ranks(path)}
        self._file = LineFile(path)
        if not self._file.lines:
            self._file.add({"made_with": dict(made_with)})
        for other, answers in left.items():
            self.add([answer for name, answer in answers.items() if name not in self.answers])
            other.unlink(missing_ok=True)

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Note answers, each with its question's `id`; they outlast the process, and after `close` a power cut.

        Raises:
            UserError: the disk is full.
        """
        self._file.add(*answers)
        self.answers |= {str(answer["id"]): dict(answer) for answer in answers}

    def close(self) -> None:
        """Put the file on the disk."""
        self._file.close()


def path_of_rank(path: Path, rank: int) -> Path:
    """Where a rank keeps the answers of `path` until all of them are done."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def _of_other_ranks(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{escape(path.stem)}.rank[0-9]*{path.suffix}"))


def _usable(path: Path, made_with: Mapping[str, str], afresh: bool) -> dict[str, dict[str, Any]]:
    """The answers in a file; those that were made with something else are refused, or dropped."""
    if not read_lines(path)[0]:
        return {}
    before, answers = read_answers(path)
    differing = [name for name in {**before, **made_with} if before.get(name) != made_with.get(name)]
    if not differing:
        return answers
    if not afresh:
        raise UserError(
            f"{path} has {len(answers)} answers that were made with another {' and another '.join(differing)}; "
            "give another --output, or drop them with --overwrite true"
        )
    path.unlink()
    return {}


def read_answers(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Read a file of finished answers: what they were made with, and the answers.

    Raises:
        UserError: it is not there or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: the answers of the earlier evaluation are not there")
    lines, _ = read_lines(path)
    try:
        head, *answers = lines
        return dict(head["made_with"]), {answer["id"]: answer for answer in answers}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no file of finished answers; move it away ({error!r:.80})") from error
