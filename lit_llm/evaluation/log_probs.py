"""Log-probabilities of given tokens, without all logits at once."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llm.model import Decoder

# Logits that exist at once, in float32: 128 MB.
_LOGITS = 1 << 25


def chosen_log_probs(model: Decoder, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return how likely a model finds each token; it is called in the forward pass, as part of `head`.

    Args:
        model: a language model, whose head may be quantized.
        hidden: what its head reads [n, hidden].
        ids: the tokens that follow [n].

    Returns:
        Log-probabilities in nats, float32 [n]; and whether the token is the likeliest [n].
    """
    chunk = max(_LOGITS // (model.config.vocab_size or 1), 1)
    log_probs, likeliest = [], []
    for states, chosen in zip(hidden.split(chunk), ids.split(chunk), strict=True):
        logits = model.logits(states).float()
        log_probs.append(logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(1))
        likeliest.append(logits.argmax(1) == chosen)
    return torch.cat(log_probs), torch.cat(likeliest)
