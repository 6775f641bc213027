"""Verdicts of people, which a judge's are compared with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lit_llm.config import UserError
from lit_llm.data.sources.rows import iterate_rows

Label = tuple[str, str, str]
"""Prompt and the names of two models, sorted: which side each is on means nothing."""

_NAMED = 3


def read_labels(paths: Sequence[str], ids: Collection[str], names: Sequence[str]) -> dict[Label, str]:
    """Read verdicts.

    Args:
        paths: files of rows with `id` and `label`: a, b or tie, or a model's name; and, where there are more than two
            models, with the names of the two in `a` and `b`.
        ids: of the prompts.
        names: of the models.

    Returns:
        For each labelled comparison the name of the better model, or "tie".

    Raises:
        UserError: a row is not as it should be, names a model that is not compared, or contradicts another row; or
            ids are not those of prompts.
    """
    found: dict[Label, str] = {}
    unknown: list[str] = []
    for path in paths:
        for file, number, row in iterate_rows(path, "labels"):
            label, verdict = _label(row, names, f"{file}, row {number:,}")
            if label[0] not in ids:
                unknown.append(label[0])
            elif found.setdefault(label, verdict) != verdict:
                raise UserError(f"{file}, row {number:,}: the prompt {label[0]!r} has another label before; keep one")
    if unknown:
        more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
        told = ", ".join(name[:40] for name in unknown[:_NAMED])
        raise UserError(
            f"labels has ids that no prompt has: {told}{more}; they are the rows' field id, or their numbers from 1 "
            "(of a prompt that is there twice, those of its first row)"
        )
    if paths and not found:
        raise UserError(f"labels {', '.join(paths)}: no row there")
    return found


def _label(row: Any, names: Sequence[str], place: str) -> tuple[Label, str]:
    if not isinstance(row, dict) or row.get("id") is None or not isinstance(row.get("label"), str):
        raise UserError(f'{place}: not an object with "id" and "label", as {{"id": "7", "label": "a"}}')
    one, other = row.get("a"), row.get("b")
    says_sides = one is not None or other is not None
    if not says_sides and len(names) == 2:
        one, other = names
    if one not in names or other not in names or one == other:
        raise UserError(f"{place}: a and b have to name two of the models: {', '.join(names)}")
    said = row["label"].strip()
    one, other = str(one), str(other)
    letters, own = {"a": one, "b": other, "tie": "tie"}, {one: one, other: other}
    # of models that are called a and b, a row means them, unless it says itself what its a and b are
    meanings = {**own, **letters} if says_sides else {**letters, **own}
    better = meanings.get(said, letters.get(said.lower()))
    if better is None:
        raise UserError(f"{place}: the label is {said[:40]!r}; it must be a, b or tie")
    first, second = sorted((one, other))
    return (str(row["id"]), first, second), better
