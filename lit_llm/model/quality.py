"""What quantization costs: the predictions of a model and of its quantized form, compared over texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.model.decoder import Decoder


@dataclass(frozen=True)
class Quality:
    """How far a quantized model's predictions are from the full model's, over the tokens of some texts."""

    tokens: int
    """Predictions that were compared."""
    perplexity: float
    """Of the full model; not a number where no token had another before it."""
    quantized_perplexity: float
    kl: float
    """Mean KL divergence of the quantized model's prediction from the full model's, in nats per token."""
    agreement: float
    """Share of predictions whose likeliest token is the same."""

    def __str__(self) -> str:
        text = f"KL {self.kl:.2g} nats per token, likeliest token the same {self.agreement:.1%}"
        if not math.isnan(self.perplexity):
            text += f", perplexity {self.perplexity:.4g} -> {self.quantized_perplexity:.4g}"
        return f"{text} ({self.tokens} tokens)"


def quality(model: Decoder, quantized: Decoder, windows: Sequence[Tensor]) -> Quality:
    """Compare two models over texts.

    Args:
        model: the full one.
        quantized: the other one.
        windows: token ids [t] of each text, no longer than the context.

    Raises:
        UserError: there is no token, or a text is longer than the context.
    """
    return compare(windows, predictions(model, windows), predictions(quantized, windows))


def predictions(model: Decoder, windows: Iterable[Tensor]) -> Iterator[Tensor]:
    """Log-probabilities [t, vocab] of each text's next tokens, in float32 on the CPU.

    Args:
        model: in evaluation mode.
        windows: token ids [t] of each text.

    Raises:
        UserError: a text is longer than the context.
    """
    device = model.embedding.weight.device
    for window in windows:
        with torch.no_grad():
            logits = model(window.unsqueeze(0).to(device))[0]
            log_probs = logits.float().log_softmax(-1).cpu()
        yield log_probs


def compare(windows: Iterable[Tensor], full: Iterable[Tensor], quantized: Iterable[Tensor]) -> Quality:
    """`quality` from the `predictions` of both models, for when only one of them is in memory at a time.

    Raises:
        UserError: there is no token.
    """
    tokens = targets = same = 0
    kl = loss = quantized_loss = 0.0
    for window, ours, theirs in zip(windows, full, quantized, strict=True):
        tokens += len(window)
        kl += float((ours.exp() * (ours - theirs)).sum(dtype=torch.float64))
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        following = window[1:].cpu().unsqueeze(1)
        targets += len(following)
        loss -= float(ours[:-1].gather(1, following).sum(dtype=torch.float64))
        quantized_loss -= float(theirs[:-1].gather(1, following).sum(dtype=torch.float64))
    if not tokens:
        raise UserError("there is no text to measure the loss of quality on")

    def perplexity(total: float) -> float:
        return math.exp(min(total / targets, 700.0)) if targets else math.nan

    return Quality(tokens, perplexity(loss), perplexity(quantized_loss), kl / tokens, same / tokens)
