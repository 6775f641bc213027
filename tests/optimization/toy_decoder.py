"""A small decoder-shaped module with one parameter of every kind that the groups tell apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH = 24, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=True)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, 4, bias=False)  # a side below 16
        self.value_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        update = self.down(torch.relu(self.up(self.norm(x)))) + self.value_embedding(tokens)
        return x + self.scale * update * self.gate(x).sigmoid().mean(-1, keepdim=True)


class Decoder(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.final_norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, tokens)
        return self.head(self.final_norm(x))


class Model(nn.Module):
    """The decoder one level down, as in a LightningModule."""

    def __init__(self, tied: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.decoder = Decoder(tied)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(tokens)


def batch(step: int) -> Tensor:
    """Tokens of one step, [4, 8]."""
    return torch.randint(0, VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(1000 + step))


def loss_of(model: nn.Module, step: int) -> Tensor:
    tokens = batch(step)
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
