"""The LightningModules of the stages. They only connect model, data and curves; the mathematics is in objectives."""

from lit_llm.modules.base import LanguageModule
from lit_llm.modules.dpo import DPOModule
from lit_llm.modules.metrics import TokenStatistics
from lit_llm.modules.ppo import PPOModule
from lit_llm.modules.pretraining import PretrainingModule
from lit_llm.modules.reward import RewardModule
from lit_llm.modules.sft import SFTModule

__all__ = [
    "DPOModule",
    "LanguageModule",
    "PPOModule",
    "PretrainingModule",
    "RewardModule",
    "SFTModule",
    "TokenStatistics",
]
