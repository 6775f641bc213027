"""Defaults that depend on what is trained: the learning rate by stage and size of the model, and the warm-up by stage.

Small models want higher rates than large ones, and fine-tuning lower ones than pretraining; a rate that is off by ten
costs more than any other default. Between the anchors of `LEARNING_RATES` the rate is a straight line over logarithms,
and beyond the first and the last it stays.

Where the anchors are from:

- pretrain: Pythia (Biderman et al. 2023, table 1: 1e-3 at 70M), GPT-3 (Brown et al. 2020, table 2.1: 6e-4 at 125M),
  OLMo 1B (Groeneveld et al. 2024: 4e-4), Llama (Touvron et al. 2023, table 2: 3e-4 at 7B, 1.5e-4 at 65B).
- sft: LoRA Without Regret (Schulman et al. 2025: 5e-5 for all weights of Llama 3.2 1B, 3e-5 at 8B), Alpaca (2e-5 at
  7B), and SmolLM2's recipe (alignment-handbook: 1e-3 at 360M) divided by the square root of its batch of 128 over 8.
- reward: Llama 2 (Touvron et al. 2023, section 3.2.2: 1e-5 at 7B) and Tulu 3's 3e-6 at 8B.
- dpo: SmolLM2 (1e-6 at 1.7B), Zephyr (Tunstall et al. 2023) and Tulu 3 (both 5e-7 at 7B and 8B).
- ppo: TRL's default of 3e-6 for models of some billions.
- below some 10M parameters: this package's own sweeps on Shakespeare's plays and on files of 1,000 rows.
- LoRA: about ten times the rate of all weights (LoRA Without Regret); 2e-4 at 7B is QLoRA's (Dettmers et al. 2023).
- Muon: 0.02 for the hidden matrices and 4e-3 for the rest in pretraining (Jordan et al. 2024, and nanochat's head),
  and the same ratio of five in the later stages.
- warm-up: 2% of a pretraining run (Pythia has 1%, PaLM 4%), and 10% of a later stage (SmolLM2, Zephyr); PPO
  has none unless its schedule.warmup_steps is null.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

Stage = Literal["pretrain", "sft", "reward", "dpo", "ppo"]

LEARNING_RATES: dict[Stage, tuple[tuple[float, float], ...]] = {
    "pretrain": ((1e6, 3e-3), (10e6, 2e-3), (70e6, 1e-3), (125e6, 6e-4), (1.2e9, 4e-4), (7e9, 3e-4), (65e9, 1.5e-4)),
    "sft": ((3e6, 2e-3), (20e6, 1e-3), (360e6, 2e-4), (1.2e9, 6e-5), (8e9, 2e-5)),
    "reward": ((3e6, 2e-3), (8e9, 5e-6)),
    "dpo": ((3e6, 5e-4), (1.7e9, 1e-6), (8e9, 5e-7)),
    "ppo": ((10e6, 1e-4), (1e9, 3e-6), (8e9, 1e-6)),
}
"""Anchors of each stage: parameters of the model, and the peak rate of AdamW on all of its weights."""

WARMUP_SHARES: dict[Stage, float] = {"pretrain": 0.02, "sft": 0.1, "reward": 0.1, "dpo": 0.1, "ppo": 0.1}
"""Share of a run's steps in which the rate rises."""

LORA_FACTOR = 10.0
"""How much higher the rate of an adapter is than that of all weights."""

LORA_MOST = 1e-2
"""The highest rate of an adapter: with 3e-2 one on 2.9M parameters forgot the text that it began with."""

MUON_FACTOR = 5.0
"""How much higher Muon's rate is than that of the AdamW beside it, in the stages after pretraining."""

PRETRAINING_WITH_MUON = 4e-3
"""Rate of the AdamW beside Muon in pretraining: of embeddings, head and norms."""

MUON_IN_PRETRAINING = 0.02
"""Rate of Muon in pretraining, which its shape factor keeps right for any width."""


def default_learning_rate(stage: Stage, parameters: int, *, lora: bool = False, muon: bool = False) -> float:
    """The peak rate of AdamW, in two digits.

    Args:
        stage: what the model is trained for.
        parameters: all that the model has, those that an adapter leaves alone included.
        lora: whether an adapter is trained instead of all weights.
        muon: whether Muon trains the hidden matrices.
    """
    if muon and stage == "pretrain":
        return PRETRAINING_WITH_MUON
    rate = _between(LEARNING_RATES[stage], parameters)
    if lora:
        rate = min(LORA_FACTOR * rate, LORA_MOST)
    return float(f"{rate:.1e}")


def default_muon_learning_rate(stage: Stage, learning_rate: float) -> float:
    """The peak rate of Muon beside an AdamW of `learning_rate`."""
    return MUON_IN_PRETRAINING if stage == "pretrain" else float(f"{MUON_FACTOR * learning_rate:.1e}")


def default_warmup_steps(stage: Stage, max_steps: int) -> int:
    """Steps of the warm-up of a run of `max_steps`: its share, at least 1."""
    return max(1, round(WARMUP_SHARES[stage] * max_steps))


def _between(anchors: tuple[tuple[float, float], ...], size: float) -> float:
    if size <= anchors[0][0]:
        return anchors[0][1]
    for (low, before), (high, after) in pairwise(anchors):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return before * (after / before) ** share
    return anchors[-1][1]
