"""Attention on the CPU that goes through a text piece by piece, so that no scores of all pairs of tokens exist.

One operation of torch's, so that the compiler and activation checkpointing see it as one.

Notation used for tensor shapes:
    b: rows, t: tokens, r: queries of a piece, s: keys of a piece, n_h: query heads, n_kv: key and value heads, d: width
    of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lit_llm.model.arithmetic import at_least_float32

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@torch.library.custom_op("lit_llm::piecewise_attention", mutates_args=())
def piecewise_attention(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, pieces: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attend the pieces of `lit_llm.model.spans.cut`.

    Args:
        q: [b, n_h, t, d].
        k: [b, n_kv, t, d].
        v: [b, n_kv, t, d].
        first: the first token that each one sees [b or 1, t].
        pieces: [n, 5].
        scale: what scores are multiplied by.
        softcap: replaces each score x by softcap * tanh(x / softcap).

    Returns:
        [b, n_h, t, d] in the dtype of q, and the log-normaliser of each query's scores [b, n_h, t].
    """
    out = torch.empty_like(q)
    normalisers = q.new_empty(q.shape[:3], dtype=_wide(q.dtype))
    for rows, queries, keys, mask in _each(first, pieces):
        part = q[rows, :, queries], k[rows, :, keys], v[rows, :, keys]
        if softcap is None:
            out[rows, :, queries], normalisers[rows, :, queries] = _FLASH(
                *part, 0.0, mask is None, attn_mask=_added(mask, q.dtype), scale=scale
            )
        else:
            scores = _capped(*part[:2], mask, scale, softcap)[0]
            normaliser = scores.logsumexp(-1, keepdim=True)
            out[rows, :, queries] = _ungrouped(_product((scores - normaliser).exp_(), part[2])).to(q.dtype)
            normalisers[rows, :, queries] = _ungrouped(normaliser).squeeze(-1)
    return out, normalisers


@torch.library.custom_op("lit_llm::piecewise_attention_backward", mutates_args=())
def piecewise_attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    normalisers: Tensor,
    first: Tensor,
    pieces: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v from that of the result; see `piecewise_attention`."""
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, queries, keys, mask in _each(first, pieces):
        part = q[rows, :, queries], k[rows, :, keys], v[rows, :, keys]
        result = out[rows, :, queries], normalisers[rows, :, queries]
        of_part = gradient[rows, :, queries]
        if softcap is None:
            grads = _FLASH_BACKWARD(
                of_part, *part, *result, 0.0, mask is None, attn_mask=_added(mask, q.dtype), scale=scale
            )
        else:
            grads = _capped_gradients(of_part, *part, *result, mask, scale, softcap)
        grad_q[rows, :, queries] = grads[0]
        grad_k[rows, :, keys] += grads[1]
        grad_v[rows, :, keys] += grads[2]
    return grad_q, grad_k, grad_v


@piecewise_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, pieces: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=_wide(q.dtype))


@piecewise_attention_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, first, pieces, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(q, k, v, *output, first, pieces)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = piecewise_attention_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.softcap)
    return (*grads, None, None, None, None)


piecewise_attention.register_autograd(_backward, setup_context=_keep)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _each(first: Tensor, pieces: Tensor) -> Iterator[tuple[slice, slice, slice, Tensor | None]]:
    """Yield rows, queries and keys of each piece, and its mask [1, 1, r, s], or None where causality says it all."""
    for row, start, end, seen, is_masked in pieces.tolist():
        rows = slice(None) if row < 0 else slice(row, row + 1)
        mask = None
        if is_masked:
            keys = torch.arange(seen, end)
            mask = (keys <= keys[start - seen :, None]) & (keys >= first[max(row, 0), start:end, None])
        yield rows, slice(start, end), slice(seen, end), None if mask is None else mask[None, None]


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What the fused kernel adds to the scores: 0 where the mask is True, else minus infinity."""
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _grouped(x: Tensor, n_kv: int) -> Tensor:
    """[b, n_kv, n_h / n_kv, ...] from [b, n_h, ...]."""
    return x.unflatten(1, (n_kv, -1))


def _ungrouped(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def _product(weights: Tensor, v: Tensor) -> Tensor:
    """[b, n_kv, n_h / n_kv, r, d] from weights [b, n_kv, n_h / n_kv, r, s] and v [b, n_kv, s, d]."""
    return weights @ at_least_float32(v).unsqueeze(2)


def _capped(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """The capped scores [b, n_kv, n_h / n_kv, r, s] in float32 at least, and the hyperbolic tangents in them."""
    grouped = _grouped(at_least_float32(q), k.size(1))
    tanh = (grouped @ at_least_float32(k).unsqueeze(2).mT).mul_(scale / softcap).tanh_()
    if mask is None:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril(k.size(2) - q.size(2))
    return (tanh * softcap).masked_fill_(~mask, float("-inf")), tanh


def _capped_gradients(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    normaliser: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n_kv = k.size(1)
    scores, tanh = _capped(q, k, mask, scale, softcap)
    weights = (scores - _grouped(normaliser, n_kv).unsqueeze(-1)).exp_()
    of_out = _grouped(at_least_float32(gradient), n_kv)
    mean = (of_out * _grouped(at_least_float32(out), n_kv)).sum(-1, keepdim=True)
    of_weights = of_out @ at_least_float32(v).unsqueeze(2).mT
    # through the softmax, then through the cap
    of_scores = (of_weights - mean).mul_(weights).mul_(tanh.square_().neg_().add_(1.0)).mul_(scale)
    grad_q = _ungrouped(of_scores @ at_least_float32(k).unsqueeze(2))
    grad_k = (of_scores.mT @ _grouped(at_least_float32(q), n_kv)).sum(2)
    grad_v = (weights.mT @ of_out).sum(2)
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)
