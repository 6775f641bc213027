"""A vector for each text, from the hidden states that the output layer would read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation.engine import Engine
from lit_llm.generation.inference import inference, not_finite

Pooling = Literal["mean", "last"]
"""What of a text's hidden states becomes its vector: the mean over all tokens, or that of the last one."""
# Tokens of one pass, padding included: others wait no longer than that takes.
MOST_TOKENS = 4096


def embed(
    engine: Engine, prompts: Sequence[Sequence[int]], pooling: Pooling, *, normalize: bool, adapter: str | None = None
) -> Tensor:
    """Read some texts and give a vector for each, float32 [texts, hidden] on the CPU.

    A text does not depend on the others or on padding, up to the rounding of products over other rows.

    Args:
        engine: whose model reads them; not while it takes a step.
        prompts: token ids, at least one each, and no more than the model's context.
        pooling: how tokens become one vector.
        normalize: make each vector's length 1.
        adapter: the adapter that they are read with; None: the model as it is.

    Raises:
        UserError: there is no such adapter, or the vectors are not finite.
    """
    engine.adapters.check(adapter)
    counts = torch.tensor([len(prompt) for prompt in prompts], device=engine.device)
    width = max(map(len, prompts))
    # at the right, where nothing looks at padding
    tokens = torch.tensor([[*prompt] + [0] * (width - len(prompt)) for prompt in prompts], device=engine.device)
    with inference(engine.model, is_sharded(engine.model)), engine.adapters.rows([adapter] * len(prompts)):
        hidden = engine.model(tokens, head=lambda hidden, head: hidden).float()  # [b, t, hidden]
        if pooling == "last":
            vectors = hidden[torch.arange(len(prompts), device=engine.device), counts - 1]
        else:
            real = torch.arange(width, device=engine.device) < counts.unsqueeze(1)
            vectors = hidden.masked_fill(~real.unsqueeze(-1), 0.0).sum(1) / counts.unsqueeze(1)
        if not bool(vectors.isfinite().all()):
            raise not_finite()
        return (F.normalize(vectors, dim=-1) if normalize else vectors).cpu()


def passes(lengths: Sequence[int], most_texts: int) -> Iterator[list[int]]:
    """Group texts by their lengths: yields the places of those that are read in one pass, the shortest first.

    Args:
        lengths: tokens of each text.
        most_texts: that one pass reads.
    """
    together: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if together and (len(together) == most_texts or (len(together) + 1) * lengths[place] > MOST_TOKENS):
            yield together
            together = []
        together.append(place)
    if together:
        yield together
