"""Optimization: parameter groups, AdamW, Muon with AdamW as one optimizer, clipping, and learning-rate schedules."""

from lit_llm.optimization.build import build_optimizer
from lit_llm.optimization.clipping import clip_coefficient, clip_gradients, gradient_norm, scale_gradients
from lit_llm.optimization.groups import parameter_groups
from lit_llm.optimization.muon import MuonAdamW
from lit_llm.optimization.schedule import build_schedule, learning_rate_factor

__all__ = [
    "MuonAdamW",
    "build_optimizer",
    "build_schedule",
    "clip_coefficient",
    "clip_gradients",
    "gradient_norm",
    "learning_rate_factor",
    "parameter_groups",
    "scale_gradients",
]
