"""A task that several ranks put to a model together, each of which answers its share of the questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lit_llm.distributed.ranks import failing_together, gather, rank, world_size
from lit_llm.evaluation.battery.finished import FinishedAnswers, path_of_rank
from lit_llm.evaluation.battery.run import Answers, AskedTask, Examinee, Share, ask


def ask_together(
    asked: AskedTask, examinee: Examinee, path: Path, made_with: Mapping[str, str], afresh: bool, label: str
) -> Answers:
    """Put one task to a model; every rank must call, and one process alone needs no process group.

    Each rank keeps what it finishes in a file of its own, so that killed ranks lose nothing: whoever goes on takes all
    of it up, in whatever number. In the end all answers are in `path`, and the others' files are gone.

    Args:
        asked: the task.
        examinee: the model, the same on every rank.
        path: where its answers are kept; see `FinishedAnswers`, also for the next two.
        made_with: what they depend on.
        afresh: drop what is there, if it was made with something else.
        label: is shown with the progress of rank 0.

    Returns:
        All answers, on every rank.

    Raises:
        UserError: see `FinishedAnswers` and `ask`; it is raised on rank 0, and the others end.
    """
    share = Share(rank(), world_size())
    kept: FinishedAnswers | None = None
    try:
        with failing_together():
            if share.rank == 0:  # before the others: it takes up what they have left
                kept = FinishedAnswers(path, made_with, afresh)
        with failing_together():
            # where ranks do not see the same disk, they have taken up their own
            kept = kept or FinishedAnswers(path_of_rank(path, share.rank), made_with, afresh)
        known = _all_of(kept.answers)
        with failing_together():
            answers = ask(asked, examinee, kept, share, label, known)
        answers = _all_of(answers)
        with failing_together():
            if share.rank == 0:
                kept.add([answer for name, answer in answers.items() if name not in kept.answers])
    finally:
        if kept is not None:
            kept.close()
    if share.rank > 0:
        kept.path.unlink(missing_ok=True)
    return answers


def _all_of(answers: Answers) -> Answers:
    """Join what the ranks have; every rank must call."""
    return {name: answer for part in gather(answers) for name, answer in part.items()}
