"""Policy optimization: masked statistics, advantages, clipped losses and the price of KL, against formulae."""

from __future__ import annotations

import math

import pytest
import torch

from lit_llm.objectives import (
    AdaptiveKL,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantages,
    kl_estimate,
    masked_whiten,
    shaped_rewards,
)

GARBAGE = [float("nan"), float("inf"), 1e30]
MASK = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1], [0] * 6]).bool()


def sample(seed, garbage=None, mask=MASK):
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values if garbage is None else values.masked_fill(~mask, garbage)


# whitening


@pytest.mark.parametrize("garbage", GARBAGE)
def test_statistics_see_the_mask_only(garbage):
    values = sample(0, garbage)
    kept = values[MASK]
    whitened = masked_whiten(values, MASK)
    torch.testing.assert_close(whitened[MASK], (kept - kept.mean()) / torch.sqrt(kept.var() + 1e-8))
    assert not whitened[~MASK].any()
    unshifted = masked_whiten(values, MASK, shift_mean=False)
    torch.testing.assert_close(unshifted[MASK], whitened[MASK] + kept.mean())
    assert not unshifted[~MASK].any()


def test_whitened_values_have_mean_0_and_deviation_1():
    whitened = masked_whiten(7 + 3 * sample(0, float("nan")), MASK)[MASK]
    assert whitened.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert whitened.std(unbiased=True).item() == pytest.approx(1.0, abs=1e-6)
    tiny = masked_whiten(torch.tensor([1e-4, -1e-4], dtype=torch.float64), torch.ones(2))
    assert tiny[0].item() == pytest.approx(1e-4 / math.sqrt(2e-8 + 1e-8))  # eps is 1e-8, inside the root


def test_whitening_of_values_that_several_ranks_hold():
    values = 2 + 3 * sample(1)
    whole = masked_whiten(values, MASK)
    parts = [(values[:2], MASK[:2]), (values[2:], MASK[2:])]
    sums = [[], []]  # what each rank adds to the first and the second sum
    for values_of_rank, mask in parts:
        kept = torch.where(mask, values_of_rank, 0.0)
        sums[0].append(torch.stack([kept.sum(), mask.sum().double()]))
    mean = sum(sums[0])[0] / sum(sums[0])[1]
    for values_of_rank, mask in parts:
        sums[1].append(torch.where(mask, values_of_rank - mean, 0.0).square().sum())
    found = []
    for rank, (values_of_rank, mask) in enumerate(parts):
        calls = iter(range(2))

        def total(own, rank=rank, calls=calls):
            each = sums[next(calls)]
            torch.testing.assert_close(own, each[rank])
            return sum(each)

        found.append(masked_whiten(values_of_rank, mask, total))
    torch.testing.assert_close(torch.cat(found), whole)


def test_whitening_too_few_values():
    values, one = torch.tensor([5.0, 7.0]), torch.tensor([True, False])
    assert masked_whiten(values, one).tolist() == [0.0, 0.0]
    assert masked_whiten(values, torch.zeros(2)).tolist() == [0.0, 0.0]
    assert masked_whiten(values, one, shift_mean=False).tolist() == [5.0, 0.0]
    with pytest.raises(ValueError, match="shape"):
        masked_whiten(values, torch.ones(3))


# advantages


def advantages_by_definition(rewards, values, gamma, lam):
    """A_i = sum over j >= i of (gamma lam)^(j - i) delta_j, for one answer without pads."""
    following = torch.cat([values[1:], values.new_zeros(1)])
    deltas = rewards + gamma * following - values
    return torch.stack(
        [sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(deltas))) for i in range(len(deltas))]
    )


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_gae_by_its_definition(gamma, lam, garbage):
    rewards, values = sample(1, garbage), sample(2, garbage)
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    for row, mask in enumerate(MASK):
        if mask.any():
            expected = advantages_by_definition(rewards[row][mask], values[row][mask], gamma, lam)
            torch.testing.assert_close(advantages[row][mask], expected)
            torch.testing.assert_close(returns[row][mask], expected + values[row][mask])
    assert not advantages[~MASK].any() and not returns[~MASK].any()


