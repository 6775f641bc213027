"""The next-token loss: softmax cross-entropy summed over the supervised tokens.

Notation used for tensor shapes: n tokens (batch and sequence flattened), s of them supervised, d hidden size,
V rows of the output head, C classes that take part (C <= V where the vocabulary is padded).

Losses are sums, never means: the caller divides by the count of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_llm.objectives.head_chunks import (
    IGNORE_INDEX,
    ClassPart,
    HeadChunks,
    SupervisedRows,
    accumulation_dtype,
    add_product,
    even_chunks,
    largest_class,
    product_dtypes,
)


def cross_entropy_sum(logits: Tensor, targets: Tensor, softcap: float | None = None, z_loss: float = 0.0) -> Tensor:
    """Sum over supervised tokens of -log p(target) + z_loss * logsumexp(logits)^2.

    Args:
        logits: [n, C], raw (before the soft cap), of any float type; the arithmetic is float32 (float64 if they are).
        targets: [n] class ids, IGNORE_INDEX where not supervised.
        softcap: replaces each logit x by softcap * tanh(x / softcap) (Gemma 2, https://arxiv.org/abs/2408.00118).
        z_loss: weight of the squared log-normaliser (PaLM, https://arxiv.org/abs/2204.02311, section 5).

    Returns:
        scalar, in nats; 0 where no token is supervised.
    """
    logits = logits.to(accumulation_dtype(logits.dtype))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    if z_loss:
        log_normaliser = torch.logsumexp(logits[targets != IGNORE_INDEX], dim=-1)
        loss = loss + z_loss * log_normaliser.square().sum()
    return loss


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int | None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    num_classes: int | None = None,
    part: ClassPart | None = None,
    supervised: Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """`cross_entropy_sum` of `hidden @ weight.T`, without ever holding the logits of more than one chunk of tokens.

    The gradient for a unit output gradient is computed in the forward pass, chunk by chunk, so nothing is recomputed
    and the backward pass is one multiplication (Liger Kernel, https://arxiv.org/abs/2410.10989, section 3.2). Tokens
    that are not supervised never reach the head. Under `torch.autocast` the matrix products take operands of its
    type, the softmax is float32 and the gradient of the weight is accumulated in float32. Double backward is refused.

    Args:
        hidden: [n, d] output of the last norm.
        weight: [V, d] output head.
        targets: [n] class ids below num_classes, IGNORE_INDEX where not supervised.
        chunk_tokens: largest number of supervised tokens whose logits exist at once (one buffer of chunk x C numbers,
            two with `softcap` or with bfloat16 products); None: all logits at once, through autograd.
        softcap: see `cross_entropy_sum`.
        z_loss: see `cross_entropy_sum`.
        num_classes: C; only the first C rows of `weight` take part. None: all.
        part: where ranks share the head, which of all rows `weight` is; `num_classes` must be given then, and every
            rank returns the loss over all classes.
        supervised: places of the tokens that are not IGNORE_INDEX [s], where they are known; to look for them waits
            for a GPU.
        compiled: let torch's compiler make one function of what a training step does between the products of a chunk.

    Returns:
        scalar float32 (float64 for float64 inputs), in nats.
    """
    num_classes = weight.size(0) if num_classes is None else num_classes
    if chunk_tokens is None and part is None:
        return cross_entropy_sum(F.linear(hidden, weight[:num_classes]), targets, softcap, z_loss)
    chunk_tokens = chunk_tokens or max(targets.numel(), 1)
    options = _Options(chunk_tokens, softcap, z_loss, num_classes, *product_dtypes(hidden), part, compiled)
    # Inside the Function grad mode is always off, so whether gradients are wanted is decided here.
    return _LinearCrossEntropy.apply(hidden, weight, targets, supervised, options, torch.is_grad_enabled())


@torch.no_grad()
def linear_correct(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int | None,
    num_classes: int | None = None,
    part: ClassPart | None = None,
) -> Tensor:
    """How many supervised tokens have their target as the class with the largest logit; the first one of equals.

    Arguments are those of `linear_cross_entropy`; a soft cap would leave the order of the logits as it is.

    Returns:
        scalar int64.
    """
    rows = SupervisedRows(targets)
    inputs, wanted = rows.select(hidden), rows.select(targets)
    size = chunk_tokens or max(wanted.numel(), 1)
    parts = zip(inputs.split(size), wanted.split(size), strict=True)
    if num_classes is not None:
        weight = weight[: num_classes - (part.first if part else 0)]
    right = [(largest_class(F.linear(rows_of, weight), part) == target).sum() for rows_of, target in parts]
    return torch.stack(right).sum()


class _Options(NamedTuple):
    chunk_tokens: int
    softcap: float | None
    z_loss: float
    num_classes: int
    operand_dtype: torch.dtype  # what the operands of the matrix products are rounded to
    product_dtype: torch.dtype  # what the products are computed in
    part: ClassPart | None = None
    compiled: bool = False


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        supervised: Tensor | None,
        options: _Options,
        grad: bool,
    ) -> Tensor:
        need_hidden = grad and ctx.needs_input_grad[0]
        need_weight = grad and ctx.needs_input_grad[1]
        fuses = options.compiled and options.part is None and (need_hidden or need_weight)
        compute = _fused_loss_and_gradients if fuses else _loss_and_gradients
        with torch.autocast(hidden.device.type, enabled=False):
            rows = SupervisedRows(targets, supervised)
            loss, grad_hidden, grad_weight = compute(rows, hidden, weight, targets, options, need_hidden, need_weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Out of place: the saved gradients must survive a second backward with retain_graph.
        grads = [None if saved is None else saved * grad_output for saved in ctx.saved_tensors]
        return (*grads, None, None, None, None)


def _fused_loss_and_gradients(
    rows: SupervisedRows,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    options: _Options,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_loss_and_gradients` with one compiled function between the products of a chunk."""
    dtype, wide = options.product_dtype, accumulation_dtype(options.product_dtype)
    inputs = rows.select(hidden).to(options.operand_dtype).to(dtype)
    head = weight[: options.num_classes].to(options.operand_dtype).to(dtype)
    grad_inputs = torch.empty_like(inputs) if need_hidden else None
    grad_weight = weight.new_zeros(weight.shape, dtype=wide) if need_weight else None
    loss = hidden.new_zeros((), dtype=wide)
    wanted = rows.select(targets)
    for chunk in even_chunks(inputs.size(0), options.chunk_tokens):
        product = inputs[chunk] @ head.t()
        of_chunk, grad_logits = compiled_loss()(product, wanted[chunk], options.softcap, options.z_loss)
        loss += of_chunk
        if grad_inputs is not None:
            torch.mm(grad_logits, head, out=grad_inputs[chunk])
        if grad_weight is not None:
            add_product(grad_weight[: head.size(0)], grad_logits, inputs[chunk])
    return (
        loss,
        None if grad_inputs is None else rows.spread(grad_inputs.to(hidden.dtype)),
        None if grad_weight is None else grad_weight.to(weight.dtype),
    )


def loss_and_gradient(product: Tensor, targets: Tensor, softcap: float | None, z_loss: float) -> tuple[Tensor, Tensor]:
    """`cross_entropy_sum` of logits [r, C], and its gradient in their type; the formula that the compiler is given."""
    logits = product.to(accumulation_dtype(product.dtype))
    tanh = None if softcap is None else torch.tanh(logits / softcap)
    if softcap is not None and tanh is not None:
        logits = softcap * tanh
    index = targets.unsqueeze(1)
    normaliser = logits.logsumexp(1, keepdim=True)
    loss = (normaliser - logits.gather(1, index)).sum()
    gradient = (logits - normaliser).exp()
    if z_loss:
        loss = loss + z_loss * normaliser.square().sum()
        gradient = gradient * (1 + 2 * z_loss * normaliser)
    gradient = gradient - (torch.arange(logits.size(1), device=logits.device) == index).to(gradient.dtype)
    if tanh is not None:
        gradient = gradient * (1 - tanh.square())
    return loss, gradient.to(product.dtype)


@cache
def compiled_loss() -> Callable[..., tuple[Tensor, Tensor]]:
    """`loss_and_gradient`, compiled when it is first called."""
    return torch.compile(loss_and_gradient)


def _loss_and_gradients(
    rows: SupervisedRows,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    options: _Options,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and d loss / d hidden [n, d] and d loss / d weight [V, d] where needed."""
    chunks = HeadChunks(
        rows,
        hidden,
        weight,
        targets,
        chunk_tokens=options.chunk_tokens,
        num_classes=options.num_classes,
        softcap=options.softcap,
        dtypes=(options.operand_dtype, options.product_dtype),
        part=options.part,
    )
    grad_inputs = torch.empty_like(chunks.inputs) if need_hidden else None
    grad_weight = weight.new_zeros(weight.shape, dtype=chunks.dtype) if need_weight else None
    loss = hidden.new_zeros((), dtype=chunks.dtype)
    for chunk in chunks:
        log_probs, target_logits, target_log_probs = chunks.log_probs(chunk)
        loss -= target_log_probs.sum()
        if options.z_loss:
            log_normaliser = target_logits - target_log_probs
            loss += options.z_loss * log_normaliser.square().sum()
        if not need_hidden and not need_weight:
            continue
        if options.z_loss:
            probs = log_probs.exp_().mul_(1 + 2 * options.z_loss * log_normaliser)
            grad_logits = chunks.loss_gradients(probs, chunk)
        else:
            grad_logits = chunks.softmax_gradients(log_probs, chunk)
        if grad_inputs is not None:
            torch.mm(grad_logits, chunks.head, out=grad_inputs[chunk])
        if grad_weight is not None:
            chunks.add_weight_gradient(grad_weight, grad_logits, chunks.inputs[chunk])
    if grad_inputs is not None and options.part is not None:
        options.part.sum(grad_inputs)
    return (
        loss,
        None if grad_inputs is None else rows.spread(grad_inputs.to(hidden.dtype)),
        None if grad_weight is None else grad_weight.to(weight.dtype),
    )
