"""What shares of a run's samples come from which corpus: weights, phases and limits made into stretches of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from lit_llm.config import DataConfig, UserError
from lit_llm.data.loading.order import MixtureOrder, Stretch

Shares = list[list[Fraction]]
"""Share of each corpus in each part of a run [parts][corpora]; every part adds up to 1."""


@dataclass(frozen=True)
class Part:
    """Steps of a run that have the same weights."""

    first_step: int
    """Steps before it."""
    weights: list[float]
    """Weight of each corpus; 0 where it is not read."""


@dataclass(frozen=True)
class Done:
    """How far a run has come that goes on with another plan."""

    stretches: tuple[Stretch, ...] = ()
    """The stretches that it has read from."""
    samples: int = 0
    """Samples that it has read."""

    @property
    def steps(self) -> int:
        """Optimizer steps that it has done."""
        firsts = [*(stretch.first for stretch in self.stretches), self.samples]
        lengths = zip(self.stretches, firsts, firsts[1:], strict=False)
        return sum((last - first) // stretch.batch_size for stretch, first, last in lengths)


@dataclass
class MixPlan:
    """The stretches of a whole run."""

    stretches: list[Stretch]
    """All of them, those that are done included."""
    lines: list[str]
    """What limits on epochs have changed, for a reader."""


def parts_of(config: DataConfig, tokens: Sequence[int], max_steps: int | None) -> list[Part]:
    """The parts of a run, in order; the first begins at step 0.

    Args:
        config: weights and phases.
        tokens: of each corpus, which they are weighed by where there are no weights.
        max_steps: of the run; None where that is not known.

    Raises:
        UserError: a phase begins where another does, or after the run.
    """
    mix = config.mix
    given = mix.weights if mix.corpora else config.weights
    parts = [Part(0, list(map(float, tokens)) if given is None else given)]
    if mix.phases and max_steps is None:
        raise UserError("data.mix.phases needs the length of the run; give the data module max_steps")
    for number, phase in enumerate(mix.phases):
        first = phase.first_step(max_steps or 0)
        where = f"data.mix.phases[{number}] (start {phase.start:g}) begins at step {first}"
        if first <= parts[-1].first_step:
            before = "the run" if number == 0 else "the phase before it"
            raise UserError(f"{where}, and {before} at step {parts[-1].first_step}; sort them, or give them more steps")
        if first >= (max_steps or 0):
            raise UserError(f"{where}, and the run ends at trainer.max_steps {max_steps}; start it earlier")
        parts.append(Part(first, [phase.weights.get(name, 0.0) for name in mix.corpora]))
    return parts


def plan_mix(
    config: DataConfig,
    tokens: Sequence[int],
    num_windows: Sequence[int],
    seed: int,
    max_steps: int | None,
    done: Done | None = None,
) -> MixPlan:
    """Plan the shares of a run, or those of the rest of one.

    Args:
        config: the mix and the batch size.
        tokens: of each corpus.
        num_windows: windows of an epoch of each corpus.
        seed: of the order.
        max_steps: length of the run; None is enough where there are neither phases nor limits.
        done: where it has come; None: to step 0.

    Raises:
        UserError: phases do not fit into the run, a weight is too small, or the limits leave too few samples.
    """
    done = done or Done()
    parts = parts_of(config, tokens, max_steps)
    current = max(number for number, part in enumerate(parts) if part.first_step <= done.steps)
    parts = [Part(max(part.first_step, done.steps), part.weights) for part in parts[current:]]
    planner = _Planner(config, parts, num_windows, seed, max_steps, done)
    return planner.plan()


class _Planner:
    """What `plan_mix` works with."""

    def __init__(
        self,
        config: DataConfig,
        parts: list[Part],
        num_windows: Sequence[int],
        seed: int,
        max_steps: int | None,
        done: Done,
    ) -> None:
        self.names, self.batch_size = config.names, config.batch_size
        self.parts, self.num_windows, self.seed, self.done = parts, list(num_windows), seed, done
        self.limits = {
            number: corpus.max_epochs
            for number, corpus in enumerate(config.mix.corpora.values())
            if corpus.max_epochs is not None
        }
        if self.limits and max_steps is None:
            raise UserError("max_epochs needs the length of the run; give the data module max_steps")
        steps = [*(part.first_step for part in parts), max(max_steps or 0, parts[-1].first_step)]
        self.lengths = [(after - before) * self.batch_size for before, after in pairwise(steps)]

    def plan(self) -> MixPlan:
        """Plan with the limits, lowering a share as often as it takes for no window to be read too often."""
        exact = [[Fraction(str(float(weight))) for weight in part.weights] for part in self.parts]
        wanted = [[weight / sum(weights) for weight in weights] for weights in exact]
        end = self.done.samples + sum(self.lengths)
        read = self._order(list(self.done.stretches)).counts(self.done.samples) if self.done.stretches else None
        most = {
            number: max(0, int(Fraction(str(limit)) * self.num_windows[number]) - (read[number] if read else 0))
            for number, limit in self.limits.items()
        }
        allowed = dict(most)
        while True:
            shares = self._limited(wanted, allowed)
            stretches = [*self.done.stretches, *self._stretches(shares)]
            total = self._order(stretches).counts(end)
            over = {number: total[number] - (read[number] if read else 0) - most[number] for number in most}
            if max(over.values(), default=0) <= 0:
                return MixPlan(stretches, self._lines(wanted, shares))
            for number, excess in over.items():  # rounding to whole samples has added these
                allowed[number] = max(0, allowed[number] - max(0, excess))

    def _order(self, stretches: list[Stretch]) -> MixtureOrder:
        return MixtureOrder(self.num_windows, stretches, self.seed)

    def _stretches(self, shares: Shares) -> list[Stretch]:
        firsts = [self.done.samples + sum(self.lengths[:number]) for number in range(len(shares))]
        return [
            Stretch.of(share, self.batch_size, first, self.names) for share, first in zip(shares, firsts, strict=True)
        ]

    def _limited(self, wanted: Shares, allowed: dict[int, int]) -> Shares:
        """Shares with which no corpus is read too often: what one has too much goes to the others by their weights."""
        shares, settled = [list(share) for share in wanted], set[int]()
        while True:
            demand = {number: self._samples(shares, number) for number in allowed}
            over = {number for number in allowed if number not in settled and demand[number] > allowed[number]}
            if not over:
                return shares
            settled |= over
            for share, length in zip(shares, self.lengths, strict=True):
                free = Fraction(0)
                for number in over:
                    kept = share[number] * allowed[number] / demand[number]
                    free, share[number] = free + share[number] - kept, kept
                others = [number for number in range(len(share)) if number not in settled and share[number]]
                room = sum(share[number] for number in others)
                if free and length and not room:
                    raise self._too_few(allowed)
                for number in others:
                    share[number] += free * share[number] / room

    def _samples(self, shares: Shares, number: int) -> Fraction:
        return sum((share[number] * length for share, length in zip(shares, self.lengths, strict=True)), Fraction(0))

    def _too_few(self, allowed: dict[int, int]) -> UserError:
        given = ", ".join(f"{self.names[number]} {samples:,}" for number, samples in allowed.items())
        return UserError(
            f"max_epochs leaves too few samples for the run, which needs {sum(self.lengths):,} of "
            f"{', '.join(self.names)}, and at most there are {given} of those that are limited; raise "
            "data.mix.corpora.*.max_epochs, lower trainer.max_steps, or leave a corpus of each phase without a limit"
        )

    def _lines(self, wanted: Shares, shares: Shares) -> list[str]:
        """Say which corpora are read less than they were to be, and where the rest goes."""
        whole, lines = sum(self.lengths), []

        def percent(all_shares: Shares, number: int) -> str:
            return f"{100 * float(self._samples(all_shares, number) / whole):.3g}%"

        lowered = [
            number for number in self.limits if whole and self._samples(shares, number) < self._samples(wanted, number)
        ]
        if not lowered:
            return []
        others = [number for number in range(len(self.names)) if number not in lowered]
        rest = ", ".join(f"{self.names[number]} {percent(shares, number)}" for number in others)
        for number in lowered:
            epochs = float(self._samples(wanted, number) / self.num_windows[number])
            lines.append(
                f"{self.names[number]} would be read {epochs:.3g} times, and its max_epochs is "
                f"{self.limits[number]:g}: its share of the run is {percent(shares, number)} instead of "
                f"{percent(wanted, number)}, and the rest goes to the others by their weights ({rest})"
            )
        return lines
