"""How well a model ranks pairs of answers: by a reward model's scores, log-probabilities or implicit rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.evaluation.perplexity import bootstrap_interval
from lit_llm.interop import load_model_folder, load_tokenizer, read_model_config
from lit_llm.model import Decoder
from lit_llm.modules.weights import copy_weights
from lit_llm.objectives import PreferenceLoss, calibration, ranking_accuracy
from lit_llm.tokenizer import Tokenizer, with_chat_tokens

BINS = 10
"""Number of bins of a table of calibration, from 50% to 100%."""


def ranking(margins: Tensor, seed: int, *, calibrated: bool) -> dict[str, Any]:
    """Return accuracy, mean margin and calibration of a ranking, given the margins of some pairs.

    Args:
        margins: [pairs] what the chosen answer is given less what the rejected one is, at least one pair.
        seed: of the bootstrap behind the interval of the mean.
        calibrated: whether sigmoid(margin) is meant to be the probability that the chosen answer is the better one.

    Returns:
        `accuracy` (a tie is half right) with its `interval`, `mean_margin` with its `margin_interval` (None of a single
        pair), `pairs`, and, where they are meant to be calibrated, `calibration_error` and `calibration`: of each bin
        that has pairs, `from`, `to`, `predicted` and `observed` shares and `pairs`; see `objectives.calibration`.

    Raises:
        UserError: margins are not finite.
    """
    if not torch.isfinite(margins).all():
        raise UserError(
            "what the model gives the answers is not finite; its weights are damaged, or need dtype float32"
        )
    margins = margins.double()
    accuracy, interval = ranking_accuracy(margins)
    row: dict[str, Any] = {
        "accuracy": accuracy,
        "interval": interval,
        "mean_margin": float(margins.mean()),
        "margin_interval": bootstrap_interval([(margins.numpy(), torch.ones_like(margins).numpy())], seed),
        "pairs": margins.numel(),
    }
    if calibrated:
        found = calibration(margins, BINS)
        row["calibration_error"] = found.error
        row["calibration"] = [
            {
                "from": 0.5 + 0.5 * number / BINS,
                "to": 0.5 + 0.5 * (number + 1) / BINS,
                "predicted": found.predicted[number],
                "observed": found.observed[number],
                "pairs": count,
            }
            for number, count in enumerate(found.counts)
            if count
        ]
    return row


def implicit_margins(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return how much higher the implicit reward of DPO is for the chosen answer of each pair than for the rejected.

    Args:
        policy: log-probabilities of chosen and rejected answers under the policy [pairs, 2].
        reference: the same under the reference [pairs, 2].
        beta: how strongly the policy was held to the reference.

    Returns:
        [pairs] beta (log(policy / reference) of the chosen answer less that of the rejected one).
    """
    counts = torch.ones(len(policy))  # of tokens, which DPO's own reward does not divide by
    sides = (*policy.unbind(1), *reference.unbind(1))
    chosen, rejected = PreferenceLoss("sigmoid", beta).implicit_rewards(*sides, counts, counts)
    return chosen - rejected


def load_reference(
    folder: Path, policy: Decoder, tokenizer: Tokenizer, *, device: str, dtype: torch.dtype | None
) -> Decoder:
    """Load the reference model that a policy is compared with.

    Where the policy's vocabulary had grown by chat tokens at the start of its training, the reference grows alike.

    Args:
        folder: its model folder.
        policy: what it is a reference for.
        tokenizer: the policy's.
        device: where the weights go.
        dtype: what they are converted to; None keeps them as stored.

    Raises:
        UserError: it cannot be read, is a reward model, reads other tokens, or has fewer positions than the policy.
    """
    config, own = read_model_config(folder), load_tokenizer(folder)
    config.check_gives_text(f"reference {folder}")
    if tokenizer.digest not in (own.digest, with_chat_tokens(own).digest):
        raise UserError(
            f"reference {folder} has another tokenizer than the model, so that it would read another text; give the "
            "model that the training began with"
        )
    if config.max_position_embeddings < policy.config.max_position_embeddings:
        raise UserError(
            f"reference {folder} has {config.max_position_embeddings} positions, fewer than the model's "
            f"{policy.config.max_position_embeddings}; give the model that the training began with"
        )
    if (config.vocab_size or 0) >= (policy.config.vocab_size or 0):
        return load_model_folder(folder, device=device, dtype=dtype)[0]
    config.vocab_size = policy.config.vocab_size
    grown = Decoder(config)
    copy_weights(folder, grown)
    return grown.to(device=device, dtype=dtype).eval()
