"""Objectives: pure functions on tensors. They import nothing of ours."""

from lit_llm.objectives.token_loss import IGNORE_INDEX, cross_entropy_sum, linear_cross_entropy

__all__ = ["IGNORE_INDEX", "cross_entropy_sum", "linear_cross_entropy"]