def test_gae_skips_what_lies_between_two_parts_of_an_answer():
    values, rewards = torch.tensor([[0.5, 9e9, 1.5]]), torch.tensor([[1.0, 9e9, 2.0]])
    split = gae(rewards, values, torch.tensor([[1, 0, 1]]), 0.9, 0.8)[0]
    joined = gae(rewards[:, ::2], values[:, ::2], torch.ones(1, 2), 0.9, 0.8)[0]
    assert torch.equal(split[:, ::2], joined)


def test_gae_in_its_limits():
    mask, rewards, values = torch.ones(5, 6), sample(1), sample(2)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))  # Monte Carlo: values drop out
    perfect = rewards.flip(1).cumsum(1).flip(1)
    advantages, _ = gae(rewards, perfect, mask, 1.0, 0.95)
    assert advantages.abs().max() < 1e-12  # nothing is better than expected


def test_group_advantages():
    rewards = torch.tensor([1.0, 3.0, 8.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    deviation = math.sqrt((9 + 1 + 16) / 2) + 1e-4
    expected = [-3 / deviation, -1 / deviation, 4 / deviation, 0.0, 0.0, 0.0]
    assert group_advantages(rewards, 3).tolist() == pytest.approx(expected, rel=1e-12)
    for size in (1, 4):
        with pytest.raises(ValueError, match="group_size"):
            group_advantages(rewards, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_have_no_advantage_at_all(dtype):
    """Also where their mean rounds to another number, as that of three times 0.7 and of ten times 0.1 does."""
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor([0.7, 0.1, 1e6 / 3]), torch.randn(60, generator=generator)]).double() / 3
    uneven = 0
    for size in (3, 7, 10):
        rewards = values.to(dtype).repeat_interleave(size)
        advantages = group_advantages(rewards, size)
        assert advantages.dtype == dtype and not advantages.any()
        uneven += int((rewards.view(-1, size).mean(1) != values.to(dtype)).sum())
    assert uneven > 10


# rewards and KL


def test_kl_estimates():
    log_ratio = torch.tensor([0.0, math.log(2.0), -1.0], dtype=torch.float64)
    assert kl_estimate(log_ratio, "k1").tolist() == pytest.approx([0.0, -math.log(2.0), 1.0])
    assert kl_estimate(log_ratio, "k3").tolist() == pytest.approx([0.0, 1 - math.log(2.0), math.exp(-1)])
    with pytest.raises(ValueError, match="k2"):
        kl_estimate(log_ratio, "k2")


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased(kind):
    """Their mean under the policy is the divergence, computed in full."""
    policy, reference = (torch.log_softmax(sample(seed)[0], 0) for seed in (4, 5))
    exact = (policy.exp() * (policy - reference)).sum()
    mean = (policy.exp() * kl_estimate(reference - policy, kind)).sum()
    assert mean.item() == pytest.approx(exact.item(), rel=1e-12)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_shaped_rewards(garbage):
    scores = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0], dtype=torch.float64)
    kl = sample(6, garbage)
    expected = torch.zeros(MASK.shape, dtype=torch.float64)
    for row, last in enumerate([4, 1, 5, 5, None]):
        expected[row, MASK[row]] = -0.3 * kl[row, MASK[row]]
        if last is not None:
            expected[row, last] += scores[row]
    torch.testing.assert_close(shaped_rewards(scores, kl, MASK, 0.3), expected)
    with pytest.raises(ValueError, match="scores"):
        shaped_rewards(scores[:2], kl, MASK, 0.3)


def test_adaptive_kl_by_hand():
    price = AdaptiveKL(0.2, target=6.0, horizon=1000)
    assert price.update(6.6, 100) == pytest.approx(0.2 * (1 + 0.1 * 0.1))  # 10% above the target
    assert price.update(600.0, 100) == pytest.approx(0.202 * 1.02)  # the error is cut at 20%
    assert price.update(-3.0, 50) == pytest.approx(0.202 * 1.02 * 0.99)
    again = AdaptiveKL(0.5, target=6.0, horizon=1000)
    again.load_state_dict(price.state_dict())
    assert again.update(1.0, 10) == price.update(1.0, 10)
    assert AdaptiveKL(0.2, 6.0, 10).update(0.0, 10**6) == pytest.approx(0.16)  # never negative


def test_fixed_kl():
    price = AdaptiveKL(0.05)
    assert price.update(100.0, 64) == price.coefficient == 0.05


