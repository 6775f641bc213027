"""In which shares a run reads several corpora."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from lit_llm.config.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class MixedCorpus:
    """A corpus of a mix."""

    path: str
    """Folder written by prepare_data."""
    weight: float | None = None
    """Share of the training tokens, in proportion to the other weights; null for every corpus weighs by their tokens.
    0 leaves the corpus to the phases that name it."""
    max_epochs: float | None = None
    """Read the corpus at most so often in the whole run; what is left of its share goes to the others, by their
    weights. Null: no limit."""


@dataclass
class MixPhase:
    """Other weights from a step of the run on, as for annealing on the best text at the end."""

    start: float
    """When the phase begins: below 1 a share of trainer.max_steps, else the number of steps before it."""
    weights: dict[str, float]
    """Weight of each corpus that is read from then on, by name; the others are not read."""

    def first_step(self, max_steps: int) -> int:
        """The number of steps that a run of `max_steps` does before the phase."""
        # as the decimals that were written: 0.29 x 100 in binary is a hair below 29
        start = Fraction(str(self.start))
        return round(start * max_steps) if start < 1 else int(start)


@dataclass
class MixConfig:
    """Named corpora with weights, limits, and other weights in later phases of the run."""

    corpora: dict[str, MixedCorpus] = field(default_factory=dict)
    """The corpora by name, as {web: {path: shards/web, weight: 0.7}, code: {path: shards/code, weight: 0.3, max_epochs:
    4}}; in place of data.paths and data.weights. path: folder written by prepare_data. weight: share of the training
    tokens, in proportion to the others; without any they weigh by their tokens, and 0 leaves a corpus to the phases.
    max_epochs: read it at most so often in the whole run, and give what is left of its share to the others by their
    weights. Each corpus has curves of its own: data/share, data/epochs, val/loss and val/bits_per_byte, with /NAME."""
    phases: list[MixPhase] = field(default_factory=list)
    """Other weights later in the run, in their order, as [{start: 0.8, weights: {web: 0.4, code: 0.6}}]; before the
    first, the weights of the corpora hold. start: below 1 a share of trainer.max_steps, else a number of steps. A
    corpus that a phase does not name is not read in it."""

    def __post_init__(self) -> None:
        for name, corpus in self.corpora.items():
            if not _NAME.fullmatch(str(name)):
                raise UserError(f"data.mix.corpora has the name {name!r}; use letters, digits, dots, - and _")
            self._check_corpus(name, corpus)
        self._check_weights()
        self._check_phases()

    @property
    def weights(self) -> list[float] | None:
        """The weights before the first phase; None weighs by tokens."""
        given = [corpus.weight for corpus in self.corpora.values()]
        return None if None in given else [weight for weight in given if weight is not None]

    def _check_corpus(self, name: str, corpus: MixedCorpus) -> None:
        if corpus.weight is not None and corpus.weight < 0:
            raise UserError(f"data.mix.corpora.{name}.weight is {corpus.weight}; it must be at least 0, or null")
        if corpus.weight == 0 and not any(name in phase.weights for phase in self.phases):
            raise UserError(
                f"data.mix.corpora.{name}.weight is 0 and no phase names it, so that it is never read; leave it out"
            )
        if corpus.max_epochs is not None and corpus.max_epochs <= 0:
            raise UserError(f"data.mix.corpora.{name}.max_epochs is {corpus.max_epochs}; it must be above 0, or null")

    def _check_weights(self) -> None:
        given = {name: corpus.weight for name, corpus in self.corpora.items()}
        without = [name for name, weight in given.items() if weight is None]
        if without and len(without) < len(given):
            raise UserError(
                f"data.mix.corpora.{without[0]} has no weight and others have one; give a weight to every corpus, or "
                "to none, which weighs by tokens"
            )
        if given and not without and not any(given.values()):
            raise UserError("data.mix.corpora has weights of 0 alone, so that nothing is read before the first phase")

    def _check_phases(self) -> None:
        before = 0.0
        if self.phases and not self.corpora:
            raise UserError("data.mix.phases weigh the corpora of data.mix.corpora, and there are none")
        for number, phase in enumerate(self.phases):
            where = f"data.mix.phases[{number}]"
            if phase.start <= 0 or (phase.start > 1 and phase.start != int(phase.start)):
                raise UserError(
                    f"{where}.start is {phase.start}; it must be above 0: a share of trainer.max_steps below 1, or a "
                    "whole number of steps"
                )
            # a share and a number of steps can be compared only once max_steps is known
            if (before < 1) == (phase.start < 1) and phase.start <= before:
                raise UserError(
                    f"{where}.start is {phase.start}, and the phase before it starts at {before}; sort them"
                )
            before = phase.start
            if not phase.weights:
                raise UserError(f"{where}.weights is empty; name the corpora that are read from there on")
            for name, weight in phase.weights.items():
                if name not in self.corpora:
                    raise UserError(
                        f"{where}.weights names {name!r}, which is not in data.mix.corpora ({', '.join(self.corpora)})"
                    )
                if weight <= 0:
                    raise UserError(f"{where}.weights.{name} is {weight}; it must be above 0: leave {name} out instead")


def names_of_paths(paths: Iterable[str]) -> list[str]:
    """Short and different names for folders: their last parts, without those that all have in common."""
    parts = [list(Path(path).parts) for path in paths]
    while len(parts) > 1 and all(len(each) > 1 for each in parts) and len({each[-1] for each in parts}) == 1:
        for each in parts:
            each.pop()
    names = [each[-1] if each else "." for each in parts]
    return [name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names)]
