"""What several answers to one question say together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

Answer = TypeVar("Answer", bound=Hashable)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The probability that at least one of k answers is right, drawn without replacement from those that there are.

    The unbiased estimator 1 - C(samples - correct, k) / C(samples, k) of Chen et al. (2021), "Evaluating Large Language
    Models Trained on Code", equation 1.

    Args:
        samples: Answers that were drawn.
        correct: Those of them that are right.
        k: Answers that a user would look at, no more than `samples`.

    Raises:
        ValueError: the three do not fit each other.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {correct} right answers among {samples}: there is no such draw")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority(answers: Iterable[Answer | None]) -> Answer | None:
    """The answer that was given most often; among equals, the one that came first.

    Args:
        answers: What was read from each text; None, where nothing was, has no vote.

    Returns:
        None where no text has an answer.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None
