"""How well a model predicts text: nats per token of windows that are moved over it, and how sure that is.

Notation used for tensor shapes: b windows in a batch, t tokens of the longest, n tokens that are scored in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.data.pretraining.batches import make_batch
from lit_llm.evaluation.token_windows import Source, TextSource, Window, WindowOptions
from lit_llm.model import Decoder, token_log_probs
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.tokenizer import Tokenizer

RESAMPLES = 1000
"""Number of draws of the bootstrap."""

# quantiles 0.975 of Student's distribution with 1, 2, ... degrees of freedom
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_WIDEST = 10  # times Student's interval is what a bootstrap-t may be wide
_MOST_UNITS = 4096  # of the bootstrap; more are put together at random
_SORTED_TOKENS = 1 << 18  # windows of so many tokens are put in the order of their lengths, which saves padding


@dataclass
class Sums:
    """Losses added up by unit, which are documents or windows, numbered from 0.

    Attributes:
        losses: summed negative log-likelihood of each unit in nats, float64 [units].
        tokens: scored tokens of each, int64 [units]; 0 in the room that is left for more.
    """

    losses: np.ndarray = field(default_factory=lambda: np.zeros(64))
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(64, np.int64))

    def add(self, units: np.ndarray, losses: np.ndarray) -> None:
        """Add tokens: unit [n] and loss [n] of each."""
        if not len(units):
            return
        low, high = int(units.min()), int(units.max()) + 1
        while high > len(self.losses):
            self.losses = np.concatenate([self.losses, np.zeros_like(self.losses)])
            self.tokens = np.concatenate([self.tokens, np.zeros_like(self.tokens)])
        self.losses[low:high] += np.bincount(units - low, losses)
        self.tokens[low:high] += np.bincount(units - low)

    def __len__(self) -> int:
        """Return the number of units that have a scored token."""
        return int(np.count_nonzero(self.tokens))

    def used(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses and tokens of the units that have a scored token."""
        kept = self.tokens > 0
        return self.losses[kept], self.tokens[kept]


@dataclass
class Scores:
    """The scores of a source of text.

    Attributes:
        documents: sums by document.
        windows: the same by window.
        correct: tokens that were the likeliest; None where that is not known.
        num_bytes: UTF-8 bytes of the text that the scored tokens spell; None where that is not known.
        unit: what a document is called.
    """

    documents: Sums = field(default_factory=Sums)
    windows: Sums = field(default_factory=Sums)
    correct: int | None = 0
    num_bytes: int | None = 0
    unit: str = "documents"

    @classmethod
    def of_rows(cls, log_probs: Tensor, tokens: Tensor) -> Scores:
        """Scores of conversations; correct tokens and bytes are not known.

        Args:
            log_probs: of the answers of each [rows].
            tokens: of them [rows].
        """
        sums = Sums(-log_probs.double().numpy(), tokens.numpy())
        return cls(sums, sums, correct=None, num_bytes=None, unit="conversations")

    @property
    def tokens(self) -> int:
        """The number of scored tokens."""
        return int(self.documents.tokens.sum())

    def units(self) -> tuple[str, np.ndarray, np.ndarray]:
        """Return name, losses and tokens of the units that are drawn: documents, or windows of a single one."""
        if len(self.documents) > 1:
            return self.unit, *self.documents.used()
        return "windows", *self.windows.used()


@torch.no_grad()
def score(
    model: Decoder,
    tokenizer: Tokenizer,
    source: Source,
    options: WindowOptions,
    batch_size: int,
    on_bytes: Callable[[int], None] | None = None,
) -> Scores:
    """Score every token of a source once.

    Args:
        model: a language model, in evaluation mode.
        tokenizer: its own.
        source: what is predicted.
        options: the windows.
        batch_size: windows at once.
        on_bytes: called after each batch with the bytes of text that its scored tokens spell.

    Raises:
        UserError: nothing can be read or scored, or predictions are not finite.
    """
    scores, device = Scores(), model.embedding.weight.device
    lengths = torch.from_numpy(np.array(tokenizer.byte_lengths()))
    for numbered in _batches(source.windows(tokenizer, options), batch_size):
        numbers, windows = zip(*numbered, strict=True)
        batch = _collate(windows, source.mask_id)
        moved = {name: value.to(device) for name, value in batch.items()}
        found = token_log_probs(
            model,
            moved["tokens"],
            moved["targets"],
            document_ids=moved.get("document_ids"),
            with_likeliest=True,
        )
        scored = batch["targets"] != IGNORE_INDEX
        losses = -found.log_probs.cpu()[scored].double().numpy()
        kept = [window.documents[window.targets != IGNORE_INDEX] for window in windows]
        scores.documents.add(np.concatenate(kept), losses)
        scores.windows.add(np.repeat(numbers, list(map(len, kept))), losses)
        assert found.likeliest is not None
        scores.correct += int(found.likeliest.sum())
        num_bytes = int(lengths[batch["targets"][scored]].sum())
        scores.num_bytes += num_bytes
        if on_bytes is not None:
            on_bytes(num_bytes)
    if not scores.tokens:
        raise UserError(f"{source.name}: there is no token to predict; give more text")
    total = scores.documents.losses.sum()
    if not np.isfinite(total):
        raise UserError(
            f"{source.name}: the loss is {total}, as the model's predictions are not finite; its weights are "
            "damaged, or need dtype float32"
        )
    if isinstance(source, TextSource):
        scores.num_bytes = source.num_bytes
    return scores


