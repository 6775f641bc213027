"""Windows of shards at places that are drawn, and what a model makes of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lit_llm.config.progress import progress
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.generation.inference import not_finite
from lit_llm.model import Decoder
from lit_llm.model.arithmetic import at_least_float32
from lit_llm.objectives import IGNORE_INDEX

_CANDIDATES = 20
"""So many places are looked at for each window that is wanted, as a document may end in it."""
_CHUNK_TOKENS = 256


def draw_windows(sources: Sequence[ShardedTokens], length: int, count: int, seed: int, inside: int) -> np.ndarray:
    """Draw windows that do not overlap.

    Args:
        sources: the token arrays of one split; each window lies in one of them.
        length: tokens of a window.
        count: at most so many windows.
        seed: of the draw.
        inside: no document ends among so many of the last tokens of a window.

    Returns:
        int64 [n, length] with n at most `count`.
    """
    counts = [len(source) // length for source in sources]
    ends, draws = np.cumsum([0, *counts]), np.random.default_rng(seed)
    total = int(ends[-1])
    if not total:
        return np.empty((0, length), np.int64)
    places = draws.choice(total, min(total, _CANDIDATES * count), replace=False)
    found: list[np.ndarray] = []
    for place in places.tolist():
        number = int(np.searchsorted(ends, place, side="right")) - 1
        source = sources[number]
        tokens = source.read((place - int(ends[number])) * length, length).astype(np.int64)
        if not (tokens[length - inside :] == source.manifest.eot_id).any():
            found.append(tokens)
        if len(found) == count:
            break
    return np.stack(found) if found else np.empty((0, length), np.int64)


@dataclass(frozen=True)
class TokenStatistics:
    """What a model makes of each token of some texts; every tensor is float32 [n, t], 0 where nothing is scored.

    Attributes:
        log_probs: of the token.
        mean: of the log-probability of a token that is drawn from the model's own distribution there.
        deviation: its standard deviation.
        likeliest: bool: the token is the likeliest one.
        scored: bool: there is a token.
    """

    log_probs: Tensor
    mean: Tensor
    deviation: Tensor
    likeliest: Tensor
    scored: Tensor


@torch.no_grad()
def token_statistics(
    model: Decoder, texts: Sequence[Sequence[int]], batch_size: int, description: str
) -> TokenStatistics:
    """Read texts, and tell of each token but the first what the model made of it.

    Args:
        model: a language model in evaluation mode.
        texts: token ids [n][t + 1]; they may differ in length.
        batch_size: texts at once.
        description: of the progress that is shown.

    Raises:
        UserError: predictions are not finite.
    """
    longest = max(map(len, texts)) - 1
    found = [torch.zeros(len(texts), longest) for _ in range(3)]
    likeliest, scored = (torch.zeros(len(texts), longest, dtype=torch.bool) for _ in range(2))
    with progress(description, len(texts), "texts") as advance:
        for rows, tokens, targets in _batches(texts, batch_size, model.embedding.weight.device):
            width = targets.size(1)
            parts = model(tokens, head=_reader(model, targets))
            for whole, part in zip((*found, likeliest), parts, strict=True):
                whole[rows, :width] = part.cpu().to(whole.dtype)
            scored[rows, :width] = (targets != IGNORE_INDEX).cpu()
            advance(len(rows))
    if not found[0].isfinite().all():
        raise not_finite()
    return TokenStatistics(*found, likeliest, scored)


def _batches(
    texts: Sequence[Sequence[int]], batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield numbers of texts of like length, their tokens [b, t], and the tokens that follow [b, t]."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = len(texts[rows[-1]]) - 1
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        targets = torch.full((len(rows), width), IGNORE_INDEX)
        for number, row in enumerate(rows):
            ids = torch.as_tensor(texts[row])
            tokens[number, : len(ids) - 1], targets[number, : len(ids) - 1] = ids[:-1], ids[1:]
        yield rows, tokens.to(device), targets.to(device)


def _reader(model: Decoder, targets: Tensor):  # type: ignore[no-untyped-def]
    """Make a head that gives log_probs, mean, deviation and likeliest [b, t], for a few tokens' logits at a time."""

    def read(hidden: Tensor, head: nn.Module) -> list[Tensor]:
        flat, wanted = hidden.flatten(0, 1), targets.flatten()
        parts = [torch.zeros(len(wanted), device=hidden.device) for _ in range(4)]
        for index in (wanted != IGNORE_INDEX).nonzero().squeeze(1).split(_CHUNK_TOKENS):
            log_probs = torch.log_softmax(at_least_float32(model.logits(flat[index])), dim=-1)
            probs = log_probs.exp()
            # 0 * -inf of a token that cannot come is 0
            terms = torch.where(probs > 0, log_probs, 0.0)
            mean = (probs * terms).sum(-1)
            parts[0][index] = log_probs.gather(1, wanted[index].unsqueeze(1)).squeeze(1).float()
            parts[1][index] = mean.float()
            parts[2][index] = (probs * (terms - mean.unsqueeze(1)).square()).sum(-1).sqrt().float()
            parts[3][index] = (log_probs.argmax(-1) == wanted[index]).float()
        return [part.view_as(targets) for part in parts]

    return read