@pytest.mark.parametrize("options", [{"coefficient": -1.0}, {"target": 0.0}, {"horizon": 0}])
def test_bad_controllers_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdaptiveKL(**{"coefficient": 0.1, **options})
    with pytest.raises(ValueError, match="finite"):
        AdaptiveKL(0.1, 1.0).update(float("nan"), 1)


# clipped losses


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope", "clipped"),
    [
        (2.0, 1.1, -2.2, -2.2, False),
        (2.0, 1.5, -2.4, 0.0, True),  # already more likely than 1 + 0.2: no more gradient
        (2.0, 0.5, -1.0, -1.0, False),  # a good token that became unlikely is pulled back
        (-2.0, 0.5, 1.6, 0.0, True),
        (-2.0, 1.5, 3.0, 3.0, False),
        (0.0, 3.0, 0.0, 0.0, False),
    ],
)
def test_policy_loss_in_each_region(advantage, ratio, loss, slope, clipped):
    old = torch.tensor([-3.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    found = clipped_policy_loss(new, old, torch.tensor([advantage], dtype=torch.float64), 0.2)
    (grad,) = torch.autograd.grad(found.loss.sum(), new)
    assert found.loss.item() == pytest.approx(loss)
    assert grad.item() == pytest.approx(slope)
    assert found.clipped.item() == clipped
    assert found.approx_kl.item() == pytest.approx(0.5 * math.log(ratio) ** 2)
    assert not found.approx_kl.requires_grad


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope", "clipped"),
    [
        (1.1, 5.0, 0.5 * 3.9**2, -3.9, False),
        (2.0, 5.0, 0.5 * 3.8**2, 0.0, True),  # moved by more than 0.2 towards the return: no more gradient
        (2.0, 0.0, 0.5 * 2.0**2, 2.0, False),
        (0.0, 5.0, 0.5 * 5.0**2, -5.0, False),
        (0.0, -5.0, 0.5 * 5.8**2, 0.0, True),
    ],
)
def test_value_loss_in_each_region(value, target, loss, slope, clipped):
    new = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([1.0], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    found = clipped_value_loss(new, old, returns, 0.2)
    (grad,) = torch.autograd.grad(found.loss.sum(), new)
    assert (found.loss.item(), grad.item()) == pytest.approx((loss, slope))
    assert found.clipped.item() == clipped


def test_before_the_first_update_the_losses_are_plain():
    log_probs, values = sample(7).requires_grad_(), sample(8).requires_grad_()
    advantages, returns = sample(9), sample(10)
    policy = clipped_policy_loss(log_probs, log_probs, advantages, 0.2)
    torch.testing.assert_close(policy.loss, -advantages)
    torch.testing.assert_close(torch.autograd.grad(policy.loss.sum(), log_probs)[0], -advantages)
    value = clipped_value_loss(values, values.detach(), returns, 0.2)
    torch.testing.assert_close(value.loss, 0.5 * (values - returns) ** 2)
    torch.testing.assert_close(torch.autograd.grad(value.loss.sum(), values)[0], (values - returns).detach())
    assert not any(tensor.any() for tensor in (policy.clipped, policy.approx_kl, value.clipped))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_pads_reach_neither_loss_nor_gradient(garbage):
    clean = [sample(seed, 0.0) for seed in (1, 2, 3)]
    dirty = [sample(seed, garbage) for seed in (1, 2, 3)]
    for function in (clipped_policy_loss, clipped_value_loss):
        results = []
        for tensors in (clean, dirty):
            first = tensors[0].clone().requires_grad_()
            found = function(first, *tensors[1:], 0.2, MASK)
            results.append((*found, *torch.autograd.grad(found.loss[MASK].mean(), first)))
        for got, want in zip(*reversed(results), strict=True):
            torch.testing.assert_close(got, want)
            assert not got[~MASK].any()


def test_bad_arguments_are_refused():
    one, two = torch.ones(1, 1), torch.ones(1, 2)
    for function in (clipped_policy_loss, clipped_value_loss):
        with pytest.raises(ValueError, match="shape"):
            function(one, one, two, 0.2)
        with pytest.raises(ValueError, match="clip_range"):
            function(one, one, one, 0.0)
    with pytest.raises(ValueError, match="mask"):
        gae(one, one, two, 1.0, 1.0)
    for factors in ((1.1, 0.9), (0.9, -0.1)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            gae(one, one, one, *factors)