def _batches(windows: Iterable[Window], batch_size: int) -> Iterator[list[tuple[int, Window]]]:
    """Yield batches of numbered windows, in which windows of like lengths are together to save padding."""
    several: list[tuple[int, Window]] = []
    tokens = 0
    for number, window in enumerate(windows):
        several.append((number, window))
        tokens += len(window.tokens)
        if tokens >= _SORTED_TOKENS and len(several) % batch_size == 0:
            yield from _by_length(several, batch_size)
            several, tokens = [], 0
    yield from _by_length(several, batch_size)


def _by_length(numbered: list[tuple[int, Window]], batch_size: int) -> Iterator[list[tuple[int, Window]]]:
    numbered.sort(key=lambda each: len(each[1].tokens))
    for start in range(0, len(numbered), batch_size):
        yield numbered[start : start + batch_size]


def _collate(windows: Sequence[Window], mask_id: int | None) -> dict[str, Tensor]:
    """Make a batch of windows; padding comes last, where causal attention lets no token see it, so any id will do."""
    shape = len(windows), max(len(window.tokens) for window in windows)
    tokens, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE_INDEX)
    for row, window in enumerate(windows):
        tokens[row, : len(window.tokens)] = torch.from_numpy(window.tokens)
        targets[row, : len(window.targets)] = torch.from_numpy(window.targets)
    return make_batch(tokens, targets, torch.arange(shape[0]), mask_id or 0, mask_documents=mask_id is not None)


Units = tuple[np.ndarray, np.ndarray]
"""The sums and the counts of the units of a source, [units] each."""


def bootstrap_interval(sources: Sequence[Units], seed: int) -> tuple[float, float] | None:
    """95% interval of sum of sums / sum of counts, were other units drawn from where those of each source come from.

    The units of each source are drawn with replacement `RESAMPLES` times (stratified: which sources there are is no
    accident, so their shares stay about as they are). The distance of each draw's ratio from the real one is divided
    by the draw's own standard error, and the quantiles of these quotients are taken for Student's (the bootstrap-t,
    Efron and Tibshirani 1993, chapter 12). Of fewer than 5 units the draws are too often alike; Student's are taken,
    as they are where the interval would be ten times as wide as with them, which is what draws do that lack the one
    unit that stands out.

    Of simulated intervals of skewed losses (exponential, the longer documents easier) 94 to 95% held the truth with 5,
    10, 20, 60 and 200 documents, where the percentiles of the draws hold it in 83, 85, 92, 93 and 94%; with lengths
    that are skewed too (lognormal, the longest document a good part of the text) 86% with 5, 89 to 90% with 10 or 20
    documents and 93% with 60 (76% with 5, were Student's taken where it is twice as wide); of paired differences 93%
    with 20 and 60.

    Where there are more than some thousand units, they are first put together at random into so many, which leaves
    the variance as it is.

    Args:
        sources: of each, the sums and the counts; these are above 0.
        seed: of the draws.

    Returns:
        The ends, or None where each source has a single unit.
    """
    freedom = sum(len(sums) - 1 for sums, _ in sources)
    if freedom < 1:
        return None
    draws = np.random.default_rng(seed)
    total = sum(float(counts.sum()) for _, counts in sources)
    ratio = sum(float(sums.sum()) for sums, _ in sources) / total
    drawn = [_drawn_moments(sums - ratio * counts, counts, draws) for sums, counts in sources]
    variance = sum(part for part, _, _ in drawn)
    sizes = sum(moments[1] for _, _, moments in drawn)
    shifts = sum(moments[0] for _, _, moments in drawn) / sizes
    spreads = np.zeros(RESAMPLES)
    for _, n, (residuals, counts, squares, products, count_squares) in drawn:
        squared = squares - 2 * shifts * products + shifts**2 * count_squares  # of residuals from the draw's own ratio
        if n > 1:
            spreads += n / (n - 1) * np.maximum(squared - (residuals - shifts * counts) ** 2 / n, 0.0)
    error, errors = math.sqrt(variance) / total, np.sqrt(spreads) / sizes
    # draws of one unit over and over have no error: what is left of a difference, some 1e-16 of it, is rooted to 1e-8
    alike = errors <= 1e-6 * error
    student = _STUDENT[min(freedom, len(_STUDENT)) - 1]
    low, high = -student, student
    if alike.mean() <= 0.01:
        quantiles = np.quantile(shifts[~alike] / errors[~alike], [0.025, 0.975]).tolist()
        if quantiles[1] - quantiles[0] <= _WIDEST * (high - low):
            low, high = quantiles
    return ratio - high * error, ratio - low * error


