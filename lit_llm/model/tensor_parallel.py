"""The layers of a decoder whose products several ranks share, and what they exchange at the edges of those.

A product is split by the columns of its result (queries, keys, values, gate, up) or by those of its input (o_proj,
down_proj), so that a block exchanges something twice in its forward and twice in its backward pass, however many
products it has. Embedding and head are split by tokens of the vocabulary. Activations are plain tensors; weights are
DTensors, of which a layer reads its part.

Source: Shoeybi et al. 2019 (Megatron-LM); Korthikanti et al. 2022 (`splits_tokens`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import ModelConfig
from lit_llm.distributed.collectives import cut, gathered, shared, summed
from lit_llm.distributed.tensors import local_part

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class TensorRanks:
    """The ranks that share the products of a decoder.

    Args:
        mesh: of one dimension.
        splits_tokens: whether the residual stream between the products is cut by tokens, [b, t / ranks, hidden], so
            that each rank norms and keeps its own; else every rank has all of it.
    """

    def __init__(self, mesh: DeviceMesh, splits_tokens: bool) -> None:
        self.group: dist.ProcessGroup = mesh.get_group()
        self.size = mesh.size()
        self.rank = mesh.get_local_rank()
        self.splits_tokens = splits_tokens

    def enter(self, x: Tensor, is_cut: bool) -> Tensor:
        """Give the whole input [b, t, hidden] of split products, from the stream."""
        return gathered(x, self.group, 1, alike=False) if is_cut else shared(x, self.group)

    def leave(self, x: Tensor, bias: Tensor | None, is_cut: bool) -> Tensor:
        """Add up what the ranks' parts of a product gave, and its bias: back to the stream."""
        x = cut(x, self.group, 1, terms=True) if is_cut else summed(x, self.group)
        if bias is None:
            return x
        return x + (shared(bias, self.group) if is_cut else bias).to(x.dtype)

    def shared(self, parameter: Tensor | None) -> Tensor | None:
        """Read a parameter that each rank applies to its own tokens."""
        return None if parameter is None else shared(parameter, self.group)

    def cut_tokens(self, x: Tensor) -> Tensor:
        """Keep this rank's tokens of x [b, t, hidden], which is whole on every rank."""
        return cut(x, self.group, 1, terms=False)

    def join_tokens(self, x: Tensor) -> Tensor:
        """Put the ranks' tokens together again."""
        return gathered(x, self.group, 1, alike=True)


class ColumnLinear(nn.Linear):
    """Computes this rank's columns of the result."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the whole x [..., in]: [..., out / ranks]."""
        return F.linear(x, local_part(self.weight), None if self.bias is None else local_part(self.bias))


class RowLinear(nn.Linear):
    """Reads this rank's columns of the input and computes a term of the result, without the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in / ranks]: [..., out], to be given to `TensorRanks.leave` with the bias."""
        return F.linear(x, local_part(self.weight))


class ColumnEmbedding(nn.Embedding):
    """Looks up this rank's dimensions of every token."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids [...]: [..., width / ranks]."""
        return F.embedding(ids, local_part(self.weight))


class VocabularyEmbedding(nn.Embedding):
    """Holds this rank's tokens of the vocabulary, and asks the others for theirs."""

    part: VocabularyPart

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids [...]: [..., width], the same on every rank."""
        weight = local_part(self.weight)
        own = ids - self.part.first
        elsewhere = (own < 0) | (own >= weight.size(0))
        found = F.embedding(own.masked_fill(elsewhere, 0), weight)
        return summed(found.masked_fill(elsewhere.unsqueeze(-1), 0.0), self.part.group)


class VocabularyHead(nn.Linear):
    """Holds this rank's tokens of the vocabulary. A loss reads its part alone: `lit_llm.model.log_probs.head_rows`."""

    part: VocabularyPart

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the logits [..., V] of all tokens, the same on every rank."""
        logits = F.linear(shared(hidden, self.part.group), local_part(self.weight))
        return gathered(logits, self.part.group, logits.dim() - 1, alike=True)


class VocabularyPart:
    """Which tokens of a vocabulary a rank has, and the sums and maxima over those of all ranks.

    Args:
        group: the ranks.
        first: id of this rank's first token.
    """

    def __init__(self, group: dist.ProcessGroup, first: int) -> None:
        self.group, self.first = group, first

    def sum(self, x: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        dist.all_reduce(x, group=self.group)
        return x

    def max(self, x: Tensor) -> Tensor:
        """Take the maximum over the ranks, in place."""
        dist.all_reduce(x, op=dist.ReduceOp.MAX, group=self.group)
        return x


def splits_vocabulary(config: ModelConfig, size: int) -> bool:
    """Whether embedding and head are split among so many ranks: equal parts, no rank without a token, no scores.

    `model.pad_vocab_to_multiple_of` makes any vocabulary divisible.
    """
    rows = config.padded_vocab_size
    return config.output == "tokens" and rows % size == 0 and (size - 1) * (rows // size) < (config.vocab_size or 0)


def split(module: nn.Module, kind: type[nn.Module], mesh: DeviceMesh, dim: int) -> None:
    """Turn a layer into one of `kind`, whose weight is cut along `dim` among the ranks of `mesh`.

    The bias is cut with the rows of the weight, and whole where its columns are cut.
    """
    from torch.distributed.tensor import Shard, distribute_tensor

    module.__class__ = kind
    for name, parameter in list(module.named_parameters(recurse=False)):
        if name == "weight" or dim == 0:
            part = distribute_tensor(parameter.detach(), mesh, [Shard(dim)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(part, requires_grad=parameter.requires_grad))


def split_vocabulary(embedding: nn.Module, head: nn.Module, mesh: DeviceMesh, tied: bool) -> None:
    """Cut embedding and head by tokens; a head that shares the embedding's weight goes on sharing it."""
    rows = cast(torch.Tensor, embedding.weight).size(0) // mesh.size()
    part = VocabularyPart(mesh.get_group(), mesh.get_local_rank() * rows)
    split(embedding, VocabularyEmbedding, mesh, 0)
    if tied:
        head.__class__ = VocabularyHead
        head.weight = embedding.weight
    else:
        split(head, VocabularyHead, mesh, 0)
    cast(VocabularyEmbedding, embedding).part = cast(VocabularyHead, head).part = part
