"""Policy optimization on drawn answers: advantages, the clipped losses, and the price of leaving the reference.

Shapes: b answers of t positions. A mask [b, t] is true at the tokens of the answer; what lies outside it may be
anything, NaN included, and never reaches a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k3"]
"""Estimates of a KL divergence from single samples; see `kl_estimate`."""


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (https://arxiv.org/abs/1506.02438), and returns = advantages + values.

    delta_i = reward_i + gamma * value_{i+1} - value_i and A_i = delta_i + gamma * lam * A_{i+1}, where i + 1 is the
    next token of the mask; past the last one the value is 0, because the episode is over.

    Args:
        rewards: [b, t].
        values: [b, t] value before the token is chosen.
        mask: [b, t].
        gamma: discount, from 0 to 1.
        lam: from 0 (least variance) to 1 (no bias).

    Returns:
        advantages and returns, [b, t] without gradient, 0 outside the mask.

    Raises:
        ValueError: shapes that differ, or a factor outside its range.
    """
    mask = _mask_like(mask, rewards=rewards, values=values)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} is {factor}; it must be from 0 to 1")
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(values.size(0))
    for position in reversed(range(values.size(1))):
        here, value = mask[:, position], values[:, position]
        delta = rewards[:, position] + gamma * next_value - value
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(here, value, next_value)
        advantages[:, position] = torch.where(here, advantage, 0.0)
    return advantages, advantages + values