def _drawn_moments(
    residuals: np.ndarray, counts: np.ndarray, draws: np.random.Generator
) -> tuple[float, int, np.ndarray]:
    """Draw the units of one source for `bootstrap_interval`.

    Returns:
        The variance of the sum of the residuals; how many units were drawn from; and of each draw the sums of the
        residuals r, the counts c, r^2, r c and c^2: [5, draws].
    """
    if len(residuals) > _MOST_UNITS:
        group = draws.permutation(len(residuals)) % _MOST_UNITS
        residuals, counts = np.bincount(group, residuals), np.bincount(group, counts)
    n = len(residuals)
    residuals = residuals - residuals.mean()  # of all sources together the residuals are 0, so that no draw moves
    columns = np.stack([residuals, counts, residuals**2, residuals * counts, counts**2.0], axis=1)
    times = draws.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    return n / max(n - 1, 1) * float(columns[:, 2].sum()), n, (times @ columns).T


def summary(scores: Sequence[Scores], seed: int) -> dict[str, Any]:
    """Return the loss of some sources together, with its interval and the other figures of the report.

    Args:
        scores: of the sources.
        seed: of the bootstrap.

    Returns:
        `loss` in nats per token, `interval` (two ends, or None) and what it was drawn over, `perplexity`,
        `bits_per_byte`, `token_accuracy` (the share of tokens that were the likeliest), `documents`, `tokens` and
        `bytes`; None where it is not known.
    """
    over, units = _units(scores)
    count = sum(each.tokens for each in scores)
    loss = float(sum(losses.sum() for losses, _ in units) / count)
    correct, num_bytes = _total(each.correct for each in scores), _total(each.num_bytes for each in scores)
    interval = bootstrap_interval(units, seed)
    return {
        "loss": loss,
        "interval": interval,
        "interval_over": over if interval else None,
        "perplexity": float(np.exp(loss)),
        "bits_per_byte": loss * count / np.log(2) / num_bytes if num_bytes else None,
        "token_accuracy": None if correct is None else correct / count,
        "documents": sum(len(each.documents) for each in scores),
        "tokens": count,
        "bytes": num_bytes,
    }


def _total(numbers: Iterable[int | None]) -> int | None:
    known = list(numbers)
    return None if None in known else sum(known)  # type: ignore[arg-type]


def difference(one: Sequence[Scores], other: Sequence[Scores], seed: int) -> dict[str, Any]:
    """Compare two models on the same sources; the interval is paired, as the same units are drawn for both.

    Args:
        one: scores of the first model.
        other: of the second, with the same options.
        seed: of the bootstrap.

    Returns:
        `from`, `to` and `difference` in nats per token, `interval` and what it was drawn over.
    """
    (over, first), (_, second) = _units(one), _units(other)
    pairs = zip(first, second, strict=True)
    interval = bootstrap_interval([(later - losses, tokens) for (losses, tokens), (later, _) in pairs], seed)
    start, end = (
        float(sum(losses.sum() for losses, _ in units) / sum(tokens.sum() for _, tokens in units))
        for units in (first, second)
    )
    return {
        "from": start,
        "to": end,
        "difference": end - start,
        "interval": interval,
        "interval_over": over if interval else None,
    }


def _units(scores: Sequence[Scores]) -> tuple[str, list[Units]]:
    """Return what the units of some sources are called, and the units themselves."""
    found = [each.units() for each in scores]
    return " and ".join(dict.fromkeys(name for name, _, _ in found)), [(losses, tokens) for _, losses, tokens in found]
