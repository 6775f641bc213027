"""The scores that a reward model's or a critic's head, a layer with one output, gives to hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def token_scores(hidden: Tensor, head: nn.Linear) -> Tensor:
    """The score at each token.

    Args:
        hidden: normed hidden states [..., hidden].
        head: a layer of one row.

    Returns:
        Scores [...], computed in the dtype of the head's weight even under autocast, which would round them to
        bfloat16's three digits; as float32, or float64 where the weight is.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        scores: Tensor = head(hidden.to(head.weight.dtype))
    # the sum of the one number there is: a view of it as the model's output would lose FSDP's hooks
    return scores.sum(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def last_scores(hidden: Tensor, head: nn.Linear, lengths: Tensor) -> Tensor:
    """The score at the last token of each text.

    That token is found by the length of the text and never by the id of a padding token, which a text may hold.

    Args:
        hidden: normed hidden states [b, t, hidden] of texts padded on the right.
        head: a layer of one row.
        lengths: tokens in each text without its padding [b], each from 1 to t.

    Returns:
        Scores [b]; types as of `token_scores`.
    """
    # unlike an index, gather refuses the -1 of an empty text
    last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, hidden.size(-1))
    return token_scores(hidden.gather(1, last).squeeze(1), head)
