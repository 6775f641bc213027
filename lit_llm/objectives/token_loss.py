"""The next-token loss: softmax cross-entropy summed over the supervised tokens.

Notation used for tensor shapes: n tokens (batch and sequence flattened), s of them supervised, d hidden size,
V rows of the output head, C classes that take part (C <= V where the vocabulary is padded).

Losses are sums, never means: the caller divides by the count of the whole optimizer step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
"""Target of a token that is not supervised."""


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
    logits = logits.to(_accumulation_dtype(logits.dtype))
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

    Returns:
        scalar float32 (float64 for float64 inputs), in nats.
    """
    num_classes = weight.size(0) if num_classes is None else num_classes
    if chunk_tokens is None:
        return cross_entropy_sum(F.linear(hidden, weight[:num_classes]), targets, softcap, z_loss)
    device_type = hidden.device.type
    operand_dtype = hidden.dtype
    if torch.is_autocast_enabled(device_type):
        operand_dtype = torch.get_autocast_dtype(device_type)
    options = _Options(
        chunk_tokens, softcap, z_loss, num_classes, operand_dtype, _product_dtype(operand_dtype, device_type)
    )
    # Inside the Function grad mode is always off, so whether gradients are wanted is decided here.
    return _LinearCrossEntropy.apply(hidden, weight, targets, options, torch.is_grad_enabled())


class _Options(NamedTuple):
    chunk_tokens: int
    softcap: float | None
    z_loss: float
    num_classes: int
    operand_dtype: torch.dtype  # what the operands of the matrix products are rounded to
    product_dtype: torch.dtype  # what the products are computed in


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product_dtype(operand_dtype: torch.dtype, device_type: str) -> torch.dtype:
    """float32 for bfloat16 operands on a processor without bfloat16 arithmetic: it emulates it 3-4 times slower."""
    if operand_dtype != torch.bfloat16 or device_type != "cpu":
        return operand_dtype
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options, grad: bool) -> Tensor:
        need_hidden = grad and ctx.needs_input_grad[0]
        need_weight = grad and ctx.needs_input_grad[1]
        with torch.autocast(hidden.device.type, enabled=False):
            loss, grad_hidden, grad_weight = _loss_and_gradients(
                hidden, weight, targets, options, need_hidden, need_weight
            )
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Out of place: the saved gradients must survive a second backward with retain_graph.
        grads = [None if saved is None else saved * grad_output for saved in ctx.saved_tensors]
        return (*grads, None, None, None)


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options, need_hidden: bool, need_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and d loss / d hidden [n, d] and d loss / d weight [V, d] where needed."""
    n, classes, product_dtype = hidden.size(0), options.num_classes, options.product_dtype
    dtype = _accumulation_dtype(options.operand_dtype)
    supervised = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    if supervised.numel() == n:
        supervised, inputs = None, hidden
    else:
        inputs, targets = hidden.index_select(0, supervised), targets.index_select(0, supervised)
    inputs = inputs.to(options.operand_dtype).to(product_dtype)
    head = weight[:classes].to(options.operand_dtype).to(product_dtype)

    grad_inputs = torch.empty_like(inputs) if need_hidden else None
    grad_weight = weight.new_zeros(weight.shape, dtype=dtype) if need_weight else None
    loss = hidden.new_zeros((), dtype=dtype)
    num_chunks = -(-inputs.size(0) // options.chunk_tokens)
    # Chunks of nearly equal size: the buffers are the smallest that this number of chunks allows.
    buffers = _Buffers(-(-inputs.size(0) // max(num_chunks, 1)), classes, options, dtype, hidden.device)
    for start in range(0, inputs.size(0), max(buffers.rows, 1)):
        rows = slice(start, start + buffers.rows)
        chunk_loss, grad_logits = _chunk(
            inputs[rows], head, targets[rows], options, buffers, need_hidden or need_weight
        )
        loss += chunk_loss
        if grad_inputs is not None:
            torch.mm(grad_logits, head, out=grad_inputs[rows])
        if grad_weight is not None and product_dtype == dtype:
            grad_weight[:classes].addmm_(grad_logits.t(), inputs[rows])
        elif grad_weight is not None:
            grad_weight[:classes] += torch.mm(grad_logits.t(), inputs[rows])

    grad_hidden = None
    if grad_inputs is not None:
        grad_hidden = grad_inputs.to(hidden.dtype)
        if supervised is not None:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, supervised, grad_hidden)
    return loss, grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


class _Buffers:
    """Memory for one chunk of logits, reused by every chunk; each is [rows, C]."""

    def __init__(self, rows: int, classes: int, options: _Options, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = rows
        self.probs = torch.empty(rows, classes, dtype=dtype, device=device)
        narrow = options.product_dtype != dtype
        self.product = torch.empty_like(self.probs, dtype=options.product_dtype) if narrow else self.probs
        self.tanh = torch.empty_like(self.probs) if options.softcap is not None else None


def _chunk(
    inputs: Tensor, head: Tensor, targets: Tensor, options: _Options, buffers: _Buffers, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """The loss of one chunk and, in the type of the matrix products, d loss / d logits [rows, C] (in a buffer).

    A pass over a chunk of logits costs as much as a tenth of a matrix product at small d, so their number is kept
    low: the log-normaliser comes out of the softmax itself, and everything is done in place.
    """
    rows, index = inputs.size(0), targets.unsqueeze(1)
    product, probs = buffers.product[:rows], buffers.probs[:rows]
    torch.mm(inputs, head.t(), out=product)
    if options.softcap is not None:
        tanh = torch.div(product, options.softcap, out=buffers.tanh[:rows]).tanh_()
        torch.mul(tanh, options.softcap, out=probs)
    elif product.dtype != probs.dtype:  # else they are the same memory
        probs.copy_(product)
    target_logits = probs.gather(1, index).squeeze(1)
    largest = probs.amax(1)
    torch.softmax(probs, 1, out=probs)
    # The largest probability is exp(largest - logsumexp) and at least 1 / C, so its logarithm is safe.
    log_normaliser = largest - probs.amax(1).log()
    loss = (log_normaliser - target_logits).sum()
    if options.z_loss:
        loss += options.z_loss * log_normaliser.square().sum()
    if not need_grad:
        return loss, product
    if options.z_loss:
        probs *= (1 + 2 * options.z_loss * log_normaliser).unsqueeze(1)
    probs.scatter_add_(1, index, probs.new_full((), -1.0).expand(rows, 1))
    if options.softcap is not None:
        probs.addcmul_(probs, tanh.square_(), value=-1)
    if product.dtype != probs.dtype:
        product.copy_(probs)
    return loss, product
