"""Objectives: pure functions on tensors. They import nothing of ours."""

from lit_llm.objectives.log_probs import linear_log_probs, sequence_log_probs
from lit_llm.objectives.policy import (
    AdaptiveKL,
    ClippedPolicyLoss,
    ClippedValueLoss,
    KLEstimator,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantages,
    kl_estimate,
    masked_whiten,
    shaped_rewards,
)
from lit_llm.objectives.preference import (
    READS_SIMPO_GAMMA,
    REFERENCE_FREE,
    SMOOTHED,
    PreferenceKind,
    PreferenceLoss,
    tail_weights,
)
from lit_llm.objectives.reward import (
    Calibration,
    accuracy_interval,
    bradley_terry,
    calibration,
    correlation,
    ranking_accuracy,
)
from lit_llm.objectives.token_loss import IGNORE_INDEX, cross_entropy_sum, linear_correct, linear_cross_entropy

__all__ = [
    "IGNORE_INDEX",
    "READS_SIMPO_GAMMA",
    "REFERENCE_FREE",
    "SMOOTHED",
    "AdaptiveKL",
    "Calibration",
    "ClippedPolicyLoss",
    "ClippedValueLoss",
    "KLEstimator",
    "PreferenceKind",
    "PreferenceLoss",
    "accuracy_interval",
    "bradley_terry",
    "calibration",
    "clipped_policy_loss",
    "clipped_value_loss",
    "correlation",
    "cross_entropy_sum",
    "gae",
    "group_advantages",
    "kl_estimate",
    "linear_correct",
    "linear_cross_entropy",
    "linear_log_probs",
    "masked_whiten",
    "ranking_accuracy",
    "sequence_log_probs",
    "shaped_rewards",
    "tail_weights",
]
