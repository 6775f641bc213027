"""LightningModules. They wire and log; the mathematics is in objectives."""

from lit_llm.modules.base import LanguageModule
from lit_llm.modules.metrics import TokenStatistics
from lit_llm.modules.pretraining import PretrainingModule

__all__ = ["LanguageModule", "PretrainingModule", "TokenStatistics"]
