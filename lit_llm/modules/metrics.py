"""Sums over tokens that give the validation curves, reduced over ranks by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class TokenStatistics(Metric):
    """Loss per token, perplexity and bits per byte of everything seen since the last reset.

    Sums are kept in float64: a float32 sum over millions of tokens loses the last digits of a loss.
    """

    full_state_update = False
    loss_sum: Tensor
    tokens: Tensor
    bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "tokens", "bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, loss_sum: Tensor, tokens: Tensor, num_bytes: Tensor) -> None:
        """Add one batch.

        Args:
            loss_sum: summed negative log-likelihood in nats.
            tokens: supervised tokens.
            num_bytes: UTF-8 bytes that those tokens stand for, 0 if unknown.
        """
        self.loss_sum += loss_sum.double()
        self.tokens += tokens
        self.bytes += num_bytes

    def compute(self) -> dict[str, Tensor]:
        """Give `loss` in nats per token, `perplexity`, and, where the bytes are known, `bits_per_byte`."""
        loss = self.loss_sum / self.tokens
        values = {"loss": loss, "perplexity": loss.exp()}
        if self.bytes > 0:
            values["bits_per_byte"] = self.loss_sum / math.log(2) / self.bytes
        return values


class NamedMeans(Metric):
    """Means of named quantities, each a sum over a count that is kept apart and reduced over ranks.

    Args:
        names: all that may be added, the same on every rank.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, values: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
        """Add (sum, count) for some of the names."""
        for name, (total, count) in values.items():
            place = self.names.index(name)
            self.sums[place] += total.detach()
            self.counts[place] += count

    def compute(self) -> dict[str, float]:
        """Give the means in the order of the names; a name that nothing was added to is left out."""
        pairs = zip(self.names, self.sums.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count for name, total, count in pairs if count}


class PairScores(Metric):
    """The rewards of every pair of a split, and the lengths of the texts."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("chosen", "rejected", "chosen_lengths", "rejected_lengths"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> None:
        """Add rewards [n] and lengths in tokens [n]."""
        self.chosen.append(chosen.detach())
        self.rejected.append(rejected.detach())
        self.chosen_lengths.append(chosen_lengths)
        self.rejected_lengths.append(rejected_lengths)

    def compute(self) -> tuple[Tensor, ...]:
        """Give the rewards and lengths of all pairs of the split, in the order of `update`, each [n]."""
        return tuple(map(dim_zero_cat, (self.chosen, self.rejected, self.chosen_lengths, self.rejected_lengths)))
