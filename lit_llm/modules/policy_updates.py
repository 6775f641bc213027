"""How PPO and GRPO learn from a round's answers: advantages, the loss of an update, and the curves of both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_llm.config import PPOConfig
from lit_llm.modules.rollout import Experience
from lit_llm.objectives import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantages,
    kl_estimate,
    masked_whiten,
    shaped_rewards,
)

ROUND_MEANS = (
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "objective/response_length",
)
"""Means over the answers of a round."""
UPDATE_MEANS = (
    "policy/approxkl",
    "policy/clipfrac",
    "policy/entropy",
    "policy/ratio",
    "loss/policy",
    "loss/value",
    "value/clipfrac",
)
"""Means over the tokens of a round's updates."""

Sums = dict[str, tuple[Tensor, Tensor | int]]
"""Sums and counts, by name."""


def set_advantages(
    experience: Experience, kl: Tensor, coefficient: float, config: PPOConfig, total: Callable[[Tensor], Tensor]
) -> None:
    """Fill in the advantages of the answers' tokens, and with PPO the returns.

    Args:
        experience: with scores and values.
        kl: [b, t] distance from the reference at each token.
        coefficient: price of a nat, which PPO takes off the reward.
        config: options.
        total: sums a tensor over the ranks.
    """
    mask = experience.mask
    if config.algorithm == "grpo":
        advantages = group_advantages(experience.scores, config.group_size)
        experience.advantages = torch.where(mask, advantages.unsqueeze(1), 0.0)
        return
    rewards = shaped_rewards(experience.scores, kl, mask, coefficient)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, total, shift_mean=False)
    experience.advantages, experience.returns = gae(
        rewards, experience.values, mask, config.discount, config.gae_lambda
    )
    if config.whiten_advantages:
        experience.advantages = masked_whiten(experience.advantages, mask, total)


def update_loss(
    part: Experience,
    log_probs: Tensor,
    entropy: Tensor,
    values: Tensor | None,
    config: PPOConfig,
) -> tuple[Tensor, Sums]:
    """Compute the loss of an update on some answers, summed over their tokens, and the sums of `UPDATE_MEANS`.

    Args:
        part: the answers.
        log_probs: [b, t] under the policy that is trained.
        entropy: [b, t].
        values: [b, t], or None where none are learned.
        config: options.
    """
    mask = part.mask
    count = mask.sum()
    policy = clipped_policy_loss(log_probs, part.log_probs, part.advantages, config.clip_range, mask)
    loss = policy.loss.sum()
    ratio = torch.where(mask, log_probs.detach() - part.log_probs, 0.0).exp()
    sums = {
        "loss/policy": loss,
        "policy/approxkl": policy.approx_kl.sum(),
        "policy/clipfrac": policy.clipped.sum(),
        "policy/entropy": entropy.sum(),
        "policy/ratio": torch.where(mask, ratio, 0.0).sum(),
    }
    if values is not None:
        value = clipped_value_loss(values, part.values, part.returns, config.value_clip_range, mask)
        sums |= {"loss/value": value.loss.sum(), "value/clipfrac": value.clipped.sum()}
        loss = loss + config.value_coefficient * value.loss.sum()
    if config.algorithm == "grpo":
        kl = kl_estimate(part.reference_log_probs - log_probs, "k3")
        loss = loss + config.kl_coefficient * torch.where(mask, kl, 0.0).sum()
    return loss, {name: (total, count) for name, total in sums.items()}


def round_sums(experience: Experience, kl: Tensor, coefficient: float, rewards: dict[str, Tensor]) -> Sums:
    """Add up the quantities of `ROUND_MEANS`, and each reward, over the answers of this rank.

    Args:
        experience: the answers.
        kl: [b, t] distance from the reference at each token.
        coefficient: price of a nat.
        rewards: [b] each.
    """
    mask = experience.mask
    distance = torch.where(mask, kl, 0.0).sum(1)
    cost = -coefficient * distance
    values = {
        "objective/kl": distance,
        "objective/entropy": -experience.log_probs.sum(1),
        "objective/non_score_reward": cost,
        "objective/rlhf_reward": experience.scores + cost,
        "objective/scores": experience.scores,
        "objective/response_length": mask.sum(1),
        **{f"rewards/{name}": value for name, value in rewards.items()},
    }
    return {name: (value.sum(), len(experience)) for name, value in values.items()}
