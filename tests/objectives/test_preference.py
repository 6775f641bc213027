"""The DPO family against its formulae, written out with exponentials, and in its limits."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args, get_type_hints

import pytest
import torch

from lit_llm.config import DPOConfig
from lit_llm.config.post_training import REFERENCE_FREE_LOSSES, SMOOTHED_LOSSES, default_beta
from lit_llm.objectives import (
    READS_SIMPO_GAMMA,
    REFERENCE_FREE,
    SMOOTHED,
    PreferenceKind,
    PreferenceLoss,
    sequence_log_probs,
    tail_weights,
)

KINDS = get_args(PreferenceKind)


def s(x):
    return 1 / (1 + torch.exp(-x))


def ln(x):
    return torch.log(x)


# c, r: log-ratios; p, q: log-probabilities of the policy; lc, lr: lengths; b: beta; e: smoothing; g: gamma
FORMULAE = {
    "sigmoid": lambda c, r, p, q, lc, lr, b, e, g: -(1 - e) * ln(s(b * (c - r))) - e * ln(s(b * (r - c))),
    "robust": lambda c, r, p, q, lc, lr, b, e, g: (
        (-(1 - e) * ln(s(b * (c - r))) + e * ln(s(b * (r - c)))) / (1 - 2 * e)
    ),
    "hinge": lambda c, r, p, q, lc, lr, b, e, g: (1 - b * (c - r)) * (b * (c - r) < 1),
    "ipo": lambda c, r, p, q, lc, lr, b, e, g: (c / lc - r / lr - 0.5 / b) ** 2,
    "sigmoid_norm": lambda c, r, p, q, lc, lr, b, e, g: -ln(s(b * (c / lc - r / lr))),
    "exo": lambda c, r, p, q, lc, lr, b, e, g: (
        s(b * (c - r)) * (ln(s(b * (c - r))) - math.log(1 - e)) + s(b * (r - c)) * (ln(s(b * (r - c))) - math.log(e))
    ),
    "nca": lambda c, r, p, q, lc, lr, b, e, g: -ln(s(b * c)) - 0.5 * ln(s(-b * c)) - 0.5 * ln(s(-b * r)),
    "bco": lambda c, r, p, q, lc, lr, b, e, g: -ln(s(b * c)) - ln(s(-b * r)),
    "sppo": lambda c, r, p, q, lc, lr, b, e, g: (c - 0.5 / b) ** 2 + (r + 0.5 / b) ** 2,
    "apo_zero": lambda c, r, p, q, lc, lr, b, e, g: 1 - s(b * c) + s(b * r),
    "apo_down": lambda c, r, p, q, lc, lr, b, e, g: s(b * c) + 1 - s(b * (c - r)),
    "simpo": lambda c, r, p, q, lc, lr, b, e, g: -ln(s(b * (p / lc - q / lr - g / b))),
}


def loss_of(kind, **options):
    if kind == "exo":
        options.setdefault("label_smoothing", 0.01)
    return PreferenceLoss(kind, **options)


def problem(kind):
    generator = torch.Generator().manual_seed(3)
    policy = [(-20 * torch.rand(6, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    reference = [-20 * torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2)]
    tokens = [torch.randint(1, 9, (6,), generator=generator) for _ in range(2)]
    return policy, [None, None] if kind in REFERENCE_FREE else reference, tokens


def test_every_kind_has_its_formula():
    assert set(FORMULAE) == set(KINDS)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(("kind", "smoothing"), [*((kind, 0.0) for kind in KINDS), *((kind, 0.2) for kind in SMOOTHED)])
def test_values_and_gradients(kind, beta, smoothing):
    options = {"beta": beta, "label_smoothing": smoothing} if smoothing else {"beta": beta}
    if kind in READS_SIMPO_GAMMA:
        options["simpo_gamma"] = 0.9
    loss = loss_of(kind, **options)
    policy, reference, tokens = problem(kind)
    actual = loss(*policy, *reference, *tokens)
    ratios = policy if kind in REFERENCE_FREE else [mine - base for mine, base in zip(policy, reference, strict=True)]
    expected = FORMULAE[kind](*ratios, *policy, *tokens, loss.beta, loss.label_smoothing, loss.simpo_gamma)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert actual.shape == (6,)
    grads = [torch.autograd.grad(value.sum(), policy) for value in (actual, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("robust", math.log(2)),
        ("sigmoid_norm", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 25.0),
        ("sppo", 50.0),
        ("nca", 2 * math.log(2)),
        ("bco", 2 * math.log(2)),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("exo", math.log(0.5) - 0.5 * math.log(0.99) - 0.5 * math.log(0.01)),
        ("simpo", -math.log(1 / (1 + math.exp(0.5)))),
    ],
)
def test_the_first_step_where_policy_and_reference_are_one(kind, expected):
    log_probs, tokens = torch.full((2,), -7.0, dtype=torch.float64), torch.full((2,), 4)
    reference = [None, None] if kind in REFERENCE_FREE else [log_probs, log_probs]
    loss = loss_of(kind)
    assert loss(log_probs, log_probs, *reference, tokens, tokens).tolist() == pytest.approx([expected] * 2)
    if loss.needs_reference:
        assert not any(
            reward.any() for reward in loss.implicit_rewards(log_probs, log_probs, *reference, tokens, tokens)
        )


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_conservative_dpo_stops_at_the_odds_of_the_labels(smoothing):
    """With a share e of wrong labels the best margin is log((1 - e) / e) / beta; plain DPO has none."""
    margin = torch.tensor([math.log((1 - smoothing) / smoothing) / 0.1], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    for label_smoothing, stops in ((smoothing, True), (0.0, False)):
        loss = PreferenceLoss("sigmoid", label_smoothing=label_smoothing)(margin, zero, zero, zero, one, one)
        (grad,) = torch.autograd.grad(loss.sum(), margin)
        assert (abs(grad.item()) < 1e-12) == stops


def test_robust_is_unbiased_under_flipped_labels():
    """Averaged over labels of which a share e is flipped, the robust loss is the plain one on the true labels."""
    policy, reference, tokens = problem("robust")
    robust, plain = PreferenceLoss("robust", label_smoothing=0.2), PreferenceLoss("sigmoid")
    right = robust(*policy, *reference, *tokens)
    flipped = robust(*policy[::-1], *reference[::-1], *tokens[::-1])
    torch.testing.assert_close(0.8 * right + 0.2 * flipped, plain(*policy, *reference, *tokens))


def test_exo_is_least_where_the_policy_has_the_label_distribution():
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    best = torch.tensor([math.log(0.99 / 0.01) / 0.1], dtype=torch.float64)
    loss = loss_of("exo")
    assert loss(best, zero, zero, zero, one, one).item() == pytest.approx(0.0, abs=1e-12)
    assert loss(best + 5, zero, zero, zero, one, one).item() > 1e-4
    assert loss(best - 5, zero, zero, zero, one, one).item() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_log_ratios_stay_finite(kind):
    policy = [torch.tensor([1e4, -1e4], requires_grad=True), torch.tensor([-1e4, 1e4], requires_grad=True)]
    reference = [None, None] if kind in REFERENCE_FREE else [torch.zeros(2)] * 2
    loss = loss_of(kind)(*policy, *reference, torch.ones(2), torch.ones(2))
    grads = torch.autograd.grad(loss.sum(), policy)
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("kind", ["ipo", "sigmoid_norm", "simpo"])
def test_an_empty_answer_counts_as_log_probability_zero(kind):
    zero, tokens = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    reference = [None, None] if kind in REFERENCE_FREE else [zero, zero]
    assert torch.isfinite(loss_of(kind)(zero, zero, *reference, tokens, tokens)).all()


def test_implicit_rewards_by_hand():
    chosen, rejected = torch.tensor([-4.0, -6.0], requires_grad=True), torch.tensor([-9.0, -3.0])
    tokens = torch.tensor([2, 3]), torch.tensor([3, 1])
    rewards = PreferenceLoss(beta=0.5).implicit_rewards(
        chosen, rejected, torch.tensor([-6.0, -5.0]), torch.tensor([-9.0, -1.0]), *tokens
    )
    assert [reward.tolist() for reward in rewards] == [[1.0, -0.5], [0.0, -1.0]]
    assert not rewards[0].requires_grad
    rewards = PreferenceLoss("simpo", beta=2.0).implicit_rewards(chosen, rejected, None, None, *tokens)
    assert [reward.tolist() for reward in rewards] == [[-4.0, -4.0], [-6.0, -6.0]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "kto"}, "kto"),
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "no effect"),
        ({"kind": "exo"}, "above 0"),
        ({"simpo_gamma": 1.0}, "no effect"),
        ({"kind": "simpo", "simpo_gamma": -1.0}, "simpo_gamma"),
    ],
)
def test_bad_options_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        PreferenceLoss(**options)


def test_bad_arguments_are_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="needs"):
        PreferenceLoss()(one, one, one, None, one, one)
    with pytest.raises(ValueError, match="no reference"):
        PreferenceLoss("simpo")(one, one, None, one, one, one)
    with pytest.raises(ValueError, match="shapes"):
        PreferenceLoss()(one, one, one, one, torch.ones(2), one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PreferenceLoss().beta = 1.0


def test_the_configuration_knows_the_same_kinds():
    assert get_args(get_type_hints(DPOConfig)["loss"]) == KINDS
    assert (SMOOTHED_LOSSES, REFERENCE_FREE_LOSSES) == (SMOOTHED, REFERENCE_FREE)
    smoothing = {kind: 0.001 if kind == "exo" else 0.0 for kind in KINDS}
    betas = {kind: PreferenceLoss(kind, label_smoothing=smoothing[kind]).beta for kind in KINDS}
    assert betas == {kind: default_beta(kind) for kind in KINDS}
    assert betas == {**dict.fromkeys(KINDS, 0.1), "simpo": 2.0}
    for name in ("beta", "label_smoothing", "simpo_gamma"):
        assert getattr(DPOConfig, name) == getattr(PreferenceLoss, name)


def test_tail_weights_by_hand():
    chosen = torch.tensor([[0, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1]])
    rejected = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    weights = tail_weights(chosen, rejected, 0.25)
    assert weights[0].tolist() == [[0, 1, 1, 0.25, 0.25], [1, 0, 1, 0, 0], [0, 0, 0, 0.25, 0.25]]
    assert weights[1].tolist() == [[1, 1, 0], [1, 1, 0.25], [0, 0, 0]]
    for mask, weight in zip((chosen, rejected), tail_weights(chosen.bool(), rejected.bool(), 1.0), strict=True):
        assert torch.equal(weight, mask.float())


def test_tail_weights_make_shared_sum_and_discounted_tail():
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(2, 4, 9, generator=generator, dtype=torch.float64)
    masks = torch.rand(2, 4, 9, generator=generator) < 0.6
    weights = tail_weights(*masks, 0.3)
    for row in range(4):
        answers = [log_probs[side, row][masks[side, row]] for side in range(2)]
        shared = min(len(answer) for answer in answers)
        for side, answer in enumerate(answers):
            expected = answer[:shared].sum() + 0.3 * answer[shared:].sum()
            total, _ = sequence_log_probs(log_probs[side] * weights[side], masks[side])
            torch.testing.assert_close(total[row], expected, rtol=1e-6, atol=1e-6)


def test_bad_tail_arguments_are_refused():
    mask = torch.ones(2, 3)
    with pytest.raises(ValueError, match="alpha"):
        tail_weights(mask, mask, 1.5)
    with pytest.raises(ValueError, match="masks"):
        tail_weights(mask, mask[:1], 0.5)
