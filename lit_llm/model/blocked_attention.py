"""Causal attention in training on the CPU, by blocks of queries, as matrix products in the type of its inputs.

torch's fused kernel for the CPU does not use a processor's bfloat16 products, and with dropout it writes out the scores
of all pairs of tokens. Here scores and the gradients of weights are rounded to the type of the queries, as products are
under autocast; the softmax is computed in float32. One operation of torch's, so that the compiler and activation
checkpointing see it as one.

Notation used for tensor shapes:
    b: rows, t: tokens, r: queries of a block, s: keys that they see, n_h: query heads, n_kv: key and value heads,
    n: rows x n_kv, g: n_h / n_kv, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

LONGEST = 2048
"""Tokens up to which blocks are faster than the fused kernel and small beside what else a step keeps."""
LONGEST_KEPT = 512
"""Tokens up to which the weights are kept for the gradient: they take no more memory than float32 copies of the heads
would. Of longer texts they are computed again."""
_BLOCK = 128  # fewest queries of a block
_BLOCKS = 8  # most blocks of a text: as many roundings go into the gradient of a key
_SCORES = 2**23  # most scores of a block that has more than one row


class _Block(NamedTuple):
    """Rows, queries, and their place in the weights that are kept."""

    rows: slice
    queries: slice
    place: slice


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Attend to every earlier token and to the token itself.

    Args:
        q: [b, n_h, t, d].
        k: [b, n_kv, t, d].
        v: [b, n_kv, t, d].
        scale: what scores are multiplied by.
        dropout: probability of dropping an attention weight.

    Returns:
        [b, n_h, t, d] in the dtype of q.
    """
    # drawn outside the operation: where its result is kept and it does not run again, what is drawn later is the same
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    return attend(q, k, v, seed, scale, dropout)[0]


@torch.library.custom_op("lit_llm::blocked_attention", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, seed: Tensor, scale: float, dropout: float) -> tuple[Tensor, Tensor]:
    """Compute `blocked_attention`; `seed` is that of the weights which are dropped.

    Returns:
        [b, n_h, t, d] in the dtype of q, and the weights that the gradient needs, block after block: a weight that was
        dropped has a minus sign. None are kept where they are computed again.
    """
    generator = torch.Generator().manual_seed(int(seed)) if dropout else None
    out = _heads_last(q)
    kept = q.new_empty(_kept_weights(q, dropout))
    for block in _blocks(q):
        values = _of_heads(v[block.rows, :, : block.queries.stop])
        weights = _weights(q, k, block, scale)
        if dropout:
            weights.mul_(torch.empty_like(weights).bernoulli_(dropout, generator=generator).mul_(-2.0).add_(1.0))
        if kept.numel():
            kept[block.place] = weights.flatten()
        _put(out, block, torch.bmm(_undropped(weights, dropout), values))
    return out, kept


