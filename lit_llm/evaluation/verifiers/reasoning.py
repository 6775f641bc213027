"""Puzzles of `reasoning_gym`, whose own scores say what is right."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.extras import optional_module
from lit_llm.evaluation.verifiers.verdict import Verdict, field

_TAG = "answer"


def reasoning_rows(name: str, size: int, seed: int, **options: Any) -> Iterator[dict[str, Any]]:
    """Rows of a task: `question`, `answer`, `metadata`, and `dataset`, which is all that makes the puzzles again.

    Args:
        name: A data set of `reasoning_gym`, such as "chain_sum".
        size: Number of puzzles.
        seed: Decides which ones.
        options: Of that data set, such as how hard they are.

    Raises:
        UserError: the library is not installed, there is no such data set, or an option does not fit.
    """
    dataset = _dataset(name, tuple(sorted(options.items())), size, seed)
    for index, puzzle in enumerate(dataset):
        made_from = {"name": name, "size": size, "seed": seed, "index": index, "options": options}
        yield {**puzzle, "dataset": made_from}


@functools.lru_cache(maxsize=64)
def _dataset(name: str, options: tuple[tuple[str, Any], ...], size: int, seed: int) -> Any:
    library = optional_module("reasoning_gym", "the verifier reasoning_gym", "battery")
    names = optional_module("reasoning_gym.factory", "the verifier reasoning_gym", "battery").DATASETS
    if name not in names:
        raise UserError(f"reasoning_gym has no data set {name}; it has {', '.join(sorted(names))}")
    try:
        return library.create_dataset(name, size=size, seed=seed, **dict(options))
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"the data set {name} of reasoning_gym cannot be made: {' '.join(str(error).split())}"
        ) from error


def reasoning_gym(text: str, row: Mapping[str, Any]) -> Verdict:
    """Whether a text solves a puzzle completely: the score of its data set is 1.

    What counts is inside of the last `<answer>` tags where there are any, else the whole text, without white space
    around it.

    Raises:
        UserError: the row is not from `reasoning_rows`, or its puzzle comes out differently here.
    """
    made_from = field(row, "dataset", Mapping)
    options = tuple(sorted(field({"options": {}, **made_from}, "options", Mapping).items()))
    name, size, seed, index = (field(made_from, key, kind) for key, kind in _KEYS.items())
    dataset = _dataset(name, options, size, seed)
    if not 0 <= index < size:
        raise UserError(f"the index {index} of a row is not below its size, {size}")
    puzzle = dataset[index]
    if puzzle["question"] != field(row, "question"):
        raise UserError(
            f"puzzle {index} of {name} with seed {seed} differs from the row's question: the file was written with "
            "another version of reasoning_gym; write it again"
        )
    score = float(dataset.score_answer(extract_answer(text), entry=puzzle))
    return Verdict(score >= 1, "" if score >= 1 else f"score {score:.2f} of 1")


_KEYS = {"name": str, "size": int, "seed": int, "index": int}


def extract_answer(text: str) -> str:
    """What stands in the last pair of `<answer>` tags, or the whole text."""
    _, start, after = text.rpartition(f"<{_TAG}>")
    return (after.partition(f"</{_TAG}>")[0] if start else text).strip()