def kl_estimate(log_ratio: Tensor, kind: KLEstimator) -> Tensor:
    """Estimate of KL(policy || reference) from tokens drawn by the policy (http://joschu.net/blog/kl-approx.html).

    Args:
        log_ratio: log(reference / policy) of the drawn tokens, any shape.
        kind: "k1": -log_ratio; "k3": exp(log_ratio) - 1 - log_ratio, never negative and of less variance.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "k1":
        return -log_ratio
    if kind == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"unknown KL estimator {kind!r}; it is k1 or k3")


def shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """Reward of each token: -coefficient * kl, and at the last token of an answer its score as well.

    Args:
        scores: [b] score of the whole answer.
        kl: [b, t] `kl_estimate` of each token.
        mask: [b, t]; a row without tokens gets no reward.
        coefficient: price of a nat.

    Returns:
        [b, t], 0 outside the mask.

    Raises:
        ValueError: shapes that do not fit.
    """
    mask = _mask_like(mask, kl=kl)
    if scores.shape != kl.shape[:1]:
        raise ValueError(f"scores {list(scores.shape)} must be [b] for kl [b, t] = {list(kl.shape)}")
    positions = torch.arange(kl.size(1), device=kl.device)
    last = torch.where(mask, positions, -1).amax(1, keepdim=True)
    rewards = torch.where(mask, -coefficient * kl, 0.0)
    return rewards + torch.where(positions == last, scores.unsqueeze(1), 0.0)


@torch.no_grad()
def masked_whiten(
    values: Tensor,
    mask: Tensor,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """(values - mean) / sqrt(variance + eps) with the mean and the unbiased variance of the mask, and 0 outside it.

    Args:
        values: any shape.
        mask: the same shape, true (or not 0) where a value counts.
        total: sums a tensor over the ranks whose values are whitened together; as it is, this rank is alone.
        shift_mean: False gives the values their mean back.
        eps: added to the variance.

    Returns:
        The shape and type of `values`, without gradient; sums are of float64. Of fewer than two values the variance is
        0, and of none everything is 0.

    Raises:
        ValueError: shapes that differ.
    """
    mask = _mask_like(mask, values=values)
    kept = torch.where(mask, values, 0.0).double()
    mean, count = total(torch.stack([kept.sum(), mask.sum().double()])).unbind()
    mean = mean / count.clamp(min=1)
    squares = total(torch.where(mask, kept - mean, 0.0).square().sum())
    whitened = (kept - mean) * torch.rsqrt(squares / (count - 1).clamp(min=1) + eps)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0).to(values.dtype)


class ClippedPolicyLoss(NamedTuple):
    """What `clipped_policy_loss` returns; each has the shape of the log-probabilities."""

    loss: Tensor
    clipped: Tensor
    """bool: the clipped branch is the loss, so the token has no gradient."""
    approx_kl: Tensor
    """(log_probs - old_log_probs)^2 / 2 without gradient: second-order estimate of the KL between the two."""


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip_range: float,
    mask: Tensor | None = None,
) -> ClippedPolicyLoss:
    """max(-A ratio, -A clip(ratio, 1 - clip_range, 1 + clip_range)) of each token, ratio = exp(new - old log-prob).

    Proximal policy optimization, https://arxiv.org/abs/1707.06347, equation 7.

    Args:
        log_probs: of the drawn tokens under the policy that is being trained, any shape.
        old_log_probs: the same under the policy that drew them.
        advantages: the same shape.
        clip_range: above 0.
        mask: the same shape or None; outside it everything is 0 (False), gradients included.

    Raises:
        ValueError: shapes that differ, or a clip range that is not above 0.
    """
    mask = _mask_like(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    _check_clip_range(clip_range)
    # Masked before exp: a gradient of 0 times an infinite ratio would be NaN.
    difference = torch.where(mask, log_probs - old_log_probs.detach(), 0.0)
    advantages = torch.where(mask, advantages.detach(), 0.0)
    ratio = difference.exp()
    plain, limited = -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return ClippedPolicyLoss(torch.maximum(plain, limited), limited > plain, difference.detach().square() / 2)


class ClippedValueLoss(NamedTuple):
    """What `clipped_value_loss` returns; each has the shape of the values."""

    loss: Tensor
    clipped: Tensor
    """bool: the clipped branch is the loss."""


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float, mask: Tensor | None = None
) -> ClippedValueLoss:
    """max((v - R)^2, (clip(v, old - clip_range, old + clip_range) - R)^2) / 2 of each token.

    Args:
        values: any shape.
        old_values: the values when the answers were drawn.
        returns: R, the same shape.
        clip_range: above 0.
        mask: the same shape or None; outside it everything is 0 (False), gradients included.

    Raises:
        ValueError: shapes that differ, or a clip range that is not above 0.
    """
    mask = _mask_like(mask, values=values, old_values=old_values, returns=returns)
    _check_clip_range(clip_range)
    values = torch.where(mask, values, 0.0)
    old_values, returns = torch.where(mask, old_values, 0.0).detach(), torch.where(mask, returns, 0.0).detach()
    near = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    plain, limited = (values - returns).square(), (near - returns).square()
    return ClippedValueLoss(torch.maximum(plain, limited) / 2, limited > plain)


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """(reward - mean) / (standard deviation + 1e-4) within each group of answers to one prompt.

    GRPO, https://arxiv.org/abs/2402.03300, section 4.1; the standard deviation is the unbiased one. Answers of equal
    rewards have advantages of exactly 0, whatever the mean of their rewards rounds to.

    Args:
        rewards: [b], the answers of a prompt next to each other.
        group_size: answers to each prompt, at least 2.

    Returns:
        [b].

    Raises:
        ValueError: a group of fewer than 2, or b that is no multiple of it.
    """
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}; a group needs at least 2 answers")
    if rewards.dim() != 1 or rewards.size(0) % group_size:
        raise ValueError(f"rewards {list(rewards.shape)} must be [b] with b a multiple of group_size {group_size}")
    groups = rewards.view(-1, group_size).double()
    # distances from the first one change neither result, and the mean of equal rewards need not be that reward
    groups = groups - groups[:, :1]
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    return advantages.flatten().to(rewards.dtype)


class AdaptiveKL:
    """The price of a nat, adapted so that the distance to the reference stays near a target.

    coefficient *= 1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon (https://arxiv.org/abs/1909.08593,
    section 2.2). More samples than the horizon count as the horizon, so that the coefficient stays above 0.

    Args:
        coefficient: to begin with.
        target: nats; None keeps the coefficient as it is.
        horizon: samples over which it adapts.

    Raises:
        ValueError: a negative coefficient, or a target or horizon that is not above 0.
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: float = 10_000) -> None:
        if not 0 <= coefficient < math.inf:
            raise ValueError(f"coefficient is {coefficient}; it must be at least 0")
        for name, value in (("target", target), ("horizon", horizon)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, num_samples: int) -> float:
        """Adapt to the mean distance `kl` (nats) of `num_samples` samples; returns the new coefficient.

        Raises:
            ValueError: `kl` is not finite, or a negative number of samples.
        """
        if not math.isfinite(kl) or num_samples < 0:
            raise ValueError(f"kl is {kl} over {num_samples} samples; it must be finite, over 0 samples or more")
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * min(num_samples / self.horizon, 1.0)
        return self.coefficient

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs: the coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.coefficient = float(state["coefficient"])


def _mask_like(mask: Tensor | None, **tensors: Tensor) -> Tensor:
    """Return the mask as bool, all true for None; raise ValueError unless all shapes are equal."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    first = next(iter(tensors.values()))
    if mask is not None:
        shapes["mask"] = list(mask.shape)
    if any(shape != list(first.shape) for shape in shapes.values()):
        raise ValueError(f"these must have one shape: {shapes}")
    return torch.ones_like(first, dtype=torch.bool) if mask is None else mask.bool()


def _check_clip_range(clip_range: float) -> None:
    if not clip_range > 0:
        raise ValueError(f"clip_range is {clip_range}; it must be above 0")
