"""The batch that windows make: the tensors that a module is given.

Notation used for tensor shapes: b windows in a batch, T sequence length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_llm.data.loading.packed import PackedBatch
from lit_llm.objectives import IGNORE_INDEX

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class PackedWindows(PackedBatch):
    """A batch of training windows as they were read; `WindowDataset` says what is made of them."""

    windows: np.ndarray
    """Integers [b, T + 1], as narrow as they are stored."""
    lengths: np.ndarray
    """How many targets of each window, from its first on, are its own, [b]."""
    joins: np.ndarray
    """The column in which the last token of the corpus stands, which the first one follows, [b]; T or more: none."""
    sample_ids: np.ndarray
    """[b]."""
    eot_id: int | None
    mask_documents: bool

    def unpack(self) -> Batch:
        """The batch of int64 tensors."""
        tokens, targets = self.windows[:, :-1].astype(np.int64), self.windows[:, 1:].astype(np.int64)
        # most windows own all targets, or all but the last
        least = int(self.lengths.min(initial=targets.shape[1]))
        targets[:, least:][np.arange(least, targets.shape[1]) >= self.lengths[:, None]] = IGNORE_INDEX
        # Nothing predicts the first token of a corpus, though it follows the last.
        rows = np.flatnonzero(self.joins < targets.shape[1])
        joins = rows, self.joins[rows]
        targets[joins] = IGNORE_INDEX
        return make_batch(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(self.sample_ids),
            self.eot_id,
            self.mask_documents,
            joins,
        )


def make_batch(
    tokens: Tensor,
    targets: Tensor,
    sample_ids: Tensor,
    eot_id: int | None,
    mask_documents: bool,
    joins: tuple[np.ndarray, np.ndarray] | None = None,
) -> Batch:
    """The dict that a module is given; see `WindowDataset`. Writes to `targets`.

    Args:
        tokens: [b, T].
        targets: [b, T].
        sample_ids: [b].
        eot_id: token that ends a document.
        mask_documents: also return document_ids.
        joins: rows and columns of further ends of documents, [n] each.
    """
    batch = {"tokens": tokens.contiguous(), "targets": targets, "sample_ids": sample_ids}
    if mask_documents:
        ends = tokens == eot_id
        if joins is not None:
            ends.numpy()[joins] = True
        targets[ends] = IGNORE_INDEX
        # An end-of-text token belongs to the document that it ends.
        batch["document_ids"] = ends.cumsum(dim=1) - ends.long()
    return batch
