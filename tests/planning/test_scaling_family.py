"""A family of models, the grid over it, and the runs of the grid."""

from __future__ import annotations

import pytest
from conftest import MakeRun, tiny_model

from lit_llm.config import default_learning_rate
from lit_llm.planning import count_parameters, training_flops_per_token
from lit_llm.planning.scaling_family import FEWEST_STEPS, Family, grid_points, run_of
from lit_llm.planning.scaling_law import ScalingLaw

LAW = ScalingLaw(1.8, 480.0, 2000.0, 0.35, 0.37)


def test_a_member_keeps_the_shape_of_the_recipe() -> None:
    recipe = tiny_model(hidden_size=64, num_heads=8, num_key_value_heads=2, num_layers=4, intermediate_size=160)
    family = Family(recipe, 32)
    assert family.own == 2 and family.member(2).model == recipe
    small, large = family.member(1), family.member(6)
    assert (small.model.hidden_size, small.model.num_heads, small.model.num_key_value_heads) == (32, 4, 1)
    assert (large.model.hidden_size, large.model.num_heads, large.model.num_key_value_heads) == (192, 24, 6)
    assert (small.model.num_layers, large.model.num_layers, large.model.intermediate_size) == (2, 12, 480)
    assert large.model.width_per_head == recipe.width_per_head == 8
    assert large.model.init_std == pytest.approx(recipe.init_std / 3**0.5, rel=5e-3)  # three digits
    assert large.total == count_parameters(large.model)
    # tied embedding and head, which are counted once
    assert large.total - large.non_embedding == 400 * 192
    assert large.flops_per_token == training_flops_per_token(large.model, 32)
    assert Family(tiny_model(tie_word_embeddings=False), 32, "non_embedding").n(4) == family_without(4)


def family_without(index: int) -> int:
    """Parameters of a member of the tiny family without embedding and untied head."""
    member = Family(tiny_model(tie_word_embeddings=False), 32).member(index)
    return member.total - 2 * 400 * member.model.hidden_size


def test_the_nearest_and_the_best_member() -> None:
    family = Family(tiny_model(), 32)
    sizes = [family.n(index) for index in range(1, 14)]
    assert sizes == sorted(sizes)
    assert family.nearest(sizes[6] * 1.01).index == 7 and family.nearest(1.0).index == 1
    budget = 1e12
    central = family.balanced(budget, 20.0)
    ratio = budget / central.flops_per_token / central.total
    assert 10 < ratio < 40
    # the search finds what trying all of them finds
    loss = [LAW.loss(family.n(i), budget / family.member(i).flops_per_token) for i in range(1, 14)]
    best = family.best(lambda member: budget / member.flops_per_token, LAW.loss, 1.0)
    assert best.index == 1 + loss.index(min(loss)) > 2
    # a model that cannot read a step is none, however the law likes it
    greedy = ScalingLaw(0.0, 1.0, 1e-9, 0.5, 0.1)
    most = family.best(lambda member: budget / member.flops_per_token, greedy.loss, 1e6)
    assert budget / most.flops_per_token >= 1e6 > budget / family.member(most.index + 1).flops_per_token


def test_a_grid_has_each_budget_its_sizes_and_each_run_its_length(make_run: MakeRun) -> None:
    run = make_run(optimizer={"learning_rate": None}, schedule={"warmup_steps": None})
    family = Family(run.model, run.data.length)
    budgets = [2e9, 4e9]
    points, lines = grid_points(family, run, budgets, [7000.0, 32000.0, 5e6], 5, 20.0, [1, 2])
    assert len(points) == 2 * 2 * 2 and {point.seed for point in points} == {1, 2}
    assert all(point.flops == pytest.approx(point.budget, rel=0.5 / FEWEST_STEPS) for point in points)
    assert all(point.steps >= FEWEST_STEPS and point.tokens == point.steps * 4 * 32 for point in points)
    assert len({point.name for point in points}) == len(points)
    assert len(lines) == 2 and "left out of 2e+09 operations: 4," in lines[0]
    assert "trained in steps of 128 tokens for 1 of them; fewer than" in lines[0]
    around, _ = grid_points(family, run, [3e11], None, 5, 20.0, [1])
    assert len(around) == 5 and around[0].tokens / around[0].member.total > 40 > 10 > around[-1].tokens / (
        around[-1].member.total
    )


@pytest.mark.parametrize("given", [None, 1e-2])
def test_a_run_has_the_rate_of_its_size_and_a_share_of_warm_up(given: float | None, make_run: MakeRun) -> None:
    run = make_run(
        model={"hidden_size": 128, "num_heads": 2},
        optimizer={"learning_rate": given},
        schedule={"warmup_steps": None if given is None else 30},
        trainer={"max_steps": 300},
    )
    family = Family(run.model, run.data.length)
    points, _ = grid_points(family, run, [1e15], [30e6], 3, 20.0, [7])
    made = run_of(points[0], run, family.member(family.own))
    size = points[0].member.total
    assert 20e6 < size < 45e6 and made.model == points[0].member.model and made.seed == 7
    table = default_learning_rate("pretrain", size)
    own = default_learning_rate("pretrain", family.member(family.own).total)
    expected = table if given is None else given * table / own
    assert made.optimizer.learning_rate == pytest.approx(expected, rel=5e-3) and table < own
    assert made.trainer.max_steps == points[0].steps
    share = 0.02 if given is None else 0.1
    assert made.schedule.warmup_steps == pytest.approx(share * points[0].steps, abs=0.51)
    assert run.optimizer.learning_rate == given  # the recipe is as it was
