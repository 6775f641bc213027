"""Sums over tokens that give the validation curves, reduced over ranks by torchmetrics."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


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
        """`loss` in nats per token, `perplexity`, and, where bytes are known, `bits_per_byte`."""
        loss = self.loss_sum / self.tokens
        values = {"loss": loss, "perplexity": loss.exp()}
        if self.bytes > 0:
            values["bits_per_byte"] = self.loss_sum / math.log(2) / self.bytes
        return values
