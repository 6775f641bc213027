"""Ranks that share a long text: each has its own tokens of the stream, and reads all of them for some of the heads.

Everything in a decoder but attention looks at one token at a time. Around attention two exchanges turn the rank's
tokens of every head into every token of the rank's heads, and back, so that documents, windows and positions are those
of the whole text.

Source: Jacobs et al. 2023 (DeepSpeed-Ulysses).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, cat

from lit_llm.config import ModelConfig, TrainerConfig, UserError
from lit_llm.distributed.collectives import gathered, summed, swapped

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lit_llm.model.decoder import Decoder


class ContextRanks:
    """The ranks that share texts.

    Args:
        group: the ranks, in the order of their tokens.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.size, self.rank = group.size(), group.rank()

    def own(self, x: Tensor) -> Tensor:
        """Keep this rank's tokens of x [b, t, ...], which is whole on every rank; `size` divides t."""
        return x.chunk(self.size, 1)[self.rank].contiguous()

    def joined(self, x: Tensor) -> Tensor:
        """Put the ranks' tokens together again, for what every rank goes on to do alike."""
        return gathered(x, self.group, 1, alike=True)

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """Send away this rank's tokens of the other ranks' heads, and receive the other tokens of its own.

        Args:
            q: [b, t / ranks, n_h, d].
            k: [b, t / ranks, n_kv, d]; fewer heads than ranks are sent to several.
            v: the same.

        Returns:
            [b, t, n / ranks, d] of each.
        """
        if k.size(2) < self.size:
            k, v = (x.repeat_interleave(self.size // k.size(2), dim=2) for x in (k, v))
        parts = [x.unflatten(2, (self.size, -1)) for x in (q, k, v)]
        heads = cat(parts, 3).flatten(2, 3)  # queries, keys and values for a rank side by side
        return list(swapped(heads, self.group, cut_dim=2, joined_dim=1).split([x.size(3) for x in parts], 2))

    def to_tokens(self, out: Tensor) -> Tensor:
        """Go back from every token of this rank's heads [b, t, n_h / ranks, d] to its tokens of all of them."""
        return swapped(out, self.group, cut_dim=1, joined_dim=2)


def own_targets(model: Decoder, targets: Tensor, ignore_index: int) -> Tensor:
    """The targets [b, t] of the hidden states that this rank has; none for those of tokens that fill up a row."""
    if model.text_ranks is None:
        return targets
    return model.text_ranks.own(F.pad(targets, (0, -targets.size(1) % model.stream_parts), value=ignore_index))


def over_text(model: Decoder, total: Tensor) -> Tensor:
    """Sum what the ranks that share a text have found in their tokens; each has the gradient of its own part."""
    return total if model.text_ranks is None else summed(total, model.text_ranks.group)


def check_context(config: ModelConfig, trainer: TrainerConfig) -> None:
    """Refuse ranks that the heads, or the longest text, cannot be divided among.

    Raises:
        UserError: names what does not divide.
    """
    size, shared = trainer.context_parallel_size, trainer.tensor_parallel_size
    heads, kv_heads = config.num_heads // shared, config.kv_heads // shared
    here = f" of a tensor-parallel rank ({config.num_heads} / {shared})" if shared > 1 else ""
    if heads % size:
        raise UserError(f"trainer.context_parallel_size {size} does not divide the model's heads, {heads}{here}")
    if kv_heads % size and size % kv_heads:
        raise UserError(
            f"trainer.context_parallel_size {size} does not divide the model's key-value heads, {kv_heads}{here}, nor "
            "do they divide it"
        )
    parts = size * (shared if trainer.sequence_parallel else 1)
    if config.max_position_embeddings % parts:
        raise UserError(
            f"trainer.context_parallel_size and sequence_parallel cut texts into {parts} parts, which does not divide "
            f"model.max_position_embeddings {config.max_position_embeddings}"
        )
