"""Configuration: dataclasses that import neither torch nor lightning."""

from lit_llm.config.chat import ChatConfig
from lit_llm.config.classifier import ClassifierConfig
from lit_llm.config.compare import CompareConfig
from lit_llm.config.contamination import ContaminationConfig
from lit_llm.config.corpus import CorpusConfig, PrepareConfig, TokenizerTrainingConfig
from lit_llm.config.data import BatchConfig, DataConfig
from lit_llm.config.errors import NonFiniteStep, UserError
from lit_llm.config.evaluation import EvaluateConfig
from lit_llm.config.export import ExportConfig
from lit_llm.config.fetch_model import FetchModelConfig
from lit_llm.config.find_rate import FindRateConfig
from lit_llm.config.generation import BeginToken, GenerateConfig, LoadConfig, SamplingConfig
from lit_llm.config.inspect_data import InspectConfig
from lit_llm.config.judge import EndpointConfig, JudgeConfig, JudgeSourceConfig
from lit_llm.config.lora import LoraConfig
from lit_llm.config.mix import MixConfig
from lit_llm.config.model import PROJECTIONS, ModelConfig, RopeScaling
from lit_llm.config.optimizer import OptimizerConfig, ScheduleConfig
from lit_llm.config.plan import PlanConfig
from lit_llm.config.post_training import DPOConfig, PostTrainingConfig, PPOConfig, RewardConfig, SFTConfig
from lit_llm.config.presets import PRESETS, preset, preset_fields, preset_run, preset_training
from lit_llm.config.quickstart import STAGES, QuickstartConfig
from lit_llm.config.quickstart_chat import QuickstartChatConfig
from lit_llm.config.rates import default_learning_rate, default_muon_learning_rate, default_warmup_steps
from lit_llm.config.recipe import ClusterConfig, RecipeConfig, SourceConfig
from lit_llm.config.remote import RemoteConfig
from lit_llm.config.rows import ConversationDataConfig, PreferenceDataConfig, PromptDataConfig, RowsConfig
from lit_llm.config.run import CONFIG_KEY, PretrainConfig, RunConfig, SampleConfig
from lit_llm.config.safety import CanariesConfig, SafetyConfig
from lit_llm.config.sandbox import SandboxConfig
from lit_llm.config.scaling import ScalingConfig
from lit_llm.config.seeds import derived_seed, sample_seed
from lit_llm.config.serialization import check_finite, flatten, from_plain, to_plain
from lit_llm.config.serving import ServeConfig
from lit_llm.config.tokenizer_evaluation import TokenizerEvaluationConfig
from lit_llm.config.trainer import TrainerConfig

__all__ = [
    "CONFIG_KEY",
    "PRESETS",
    "PROJECTIONS",
    "STAGES",
    "BatchConfig",
    "BeginToken",
    "CanariesConfig",
    "ChatConfig",
    "ClassifierConfig",
    "ClusterConfig",
    "CompareConfig",
    "ContaminationConfig",
    "ConversationDataConfig",
    "CorpusConfig",
    "DPOConfig",
    "DataConfig",
    "EndpointConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FetchModelConfig",
    "FindRateConfig",
    "GenerateConfig",
    "InspectConfig",
    "JudgeConfig",
    "JudgeSourceConfig",
    "LoadConfig",
    "LoraConfig",
    "MixConfig",
    "ModelConfig",
    "NonFiniteStep",
    "OptimizerConfig",
    "PPOConfig",
    "PlanConfig",
    "PostTrainingConfig",
    "PreferenceDataConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PromptDataConfig",
    "QuickstartChatConfig",
    "QuickstartConfig",
    "RecipeConfig",
    "RemoteConfig",
    "RewardConfig",
    "RopeScaling",
    "RowsConfig",
    "RunConfig",
    "SFTConfig",
    "SafetyConfig",
    "SampleConfig",
    "SamplingConfig",
    "SandboxConfig",
    "ScalingConfig",
    "ScheduleConfig",
    "ServeConfig",
    "SourceConfig",
    "TokenizerEvaluationConfig",
    "TokenizerTrainingConfig",
    "TrainerConfig",
    "UserError",
    "check_finite",
    "default_learning_rate",
    "default_muon_learning_rate",
    "default_warmup_steps",
    "derived_seed",
    "flatten",
    "from_plain",
    "preset",
    "preset_fields",
    "preset_run",
    "preset_training",
    "sample_seed",
    "to_plain",
]
