"""Models of one architecture and many sizes, which a scaling law is fitted to and asked about."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lit_llm.config import ModelConfig, PretrainConfig, UserError, default_learning_rate, default_warmup_steps
from lit_llm.planning.counting import parameters_by_part, training_flops_per_token

Counted = Literal["total", "non_embedding"]
EMBEDDINGS = ("embedding", "position embedding", "value embeddings", "head")
LARGEST_INDEX = 4096
"""No search goes beyond a member so large."""
FEWEST_STEPS = 50
"""A run of fewer optimizer steps is mostly warm-up, and left out of a grid."""
WIDEST = 4.0
"""The sizes of a budget go from the central one divided by this to it times this."""


@dataclass(frozen=True)
class Member:
    """One size of a family."""

    index: int
    """1 for the smallest."""
    model: ModelConfig
    """Its shape."""
    total: int
    """All parameters, tied ones once."""
    non_embedding: int
    """Without embeddings of tokens and positions, and without the head."""
    flops_per_token: float
    """Forward and backward, counted, with attention, embedding and head."""

    def count(self, counted: Counted) -> int:
        """N."""
        return self.total if counted == "total" else self.non_embedding

    @property
    def shape(self) -> str:
        """Width, layers and heads in a few characters."""
        model = self.model
        return f"w{model.hidden_size}_l{model.num_layers}_h{model.num_heads}"


@dataclass
class Family:
    """The recipe's architecture at every width that is a whole number of its heads.

    The width of a head, the ratio of width to depth, that of query heads to key and value heads, and that of the
    feed-forward to the width stay the recipe's; the standard deviation of initial weights goes with 1 / sqrt(width), so
    that the outputs of a product have the recipe's size.

    Args:
        model: the recipe's, with its vocabulary.
        length: tokens in a window, which the operations of attention depend on.
        counted: what N counts.
    """

    model: ModelConfig
    length: int
    counted: Counted = "total"
    _members: dict[int, Member] = field(default_factory=dict)

    @property
    def own(self) -> int:
        """The index of the recipe's own model."""
        return self.model.num_heads // self._heads_of_first

    @property
    def _heads_of_first(self) -> int:
        """Query heads of the smallest member: as many as share a key and value head, unless all do."""
        heads, kv = self.model.num_heads, self.model.num_key_value_heads
        return 1 if kv in (None, 1) else heads // int(kv or 1)

    def member(self, index: int) -> Member:
        """The member of a size, 1 for the smallest."""
        if index not in self._members:
            model = self._shape(index)
            parts = parameters_by_part(model)
            total = sum(parts.values())
            inner = total - sum(parts.get(name, 0) for name in EMBEDDINGS)
            self._members[index] = Member(index, model, total, inner, training_flops_per_token(model, self.length))
        return self._members[index]

    def _shape(self, index: int) -> ModelConfig:
        model, share = self.model, index / self.own
        heads = index * self._heads_of_first
        kv = model.num_key_value_heads
        inner = model.intermediate_size
        return replace(
            model,
            hidden_size=round(model.hidden_size * share),
            num_layers=max(1, round(model.num_layers * share)),
            num_heads=heads,
            num_key_value_heads=kv if kv in (None, 1) else index,
            intermediate_size=None if inner is None else max(8, 8 * round(inner * share / 8)),
            init_std=model.init_std if share == 1 else float(f"{model.init_std / math.sqrt(share):.3g}"),
        )

    def n(self, index: int) -> int:
        """N of a member."""
        return self.member(index).count(self.counted)

    def nearest(self, parameters: float) -> Member:
        """The member whose N is nearest, by ratio."""
        low, high = self._around(lambda index: self.n(index) >= parameters)
        return min((self.member(low), self.member(high)), key=lambda each: _distance(self.n(each.index), parameters))

    def balanced(self, budget: float, tokens_per_parameter: float) -> Member:
        """The member that a budget gives about so many tokens for each parameter."""

        def is_enough(index: int) -> bool:
            return self.n(index) * tokens_per_parameter * self.member(index).flops_per_token >= budget

        low, high = self._around(is_enough)
        return min(
            (self.member(low), self.member(high)),
            key=lambda each: _distance(self.n(each.index) * tokens_per_parameter * each.flops_per_token, budget),
        )

    def _around(self, is_enough: Callable[[int], bool]) -> tuple[int, int]:
        """Find the last index that is not enough and the first that is."""
        high = 1
        while not is_enough(high):
            high *= 2
            if high > LARGEST_INDEX:
                raise UserError("no model of the family is so large; give --sizes or --budgets smaller numbers")
        low = max(1, high // 2)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_enough(middle) else (middle, high)
        return low, high

    def best(
        self, tokens_of: Callable[[Member], float], loss: Callable[[float, float], float], fewest_tokens: float
    ) -> Member:
        """Find the member with the lowest loss, which falls and then rises with the size.

        Args:
            tokens_of: that a member can read.
            loss: of (N, D), in nats.
            fewest_tokens: that a run must read; members that read fewer are left out.
        """

        def of(index: int) -> float:
            tokens = tokens_of(self.member(index)) if index <= LARGEST_INDEX else 0.0
            return loss(self.n(index), tokens) if tokens >= fewest_tokens else math.inf

        at, stride = 1, 1
        while True:
            near = [index for index in (at - stride, at + stride) if index >= 1]
            better = min((index for index in near if of(index) < of(at)), key=of, default=None)
            if better is not None:
                stride = 2 * stride if better > at else stride
                at = better
            elif stride == 1:
                return self.member(at)
            else:
                stride //= 2


def _distance(one: float, other: float) -> float:
    return abs(math.log(one / other))


@dataclass(frozen=True)
class GridPoint:
    """One run of a grid."""

    budget: float
    """Floating-point operations that it is meant to take."""
    member: Member
    """The model."""
    steps: int
    """Optimizer steps, to which its schedule is fitted."""
    tokens: int
    """Tokens that it reads."""
    seed: int
    """Of weights and order."""

    @property
    def flops(self) -> float:
        """Operations that whole steps come to."""
        return self.tokens * self.member.flops_per_token

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"c{self.budget:.3g}_{self.member.shape}_s{self.seed}".replace("+", "")


def grid_points(
    family: Family,
    run: PretrainConfig,
    budgets: Sequence[float],
    sizes: Sequence[float] | None,
    points: int,
    tokens_per_parameter: float,
    seeds: Sequence[int],
) -> tuple[list[GridPoint], list[str]]:
    """Lay out a grid.

    Args:
        family: the models.
        run: the recipe, whose batch every run has.
        budgets: floating-point operations of each run.
        sizes: parameters wanted in each budget; None: `points` of them around the balanced member.
        points: see `sizes`.
        tokens_per_parameter: of the balanced member.
        seeds: each point is there once for each.

    Returns:
        The points, the smallest budget first, and lines about those that were left out.
    """
    per_step = run.data.batch_size * run.data.length
    found, lines = [], []
    for budget in sorted(budgets):
        if sizes is None:
            centre = family.balanced(budget, tokens_per_parameter)
            members = _members_around(family, centre, points)
            ratio = budget / centre.flops_per_token / family.n(centre.index)
            if centre.index == 1 and ratio < tokens_per_parameter / 2:
                lines.append(
                    f"{budget:.3g} operations give the smallest model of the family, {family.n(1):,} parameters, "
                    f"{ratio:.2g} tokens for each, and larger ones fewer: give larger budgets, or the recipe narrower "
                    "heads or a smaller vocabulary"
                )
        else:
            members = sorted({family.nearest(size).index for size in sizes})
        short = []
        for member in map(family.member, members):
            steps = round(budget / (member.flops_per_token * per_step))
            if steps < FEWEST_STEPS:
                short.append((family.n(member.index), steps))
            else:
                found += [GridPoint(budget, member, steps, steps * per_step, seed) for seed in seeds]
        if short:
            lines.append(
                f"left out of {budget:.3g} operations: {', '.join(f'{n:,}' for n, _ in short)} parameters, trained in "
                f"steps of {per_step:,} tokens for {', '.join(str(steps) for _, steps in short)} of them; fewer than "
                f"{FEWEST_STEPS} are mostly warm-up, and a smaller data.batch_size or a larger budget keeps them"
            )
    return found, lines


def _members_around(family: Family, centre: Member, points: int) -> list[int]:
    """Choose members evenly by the logarithm of their size, from a quarter of the centre's to four times it."""
    middle = family.n(centre.index)
    wanted = [middle * WIDEST ** (2 * number / (points - 1) - 1) for number in range(points)]
    chosen = {family.nearest(size).index for size in wanted}
    # where sizes are few and far between, the next larger ones and smaller ones fill up
    low, high = min(chosen), max(chosen)
    inside = [index for index in range(low, high + 1) if index not in chosen]
    while len(chosen) < points and inside:
        chosen.add(inside.pop(len(inside) // 2))
    while len(chosen) < 3:  # which a parabola takes
        high += 1
        chosen.add(high)
    return sorted(chosen)


def rate_factor(run: PretrainConfig, member: Member, own: Member) -> float:
    """How much higher a member's rate is than the recipe's, by the table of rates by size."""
    rates = [default_learning_rate("pretrain", each.total, muon=run.optimizer.name == "muon") for each in (member, own)]
    return rates[0] / rates[1]


def run_of(point: GridPoint, run: PretrainConfig, own: Member) -> PretrainConfig:
    """The recipe as a run of a point: its model, length, seed, rate and warm-up; all else stays.

    Warm-up is the share of the run that it is in the recipe, and that of Muon's momentum at most a quarter.

    Args:
        point: of the grid.
        run: the recipe.
        own: the recipe's own model, whose rate a given learning rate is.
    """
    steps = point.steps
    momentum = min(run.optimizer.muon_momentum_warmup_steps, max(1, steps // 4))
    given = replace(run.optimizer, muon_momentum_warmup_steps=momentum)
    rate = run.optimizer.learning_rate
    if rate is None:
        optimizer = given.with_rates("pretrain", point.member.total)
    else:
        scaled = float(f"{rate * rate_factor(run, point.member, own):.2e}")
        optimizer = replace(given, learning_rate=scaled).with_rates("pretrain", point.member.total)
    warmup = run.schedule.warmup_steps
    if warmup is None:
        warmup = default_warmup_steps("pretrain", steps)
    elif warmup:
        warmup = max(1, min(steps, round(warmup * steps / run.steps_of_tokens(float(run.data.length)))))
    return replace(
        run,
        run_name=point.name,
        seed=point.seed,
        model=point.member.model,
        optimizer=optimizer,
        schedule=replace(run.schedule, warmup_steps=warmup),
        trainer=replace(run.trainer, max_steps=steps, max_tokens=None),
    )
