"""The log-probabilities that a model gives to the tokens of a text."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.distributed.tensors import local_part
from lit_llm.model.arithmetic import at_least_float32
from lit_llm.model.decoder import Decoder
from lit_llm.objectives import IGNORE_INDEX, linear_log_probs

CHUNK_TOKENS = 512
"""Tokens whose logits exist at once, unless the caller chooses."""


class TokenLogProbs(NamedTuple):
    """What `token_log_probs` returns; each tensor has the shape of the targets."""

    log_probs: Tensor
    """In nats, at least float32; 0 where the target is IGNORE_INDEX."""
    entropy: Tensor | None = None
    """Of the distribution that the target was drawn from, in nats and without gradient; None unless asked for."""
    likeliest: Tensor | None = None
    """bool: the target is the likeliest token, the first one of equals; None unless asked for."""


def token_log_probs(
    model: Decoder,
    tokens: Tensor,
    targets: Tensor | None = None,
    *,
    document_ids: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = CHUNK_TOKENS,
    with_entropy: bool = False,
    with_likeliest: bool = False,
) -> TokenLogProbs:
    """Log-probability that a language model gives each target, without the logits of all tokens at once.

    Gradients flow to the model unless grad mode is off; dropout acts if the model is in training mode.

        log_probs = token_log_probs(model, tokens).log_probs  # of tokens[:, 1:], at positions 0 to t - 2

    Args:
        model: a decoder whose output is "tokens"; its head may be quantized.
        tokens: ids that the model reads [b, t].
        targets: id that is to follow each of them [b, t], IGNORE_INDEX (-100) where none is scored. None: the next
            token of the row, and nothing at its last position.
        document_ids: document of each token [b, t], as of `Decoder.forward`.
        temperature: divides the logits.
        chunk_tokens: most targets whose logits exist at once; None: all.
        with_entropy: also return the entropies.
        with_likeliest: also return whether each target is the likeliest token.

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        UserError: as `Decoder.forward`.
    """
    if targets is None:
        targets = torch.full_like(tokens, IGNORE_INDEX)
        targets[:, :-1] = tokens[:, 1:]
    elif targets.shape != tokens.shape:
        raise ValueError(f"tokens {list(tokens.shape)} and targets {list(targets.shape)} must have one shape")
    wanted = targets

    def read(hidden: Tensor, head: nn.Linear) -> TokenLogProbs:
        return hidden_log_probs(
            model,
            hidden,
            head,
            wanted,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
            with_entropy=with_entropy,
            with_likeliest=with_likeliest,
        )

    return model(tokens, document_ids=document_ids, head=read)


def own_targets(model: Decoder, targets: Tensor) -> Tensor:
    """The targets [b, t] of the hidden states that a `head` which reads a part is given; IGNORE_INDEX fills up rows."""
    if model.text_ranks is None:
        return targets
    return model.text_ranks.own(F.pad(targets, (0, -targets.size(1) % model.stream_parts), value=IGNORE_INDEX))


def over_text(model: Decoder, total: Tensor) -> Tensor:
    """Sum over the ranks that share a text what each has found in its part; each has the gradient of that."""
    return total if model.text_ranks is None else model.text_ranks.over_text(total)


def head_rows(head: nn.Linear) -> dict[str, Any]:
    """The arguments `weight` and `part` of a loss: the rows of an output layer, or those of this rank."""
    part = getattr(head, "part", None)  # of a `VocabularyHead`
    return {"weight": head.weight if part is None else local_part(head.weight), "part": part}


def hidden_log_probs(
    model: Decoder,
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = CHUNK_TOKENS,
    with_entropy: bool = False,
    with_likeliest: bool = False,
) -> TokenLogProbs:
    """`token_log_probs` from hidden states, for a `head` callback that needs more than log-probabilities from them.

    Args:
        model: whose hidden states these are.
        hidden: normed hidden states [..., hidden].
        head: the output layer that the callback is given.
        targets: id that is to follow each state [...], IGNORE_INDEX where none is scored.
        temperature: divides the logits.
        chunk_tokens: most targets whose logits exist at once; None: all.
        with_entropy: also return the entropies.
        with_likeliest: also return whether each target is the likeliest token.

    Raises:
        ValueError: as `token_log_probs`.
    """
    states, ids = hidden.flatten(0, -2), targets.flatten()
    if isinstance(head, nn.Linear):
        found = linear_log_probs(
            states,
            targets=ids,
            **head_rows(head),
            chunk_tokens=chunk_tokens,
            softcap=model.config.logits_softcap,
            num_classes=model.config.vocab_size,
            temperature=temperature,
            with_entropy=with_entropy,
            with_likeliest=with_likeliest,
        )
    else:
        found = _through_layer(model, states, ids, chunk_tokens, temperature, with_entropy, with_likeliest)
    parts = iter([found] if isinstance(found, Tensor) else found)
    return TokenLogProbs(
        next(parts).view_as(targets),
        next(parts).view_as(targets) if with_entropy else None,
        next(parts).view_as(targets) if with_likeliest else None,
    )


def _through_layer(
    model: Decoder,
    hidden: Tensor,
    targets: Tensor,
    chunk_tokens: int | None,
    temperature: float,
    with_entropy: bool,
    with_likeliest: bool,
) -> list[Tensor]:
    """Compute what `linear_log_probs` returns with a quantized head, which has no plain weight."""
    scored = targets != IGNORE_INDEX
    log_probs = torch.zeros(targets.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    entropy, likeliest = torch.zeros_like(log_probs), torch.zeros_like(scored)
    size = chunk_tokens or max(targets.numel(), 1)
    for index in scored.nonzero().squeeze(1).split(size):
        wanted = targets[index]
        chunk = torch.log_softmax(at_least_float32(model.logits(hidden[index])) / temperature, dim=-1)
        log_probs[index] = chunk.gather(1, wanted.unsqueeze(1)).squeeze(1)
        if with_entropy:
            entropy[index] = -(chunk.exp() * chunk).sum(-1)
        if with_likeliest:
            likeliest[index] = chunk.argmax(-1) == wanted
    return [log_probs, *[entropy] * with_entropy, *[likeliest] * with_likeliest]
