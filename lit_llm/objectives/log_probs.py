"""Log-probabilities of given tokens under a model, without ever holding the logits of all of them.

Shapes: n tokens (batch and sequence flattened), s of them supervised, d hidden size, V rows of the output head, C
classes that take part, b sequences of t tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_llm.objectives.head_chunks import ClassPart, HeadChunks, SupervisedRows, accumulation_dtype, product_dtypes


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int | None,
    softcap: float | None = None,
    num_classes: int | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    with_likeliest: bool = False,
    part: ClassPart | None = None,
) -> Any:
    """log softmax(hidden @ weight.T / temperature) of each target, holding the logits of one chunk of tokens at most.

    The backward pass computes the logits of each chunk again, because the gradient of the weight needs to know that
    of every log-probability. Where only the gradient of `hidden` is wanted (a frozen head, as with LoRA), it is
    prepared in the forward pass and nothing is computed twice. Tokens that are not supervised never reach the head.
    Under `torch.autocast` the matrix products take operands of its type, the softmax is float32 and the gradient of
    the weight is accumulated in float32. Double backward is refused.

    Args:
        hidden: [n, d] output of the last norm.
        weight: [V, d] output head.
        targets: [n] class ids below num_classes, IGNORE_INDEX where not supervised.
        chunk_tokens: largest number of supervised tokens whose logits exist at once (one buffer of chunk x C numbers;
            one more with each of `softcap`, `with_entropy` and bfloat16 products); None: all at once, by autograd.
        softcap: replaces each logit x by softcap * tanh(x / softcap), before the temperature.
        num_classes: C; only the first C rows of `weight` take part. None: all.
        temperature: divides the logits.
        with_entropy: also return the entropy of each token's distribution, which carries no gradient.
        with_likeliest: also return whether the target is the likeliest class, the first one of equals.
        part: as of `linear_cross_entropy`.

    Returns:
        Tensor [n] of float32 (float64 for float64 inputs), in nats, 0 where not supervised. With `with_entropy` or
        `with_likeliest` a tuple: that, then the entropies (of the same shape and type, 0 where not supervised), then
        bool [n], False where not supervised.

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1) or targets.shape != hidden.shape[:1]:
        shapes = [list(tensor.shape) for tensor in (hidden, weight, targets)]
        raise ValueError(f"hidden, weight and targets must be [n, d], [V, d] and [n]; their shapes are {shapes}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1, or None")
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")
    num_classes = weight.size(0) if num_classes is None else num_classes
    if chunk_tokens is None and part is None:
        found = _at_once(hidden, weight[:num_classes], targets, softcap, temperature, with_entropy, with_likeliest)
    else:
        size, dtypes = chunk_tokens or max(targets.numel(), 1), product_dtypes(hidden)
        options = _Options(size, softcap, num_classes, temperature, with_entropy, with_likeliest, dtypes, part)
        # Inside the Function grad mode is always off, so whether gradients are wanted is decided here.
        found = _LinearLogProbs.apply(hidden, weight, targets, options, torch.is_grad_enabled())
    return tuple(each for each in found if each is not None) if with_entropy or with_likeliest else found[0]