@torch.library.custom_op("lit_llm::blocked_attention_backward", mutates_args=())
def attend_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v from that of the result; see `blocked_attention`."""
    grad_q, grad_k, grad_v = (_heads_last(x) for x in (q, k, v))
    for block in _blocks(q):
        rows, queries, place = block
        keys, values = (_of_heads(x[rows, :, : queries.stop]) for x in (k, v))  # [n, s, d]
        of_queries = gradient[rows, :, queries].reshape(keys.size(0), -1, q.size(3))  # [n, g * r, d]
        scaled = _scaled(q, block, k.size(1), scale)
        if kept.numel():
            weights = kept[place].view(*scaled.shape[:2], -1)  # [n, g * r, s]
        else:
            weights = _weights(q, k, block, scale)
        of_weights = torch.bmm(of_queries, values.mT)
        if dropout:
            of_weights.mul_(_undropped(weights.sign(), dropout))
        of_scores = torch._softmax_backward_data(of_weights, weights.abs() if dropout else weights, -1, q.dtype)
        _put(grad_q, block, torch.bmm(of_scores, keys).mul_(scale))
        of_keys = torch.bmm(of_scores.mT, scaled)
        of_values = torch.bmm(_undropped(weights, dropout).mT, of_queries)
        for total, part in ((grad_k, of_keys), (grad_v, of_values)):
            seen, part = total[rows, :, : queries.stop], part.view(-1, k.size(1), *part.shape[1:])
            # the last block comes first, and sees every key
            seen.copy_(part) if queries.stop == q.size(2) else seen.add_(part)
    return grad_q, grad_k, grad_v


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, seed: Tensor, scale: float, dropout: float) -> tuple[Tensor, Tensor]:
    return _heads_last(q), q.new_empty(_kept_weights(q, dropout))


@attend_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_last(q), _heads_last(k), _heads_last(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, ctx.scale, ctx.dropout = inputs
    ctx.save_for_backward(q, k, v, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*attend_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.dropout), None, None, None)


attend.register_autograd(_backward, setup_context=_keep)


def _block_length(length: int) -> int:
    return max(_BLOCK, -(-length // _BLOCKS))


def _blocks(q: Tensor) -> Iterator[_Block]:
    """Cut q [b, n_h, t, d] into blocks, each group of rows from its last queries to its first."""
    b, n_h, t, _ = q.shape
    size, place = _block_length(t), 0
    count = max(1, _SCORES // (n_h * min(size, t) * t))
    for row in range(0, b, count):
        rows = slice(row, min(row + count, b))
        for start in reversed(range(0, t, size)):
            end = min(start + size, t)
            weights = (rows.stop - row) * n_h * (end - start) * end
            yield _Block(rows, slice(start, end), slice(place, place + weights))
            place += weights


def _kept_weights(q: Tensor, dropout: float) -> int:
    """Count the weights that are kept: none where they can be computed again, and take much memory."""
    b, n_h, t, _ = q.shape
    if t > LONGEST_KEPT and not dropout:
        return 0
    size = _block_length(t)
    return b * n_h * sum((min(start + size, t) - start) * min(start + size, t) for start in range(0, t, size))


def _heads_last(x: Tensor) -> Tensor:
    """Make room for the shape of x [b, n, t, d] that lies in memory as the products around attention have it."""
    b, n, t, d = x.shape
    return x.new_empty(b, t, n, d).transpose(1, 2)


def _of_heads(x: Tensor) -> Tensor:
    """[n, s, d] from [b, n_kv, s, d]."""
    return x.flatten(0, 1)


def _scaled(q: Tensor, block: _Block, n_kv: int, scale: float) -> Tensor:
    """The queries of a block [n, g * r, d], times the scale, which so is rounded where it is no power of two."""
    part = q[block.rows, :, block.queries]
    return part.reshape(part.size(0) * n_kv, -1, part.size(3)) * scale


def _weights(q: Tensor, k: Tensor, block: _Block, scale: float) -> Tensor:
    """The weights of a block [n, g * r, s], before any is dropped."""
    queries, end = block.queries, block.queries.stop
    scores = torch.bmm(_scaled(q, block, k.size(1), scale), _of_heads(k[block.rows, :, :end]).mT)
    r = end - queries.start
    later = torch.full((r, r), float("-inf"), dtype=q.dtype).triu_(1)
    scores.view(-1, r, end)[..., queries.start :] += later
    return torch.softmax(scores, -1)


def _undropped(weights: Tensor, dropout: float) -> Tensor:
    """Weights of which those with a minus sign are dropped, and the others make up for them."""
    return weights.clamp(min=0.0).div_(1.0 - dropout) if dropout else weights


def _put(out: Tensor, block: _Block, part: Tensor) -> None:
    """Write [n, g * r, d] where the block stands in out [b, n_h, t, d]."""
    place = out[block.rows, :, block.queries]
    place.copy_(part.view(place.shape))
