"""The output head applied to chunks of supervised tokens: logits and their gradients in memory that chunks share.

Several ranks can share a head by classes; then each has the logits of its own, and a loss is made of sums over all.

Shapes: n tokens, s of them supervised, r in a chunk, d hidden size, V rows of the head, C <= V classes that take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Target of a token that is not supervised."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that softmax and sums are computed in for operands of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtypes(hidden: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The type that the operands of the head's matrix products are rounded to, and the one they are computed in.

    Under `torch.autocast` operands get its type. The second type is float32 for bfloat16 operands on a processor
    without bfloat16 arithmetic: it emulates it 3-4 times slower.
    """
    device_type = hidden.device.type
    operand = hidden.dtype
    if torch.is_autocast_enabled(device_type):
        operand = torch.get_autocast_dtype(device_type)
    if operand != torch.bfloat16 or device_type != "cpu":
        return operand, operand
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return operand, torch.bfloat16 if native else torch.float32


def _kernels_convert(product: Tensor, wide: torch.dtype) -> bool:
    """Whether a kernel that reads or writes `product` and computes in a wider type spares passes that convert it."""
    return product.is_cuda and product.dtype != wide


class ClassPart(Protocol):
    """The classes of one of several ranks that share a head, and what they work out together."""

    first: int
    """This rank's first class."""

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place."""

    def max(self, x: Tensor) -> Tensor:
        """Take the maximum over the ranks, in place."""


class SupervisedRows:
    """Which of n tokens are supervised.

    Args:
        targets: [n] class ids, IGNORE_INDEX where not supervised.
        index: places of the supervised tokens [s], where they are known. To look for them waits for a GPU.
    """

    def __init__(self, targets: Tensor, index: Tensor | None = None) -> None:
        self._total = targets.size(0)
        if index is None:
            index = (targets != IGNORE_INDEX).nonzero().squeeze(1)
        self._index = None if index.numel() == self._total else index

    def select(self, rows: Tensor) -> Tensor:
        """Pick the rows of supervised tokens: [n, ...] to [s, ...]."""
        return rows if self._index is None else rows.index_select(0, self._index)

    def spread(self, rows: Tensor) -> Tensor:
        """Put rows back at their tokens: [s, ...] to [n, ...], with zeros where a token is not supervised."""
        if self._index is None:
            return rows
        return rows.new_zeros(self._total, *rows.shape[1:]).index_copy_(0, self._index, rows)


class HeadChunks:
    """Logits of the supervised tokens, a chunk at a time.

    A pass over a chunk of logits costs as much as a tenth of a matrix product at small d, so scalings are left to the
    matrix products and the rest is done in place. Iterating gives the chunks as slices of the supervised tokens, of
    nearly equal size: the buffers are the smallest that this number of chunks allows.

    Args:
        rows: which tokens are supervised.
        hidden: [n, d].
        weight: [V, d].
        targets: [n].
        chunk_tokens: largest r.
        num_classes: C.
        softcap: replaces each logit x by softcap * tanh(x / softcap).
        dtypes: see `product_dtypes`.
        temperature: divides the (capped) logits.
        part: which classes the rows of `weight` are, where ranks share them; V and C are then those of this rank.
    """

    def __init__(
        self,
        rows: SupervisedRows,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        chunk_tokens: int,
        num_classes: int,
        softcap: float | None,
        dtypes: tuple[torch.dtype, torch.dtype],
        temperature: float = 1.0,
        part: ClassPart | None = None,
    ) -> None:
        operand, product = dtypes
        self.part = part
        self.dtype = accumulation_dtype(operand)
        self.inputs = rows.select(hidden).to(operand).to(product)
        self.targets = rows.select(targets)
        self.head = weight[: num_classes - (part.first if part else 0)].to(operand).to(product)
        self.softcap, self.temperature = softcap, temperature
        self._chunks = even_chunks(self.inputs.size(0), chunk_tokens)
        self._rows = self._chunks[0].stop if self._chunks else 0
        self._logits = self.buffer()
        self._product = self._logits if product == self.dtype else torch.empty_like(self._logits, dtype=product)
        self._tanh = None if softcap is None else self.buffer()
        self._converts = part is None and self._tanh is None and _kernels_convert(self._product, self.dtype)

    def __iter__(self) -> Iterator[slice]:
        """Iterate over the chunks, each as a slice of the supervised tokens."""
        return iter(self._chunks)

    def buffer(self) -> Tensor:
        """Memory of the size of a chunk of logits, not initialised."""
        return torch.empty(self._rows, self.head.size(0), dtype=self.dtype, device=self.inputs.device)

    def logits(self, chunk: slice) -> Tensor:
        """[r, C] capped and divided by the temperature, in a buffer that the caller may overwrite."""
        product = self._multiplied(chunk)
        logits = self._logits[: product.size(0)]
        if self.softcap is not None and self._tanh is not None:
            tanh = self._tanh[: product.size(0)].copy_(product).tanh_()
            torch.mul(tanh, self.softcap / self.temperature, out=logits)
        elif product.dtype != logits.dtype:  # else they are the same memory
            logits.copy_(product)
        return logits

    def _multiplied(self, chunk: slice) -> Tensor:
        """Multiply by the head and by what `logits` is scaled with: [r, C] in the type of the matrix products."""
        inputs = self.inputs[chunk]
        product = self._product[: inputs.size(0)]
        scale = 1.0 / (self.temperature if self.softcap is None else self.softcap)
        return torch.addmm(product, inputs, self.head.t(), beta=0, alpha=scale, out=product)

    def log_probs(self, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The log-softmax [r, C] of `logits`, in their buffer; and of the targets logits and log-softmax, [r, 1]."""
        if not self._converts:
            return self.normalized(self.logits(chunk), chunk)
        index = self.targets[chunk].unsqueeze(1)
        product = self._multiplied(chunk)
        of_targets = product.gather(1, index).to(self.dtype)
        log_probs = torch.log_softmax(product, 1, dtype=self.dtype, out=self._logits[: product.size(0)])
        return log_probs, of_targets, log_probs.gather(1, index)

    def normalized(self, logits: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """`log_probs` from the logits of the chunk, in their memory."""
        index, here = self._targets_here(chunk)
        of_targets = logits.gather(1, index)
        if self.part is None:
            log_probs = torch.log_softmax(logits, 1, out=logits)
            return log_probs, of_targets, log_probs.gather(1, index)
        logits.sub_(self.part.max(logits.amax(1, keepdim=True)))
        of_normalized = logits.gather(1, index).mul_(here)
        sums = torch.stack([logits.exp().sum(1, keepdim=True), of_normalized, of_targets.mul_(here)])
        total, of_normalized, of_targets = self.part.sum(sums)
        log_total = total.log()
        return logits.sub_(log_total), of_targets, of_normalized - log_total

    def likeliest(self, logits: Tensor, chunk: slice) -> Tensor:
        """Whether the target is the class with the largest logit [r], the first one of equals."""
        return largest_class(logits, self.part) == self.targets[chunk]

    def _targets_here(self, chunk: slice) -> tuple[Tensor, Tensor | float]:
        """Column of each target [r, 1], and 1 where this rank has it, else 0: then the column is any."""
        index = self.targets[chunk].unsqueeze(1)
        if self.part is None:
            return index, 1.0
        own = index - self.part.first
        here = (own >= 0) & (own < self.head.size(0))
        return own.masked_fill(~here, 0), here.to(self.dtype)

    def softmax_gradients(self, log_probs: Tensor, chunk: slice) -> Tensor:
        """`loss_gradients` of the softmax itself, from what `log_probs` gave for the chunk; it may be overwritten."""
        if not self._converts:
            return self.loss_gradients(log_probs.exp_(), chunk)
        index = self.targets[chunk].unsqueeze(1)
        of_targets = log_probs.gather(1, index).exp_().sub_(1.0)
        gradients = torch.exp(log_probs, out=self._product[: log_probs.size(0)])
        return gradients.scatter_(1, index, of_targets.to(gradients.dtype))

    def loss_gradients(self, probs: Tensor, chunk: slice) -> Tensor:
        """d(-log p(target)) / d(inputs @ head.T), times the temperature: [r, C] in the type of the matrix products.

        Args:
            probs: [r, C] softmax of the chunk whose `logits` were asked for last; overwritten. Rows may be scaled.
            chunk: that chunk.
        """
        rows = probs.size(0)
        index, here = self._targets_here(chunk)
        minus = -here if isinstance(here, Tensor) else probs.new_full((), -1.0).expand(rows, 1)
        probs.scatter_add_(1, index, minus)
        if self._tanh is not None:
            probs.addcmul_(probs, self._tanh[:rows].square_(), value=-1)
        product = self._product[:rows]
        return probs if product.dtype == probs.dtype else product.copy_(probs)

    def add_weight_gradient(self, total: Tensor, grad_logits: Tensor, inputs: Tensor) -> None:
        """Add grad_logits.T @ inputs to the first C rows of `total` [V, d], which has the accumulation type."""
        add_product(total[: self.head.size(0)], grad_logits, inputs)


def even_chunks(count: int, most: int) -> list[slice]:
    """The fewest slices of at most `most` of `count` rows, of nearly equal size."""
    size = -(-count // max(-(-count // most), 1))
    return [slice(start, start + size) for start in range(0, count, max(size, 1))]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left.T @ right [C, d] to `total`, which may have a wider type."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total += torch.mm(left.t(), right)


def largest_class(logits: Tensor, part: ClassPart | None) -> Tensor:
    """The class with the largest of logits [r, C], the first one of equals: [r]."""
    if part is None:
        return logits.argmax(-1)
    largest, column = logits.max(-1)
    own = -(column + part.first)
    # a rank without the largest logit of all names a class behind every other
    return -part.max(own.masked_fill(largest < part.max(largest.clone()), torch.iinfo(own.dtype).min + 1))