def sequence_log_probs(log_probs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of each row's log-probabilities over the tokens of its mask, and their number.

    Args:
        log_probs: [b, t]; values outside the mask may be anything, NaN included.
        mask: [b, t], true (or not 0) where a token counts.

    Returns:
        sums [b] of the type of `log_probs`, and counts [b] int64.

    Raises:
        ValueError: shapes that differ.
    """
    if log_probs.shape != mask.shape:
        raise ValueError(f"log_probs {list(log_probs.shape)} and mask {list(mask.shape)} must have one shape")
    mask = mask.bool()
    return torch.where(mask, log_probs, 0.0).sum(-1), mask.sum(-1)


class _Options(NamedTuple):
    chunk_tokens: int
    softcap: float | None
    num_classes: int
    temperature: float
    with_entropy: bool
    with_likeliest: bool
    dtypes: tuple[torch.dtype, torch.dtype]  # see product_dtypes
    part: ClassPart | None = None


def _at_once(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    temperature: float,
    with_entropy: bool,
    with_likeliest: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    rows = SupervisedRows(targets)
    logits = F.linear(rows.select(hidden), weight)
    logits = logits.to(accumulation_dtype(logits.dtype))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    wanted = rows.select(targets)
    target_log_probs = log_probs.gather(1, wanted.unsqueeze(1)).squeeze(1)
    entropy = None
    if with_entropy:
        log_probs = log_probs.detach()
        entropy = rows.spread(-(log_probs.exp() * log_probs).sum(-1))
    likeliest = rows.spread(logits.argmax(-1) == wanted) if with_likeliest else None
    return rows.spread(target_log_probs), entropy, likeliest


def _head_chunks(
    rows: SupervisedRows, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options
) -> HeadChunks:
    return HeadChunks(
        rows,
        hidden,
        weight,
        targets,
        chunk_tokens=options.chunk_tokens,
        num_classes=options.num_classes,
        softcap=options.softcap,
        dtypes=options.dtypes,
        temperature=options.temperature,
        part=options.part,
    )


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options, grad: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        need_weight = grad and ctx.needs_input_grad[1]
        need_hidden = grad and ctx.needs_input_grad[0]
        with torch.autocast(hidden.device.type, enabled=False):
            log_probs, entropy, likeliest, grad_inputs = _forward(
                hidden, weight, targets, options, prepare=need_hidden and not need_weight
            )
        ctx.options, ctx.hidden_dtype = options, hidden.dtype
        if need_weight:
            ctx.save_for_backward(hidden, weight, targets)
        elif need_hidden:
            ctx.save_for_backward(grad_inputs, targets)
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy, likeliest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_log_probs.device.type, enabled=False):
            grad_hidden: Tensor | None
            grad_weight: Tensor | None
            if ctx.needs_input_grad[1]:
                hidden, weight, targets = ctx.saved_tensors
                need_hidden = ctx.needs_input_grad[0]
                grad_hidden, grad_weight = _recompute(hidden, weight, targets, ctx.options, grad_log_probs, need_hidden)
            else:
                grad_inputs, targets = ctx.saved_tensors
                rows = SupervisedRows(targets)
                factor = rows.select(grad_log_probs) / -ctx.options.temperature
                grad_hidden, grad_weight = rows.spread((grad_inputs * factor.unsqueeze(1)).to(ctx.hidden_dtype)), None
        return grad_hidden, grad_weight, None, None, None


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options, prepare: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Log-probabilities, entropies and likeliest [n]; with `prepare` also -temperature * d log p / d hidden [s, d]."""
    rows = SupervisedRows(targets)
    chunks = _head_chunks(rows, hidden, weight, targets, options)
    count = chunks.inputs.size(0)
    target_log_probs = torch.empty(count, dtype=chunks.dtype, device=hidden.device)
    entropy = torch.empty_like(target_log_probs) if options.with_entropy else None
    likeliest = torch.empty_like(target_log_probs, dtype=torch.bool) if options.with_likeliest else None
    buffer = chunks.buffer() if options.with_entropy else None
    grad_inputs = torch.empty_like(chunks.inputs) if prepare else None
    for chunk in chunks:
        logits = chunks.logits(chunk)
        if likeliest is not None:
            likeliest[chunk] = chunks.likeliest(logits, chunk)
        log_probs, _, of_targets = chunks.normalized(logits, chunk)
        target_log_probs[chunk] = of_targets.squeeze(1)
        if entropy is not None and buffer is not None:
            probs = torch.exp(log_probs, out=buffer[: log_probs.size(0)])
            torch.sum(log_probs.mul_(probs), 1, out=entropy[chunk]).neg_()
        elif grad_inputs is not None:
            probs = log_probs.exp_()
        if grad_inputs is not None:
            torch.mm(chunks.loss_gradients(probs, chunk), chunks.head, out=grad_inputs[chunk])
    if options.part is not None:
        for terms in (entropy, grad_inputs):
            if terms is not None:
                options.part.sum(terms)
    return (
        rows.spread(target_log_probs),
        None if entropy is None else rows.spread(entropy),
        None if likeliest is None else rows.spread(likeliest),
        grad_inputs,
    )


def _recompute(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options, grad_log_probs: Tensor, need_hidden: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradients of `hidden` and `weight` from those of the log-probabilities [n]."""
    rows = SupervisedRows(targets)
    chunks = _head_chunks(rows, hidden, weight, targets, options)
    # Scaling rows of [s, d] is cheaper than scaling rows of logits.
    factor = (rows.select(grad_log_probs) / -options.temperature).unsqueeze(1)
    scaled_inputs = (chunks.inputs * factor).to(chunks.inputs.dtype)
    grad_inputs = torch.empty_like(chunks.inputs) if need_hidden else None
    grad_weight = weight.new_zeros(weight.shape, dtype=chunks.dtype)
    for chunk in chunks:
        if options.part is None:
            logits = chunks.logits(chunk)
            probs = torch.softmax(logits, 1, out=logits)
        else:
            probs = chunks.log_probs(chunk)[0].exp_()
        grad_logits = chunks.loss_gradients(probs, chunk)
        if grad_inputs is not None:
            torch.mm(grad_logits, chunks.head, out=grad_inputs[chunk])
        chunks.add_weight_gradient(grad_weight, grad_logits, scaled_inputs[chunk])
    if grad_inputs is not None and options.part is not None:
        options.part.sum(grad_inputs)
    grad_hidden = None if grad_inputs is None else rows.spread((grad_inputs * factor).to(hidden.dtype))
    return grad_hidden, grad_weight.to(weight.dtype)
