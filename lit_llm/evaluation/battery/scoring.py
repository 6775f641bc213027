"""Log-probabilities of choices, where what texts have in common is read once.

All texts of a group begin with one prefix, as the examples of a subject: it is read once for the group and stays in
the cache. What the choices of one question have in common, its stem, is read once for the question; then each choice
reads its own rest, its branch. Logits exist at scored positions alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_llm.config import UserError
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation.beginnings import common_prefix
from lit_llm.generation.inference import cache_for, inference, not_finite
from lit_llm.model import Decoder, KVCache
from lit_llm.model.arithmetic import at_least_float32

# A pass has as many rows as are asked for, or more where they are short, until it has so many tokens.
_TOKENS_OF_A_PASS = 512
_COST_OF_A_PASS = 24  # in tokens: each reads all weights
# A batch fills several passes, so that stems and branches of like lengths can be read together. It has as many
# questions as are asked for, or more, until all its rows together have so many tokens, prefixes included.
_TOKENS_OF_A_BATCH = 8192
_QUESTIONS_OF_A_BATCH = 128
_SHORTEST_PREFIX = 8  # a shorter one is read with the stem
_LOGITS_AT_ONCE = 256
_CHUNK = 512  # tokens of a prefix that are read in one pass


@dataclass(frozen=True)
class Encoded:
    """A question as the model reads it.

    Attributes:
        context: ids before each choice, at least one.
        choices: ids of each choice, none of them empty.
        where: what the question is called in messages.
    """

    context: list[int]
    choices: Sequence[list[int]]
    where: str = "a question"

    def check_fits(self, limit: int) -> None:
        """Check that the model can read each choice.

        Args:
            limit: tokens of its context.

        Raises:
            UserError: a choice is longer than that.
        """
        longest = max(map(len, self.choices))
        if longest > limit:
            raise UserError(
                f"{self.where}: a choice of {longest:,} tokens is longer than the model's context of {limit:,} tokens"
            )


@dataclass
class _Unit:
    """A stem with its branches.

    Attributes:
        question: number of the question.
        choices: which of its choices these are.
        stem: what all of them read first, after the prefix of the group.
        branches: what each reads after that, often nothing.
        targets: of each choice, places in stem and branch together and the ids that are predicted there.
    """

    question: int
    choices: list[int]
    stem: list[int]
    branches: list[list[int]]
    targets: list[list[tuple[int, int]]]

    def leave_out(self, prefix: int) -> None:
        """Take the first so many tokens from the stem."""
        self.stem = self.stem[prefix:]
        self.targets = [[(place - prefix, token) for place, token in targets] for targets in self.targets]

    @property
    def open_branches(self) -> list[list[int]]:
        """The branches that have something to read."""
        return [branch for branch in self.branches if branch]

    @property
    def length(self) -> int:
        """Tokens of its longest text."""
        return len(self.stem) + max(map(len, self.branches))


class _Wanted(NamedTuple):
    """A token of a choice that is predicted at a place of a stem or of a branch."""

    place: int
    target: int
    question: int
    choice: int


_Text = tuple[int, list[int], list[_Wanted]]
"""The row of the cache that a text goes on from, the text, and what is wanted of it."""


@dataclass
class ChoiceScorer:
    """Scores choices with one model.

    Args:
        model: a language model.
        batch_size: questions read at once, or more of short ones; results depend on it by rounding alone.
    """

    model: Decoder
    batch_size: int

    def cut(self, question: Encoded) -> int:
        """How many of a question's texts are longer than the context, and are read without their left end."""
        limit = self.model.config.max_position_embeddings
        return sum(len(question.context) + len(choice) > limit + 1 for choice in question.choices)

    def score(self, questions: Sequence[Encoded]) -> Iterator[list[tuple[int, list[float]]]]:
        """Score the questions of a group, those of like length together.

        Yields:
            After each batch, the questions that are finished: the number of each, and the log-probability in nats of
            each of its choices.

        Raises:
            UserError: a choice is longer than the model's context, or predictions are not finite.
        """
        units = [unit for number, each in enumerate(questions) for unit in self._units(number, each)]
        if not units:
            return
        prefix = _prefix(units)
        for unit in units:
            unit.leave_out(len(prefix))
        units.sort(key=lambda unit: (unit.length, unit.question), reverse=True)
        batches = list(self._batches(units, len(prefix)))
        cache = self._cache(batches, len(prefix))
        with inference(self.model, is_sharded(self.model)):
            self._read_prefix(cache, prefix)
        missing = {number: len(each.choices) for number, each in enumerate(questions)}
        found: dict[int, dict[int, float]] = {}
        for batch in batches:
            with inference(self.model, is_sharded(self.model)):
                self._score_batch(cache, prefix, batch, found)
            finished = []
            for unit in batch:
                missing[unit.question] -= len(unit.choices)
                if not missing[unit.question]:
                    finished.append(unit.question)
            yield [(number, [value for _, value in sorted(found.pop(number).items())]) for number in finished]

    def _units(self, number: int, question: Encoded) -> list[_Unit]:
        """Cut texts that are too long, and find the stem of the others."""
        limit = self.model.config.max_position_embeddings
        texts = [[*question.context, *choice] for choice in question.choices]
        question.check_fits(limit)
        whole = [index for index, text in enumerate(texts) if len(text) <= limit + 1]
        # each of those that are cut begins elsewhere
        groups = ([whole] if whole else []) + [[index] for index in range(len(texts)) if index not in whole]
        return [_unit(number, group, texts, question.choices, limit) for group in groups]

    def _batches(self, units: Sequence[_Unit], prefix: int) -> Iterator[list[_Unit]]:
        """Cut units, longest first, into batches."""
        batch: list[_Unit] = []
        rows = 0
        for unit in units:
            width = prefix + (batch[0].length if batch else 0)
            more = max(len(unit.open_branches), 1)
            is_full = (rows + more) * width > _TOKENS_OF_A_BATCH or len(batch) == _QUESTIONS_OF_A_BATCH
            if is_full and len(batch) >= self.batch_size:
                yield batch
                batch, rows = [], 0
            batch.append(unit)
            rows += more
        yield batch

    def _cache(self, batches: Sequence[Sequence[_Unit]], prefix: int) -> KVCache:
        rows = max(max(len(batch), sum(len(unit.open_branches) for unit in batch)) for batch in batches)
        longest = max(unit.length for batch in batches for unit in batch)
        return cache_for(self.model, rows, prefix + longest, spare=longest)

    def _read_prefix(self, cache: KVCache, prefix: Sequence[int]) -> None:
        if not prefix:
            return
        device = self.model.embedding.weight.device
        for start in range(0, len(prefix), _CHUNK):
            piece = list(prefix[start : start + _CHUNK])
            step = cache.step(len(piece), range(1))
            self.model(torch.tensor([piece], device=device), cache=step, head=lambda hidden, head: None)
        for row in range(1, len(cache.lengths)):
            cache.copy_row(0, row, len(prefix), prefix[-1])

    def _score_batch(
        self, cache: KVCache, prefix: Sequence[int], batch: Sequence[_Unit], found: dict[int, dict[int, float]]
    ) -> None:
        """Read the stems of a batch and then the branches, and add up the log-probabilities of each choice."""
        stems, branches = [], []
        batch = sorted(batch, key=lambda unit: len(unit.stem), reverse=True)
        for row, unit in enumerate(batch):
            of_stem: list[_Wanted] = []
            for choice, branch, targets in zip(unit.choices, unit.branches, unit.targets, strict=True):
                size = len(unit.stem)
                wanted = [_Wanted(place, target, unit.question, choice) for place, target in targets]
                of_stem += [each for each in wanted if each.place < size]
                if branch:
                    rest = [each._replace(place=each.place - size) for each in wanted if each.place >= size]
                    branches.append((row, branch, rest))
            stems.append((row, unit.stem, of_stem))
        self._read(cache, stems, found)
        if branches:
            branches.sort(key=lambda each: len(each[1]), reverse=True)
            cache.select([row for row, _, _ in branches])
            self._read(cache, branches, found)
        for row in range(max(len(batch), len(branches))):
            cache.truncate(row, len(prefix), prefix[-1] if prefix else 0)

    def _read(self, cache: KVCache, texts: Sequence[_Text], found: dict[int, dict[int, float]]) -> None:
        """Read texts, longest first, into the first rows of the cache, and add up what is wanted."""
        for start, end in self._pieces([len(text) for _, text, _ in texts]):
            piece = texts[start:end]
            wanted = [each for _, _, several in piece for each in several]
            log_probs = self._pass(cache, start, piece)
            if not bool(log_probs.isfinite().all()):
                raise not_finite()
            for each, value in zip(wanted, log_probs.tolist(), strict=True):
                sums = found.setdefault(each.question, {})
                sums[each.choice] = sums.get(each.choice, 0.0) + value

    def _pieces(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Cut texts, longest first, into passes, so that padding and the passes themselves cost least together."""
        best, starts = [0.0], [0]
        for end in range(1, len(lengths) + 1):
            options = []
            for start in range(end - 1, -1, -1):
                rows = end - start
                if rows > max(self.batch_size, _TOKENS_OF_A_PASS // lengths[start]):
                    break
                options.append((best[start] + lengths[start] * rows + _COST_OF_A_PASS, start))
            cost, start = min(options)
            best.append(cost)
            starts.append(start)
        pieces, end = [], len(lengths)
        while end:
            pieces.append((starts[end], end))
            end = starts[end]
        return pieces[::-1]

    def _pass(self, cache: KVCache, first: int, texts: Sequence[_Text]) -> Tensor:
        """Read texts into the rows from `first` on; returns the log-probability of each wanted target [wanted]."""
        device = self.model.embedding.weight.device
        counts = [len(text) for _, text, _ in texts]
        width = max(counts)
        tokens = torch.tensor([[*text, *[0] * (width - len(text))] for _, text, _ in texts], device=device)
        wanted = [(row, each) for row, (_, _, several) in enumerate(texts) for each in several]
        numbers = {place: number for number, place in enumerate(dict.fromkeys((row, w.place) for row, w in wanted))}
        states = torch.tensor([numbers[row, each.place] for row, each in wanted], dtype=torch.long, device=device)
        targets = torch.tensor([each.target for _, each in wanted], dtype=torch.long, device=device)
        at = torch.tensor(list(numbers), dtype=torch.long, device=device).view(-1, 2)

        def head(hidden: Tensor, layer: nn.Linear) -> Tensor:
            return self._log_probs(hidden[at[:, 0], at[:, 1]], states, targets)

        step = cache.step(width, range(first, first + len(texts)), counts)
        log_probs: Tensor = self.model(tokens, cache=step, head=head)
        return log_probs.cpu()

    def _log_probs(self, hidden: Tensor, states: Tensor, targets: Tensor) -> Tensor:
        """Compute log-probabilities [wanted] of targets [wanted], each predicted from one of the states [n, hidden]."""
        log_probs = torch.zeros(
            len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        for start in range(0, len(hidden), _LOGITS_AT_ONCE):
            logits = at_least_float32(self.model.logits(hidden[start : start + _LOGITS_AT_ONCE]))
            here = ((states >= start) & (states < start + len(logits))).nonzero().squeeze(1)
            rows = states[here] - start
            log_probs[here] = logits[rows, targets[here]] - logits.logsumexp(-1)[rows]
        return log_probs


def _unit(number: int, group: list[int], texts: Sequence[list[int]], choices: Sequence[list[int]], limit: int) -> _Unit:
    cut = [texts[index][-limit - 1 :] for index in group]
    inputs = [text[:-1] for text in cut]
    stem = inputs[0][: min(common_prefix(inputs[0], other) for other in inputs)]
    targets = [
        [(place - 1, text[place]) for place in range(len(text) - len(choices[index]), len(text))]
        for index, text in zip(group, cut, strict=True)
    ]
    return _Unit(number, group, stem, [text[len(stem) :] for text in inputs], targets)


def _prefix(units: Sequence[_Unit]) -> list[int]:
    """What all stems begin with, as far as nothing is scored there and each stem has a token left."""
    first = min(min(targets[0][0] for targets in unit.targets) for unit in units)
    shortest = min(len(unit.stem) for unit in units) - 1
    low, high = min(unit.stem for unit in units), max(unit.stem for unit in units)
    prefix = low[: max(min(common_prefix(low, high), first, shortest), 0)]
    return prefix if len(prefix) >= _SHORTEST_PREFIX and len(units) > 1 else []
