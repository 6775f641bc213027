"""Configuration of the stages after pretraining: SFT, reward model, DPO, PPO."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lit_llm.config.errors import UserError
from lit_llm.config.generation import SamplingConfig
from lit_llm.config.lora import LoraConfig
from lit_llm.config.notices import tell_once
from lit_llm.config.optimizer import OptimizerConfig, ScheduleConfig
from lit_llm.config.rates import Stage
from lit_llm.config.rows import ConversationDataConfig, PreferenceDataConfig, PromptDataConfig, RowsConfig
from lit_llm.config.run import RunConfig, SampleConfig, check_loss_chunk, loss_chunk_on
from lit_llm.config.trainer import TrainerConfig

SMOOTHED_LOSSES = ("sigmoid", "robust", "exo")
"""DPO losses that read label_smoothing."""
REFERENCE_FREE_LOSSES = ("simpo",)
"""DPO losses that need no reference model."""


def default_beta(loss: str) -> float:
    """The beta that a kind of DPO loss has by default."""
    return 2.0 if loss == "simpo" else 0.1


def _samples() -> SampleConfig:
    return SampleConfig(prompts=[], sampling=SamplingConfig(max_new_tokens=128, temperature=0.7))


@dataclass
class PostTrainingConfig(RunConfig):
    """What the stages after pretraining have in common. `init_from` is required; the model is what it holds."""

    data: RowsConfig = field(default_factory=RowsConfig)
    """The data."""
    epochs: float | None = None
    """Passes over the training rows; sets trainer.max_steps. Null: trainer.max_steps as it is given."""
    dropout: float = 0.0
    """Dropout of the model while it is trained, whatever init_from was trained with; attention weights have it, too."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Train low-rank additions instead of all weights."""
    loss_chunk_tokens: int | Literal["auto"] | None = "auto"
    """Tokens whose logits exist at a time in the loss; auto: 512 on the CPU and 2048 on a GPU; null: all at once."""
    sample_prompts: int = 3
    """Prompts of the validation rows that are answered at each validation, besides samples.prompts. Those that leave no
    room for an answer are cut at their left."""
    samples: SampleConfig = field(default_factory=_samples)
    """Texts written along the way; prompts are turns of a user."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    """The optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.epochs <= 0:
            raise UserError(f"epochs is {self.epochs}; it must be above 0, or null for trainer.max_steps")
        if self.epochs is not None and self.trainer.max_tokens is not None:
            raise UserError("epochs and trainer.max_tokens both say how long the run is; give one of the two")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is {self.dropout}; it must be from 0 to below 1")
        check_loss_chunk(self.loss_chunk_tokens)
        if self.sample_prompts < 0:
            raise UserError(f"sample_prompts is {self.sample_prompts}; it must be at least 0")

    def loss_chunk(self, device_type: str) -> int | None:
        """Tokens whose logits exist at a time on a type of device; None: all."""
        return loss_chunk_on(self.loss_chunk_tokens, device_type)

    def set_steps(self, samples: int) -> None:
        """Put the steps of `epochs`, where they are given, into trainer.max_steps.

        Args:
            samples: rows of a batch that one pass over the training rows takes.

        Raises:
            UserError: the warm-up is longer than that.
        """
        if self.epochs is not None:
            steps = max(1, math.ceil(self.epochs * samples / self.data.batch_size))
            given, self.trainer.max_steps = self.trainer.max_steps, steps
            super().check_warmup()
            if given not in (TrainerConfig().max_steps, steps):
                tell_once(f"epochs {self.epochs:g} makes {steps} steps; trainer.max_steps {given} is not used")

    def check_warmup(self) -> None:
        """See `RunConfig`; with `epochs` the length is not known before the data is."""
        if self.epochs is None:
            super().check_warmup()

    @property
    def trains_adapter(self) -> bool:
        """Whether low-rank additions are trained instead of all weights."""
        return self.lora.active

    def _check_strategy(self) -> None:
        super()._check_strategy()
        self.lora.check_trainer(self.trainer)
        if self.trainer.context_parallel_size > 1 and not isinstance(self, SFTConfig):
            raise UserError("trainer.context_parallel_size above 1 is for pretrain and sft; leave it out")


@dataclass
class SFTConfig(PostTrainingConfig):
    """Fine-tune a model on conversations."""

    stage: ClassVar[Stage] = "sft"
    run_name: str = "sft"
    """Folder of the run inside output_root."""
    data: ConversationDataConfig = field(default_factory=ConversationDataConfig)
    """The conversations."""
    neftune_alpha: float = 0.0
    """Uniform noise on the embeddings in training, alpha / sqrt(tokens of the conversation x width) at most (NEFTune);
    0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neftune_alpha < 0:
            raise UserError(f"neftune_alpha is {self.neftune_alpha}; it must be at least 0")


@dataclass
class RewardConfig(PostTrainingConfig):
    """Train a reward model on preferences: a scalar head in place of the vocabulary's."""

    stage: ClassVar[Stage] = "reward"
    run_name: str = "reward"
    """Folder of the run inside output_root."""
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    """The preferences."""
    centring: float = 0.01
    """Weight of the squared sum of a pair's two rewards, which keeps rewards around 0."""
    use_margins: bool = True
    """Ask for the `margin` of a row, where it has one, between the two rewards in training."""
    score_margin_scale: float | None = None
    """Where a row has no margin, ask for so many times score_chosen - score_rejected; null: scores are not read."""
    sample_prompts: int = 0
    """A reward model writes no text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainer.battery is not None:
            raise UserError(
                "trainer.battery cannot be asked of a reward model, which gives scores, not text; leave it out"
            )
        if self.centring < 0:
            raise UserError(f"centring is {self.centring}; it must be at least 0")
        if self.score_margin_scale is not None and not 0.0 < self.score_margin_scale < math.inf:
            raise UserError(f"score_margin_scale is {self.score_margin_scale}; it must be above 0, or null")
        if self.score_margin_scale is not None and not self.use_margins:
            raise UserError("score_margin_scale has no effect without use_margins; leave one of them out")
        if self.sample_prompts or self.samples.prompts:
            raise UserError("a reward model writes no text; leave sample_prompts at 0 and samples.prompts empty")
        if self.loss_chunk_tokens != "auto":
            raise UserError("loss_chunk_tokens has no effect on a reward model, which has no logits; leave it out")


@dataclass
class DPOConfig(PostTrainingConfig):
    """Align a model with preferences directly (DPO and its family)."""

    stage: ClassVar[Stage] = "dpo"
    run_name: str = "dpo"
    """Folder of the run inside output_root."""
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    """The preferences."""
    loss: Literal[
        "sigmoid",
        "robust",
        "hinge",
        "ipo",
        "sigmoid_norm",
        "exo",
        "nca",
        "bco",
        "sppo",
        "apo_zero",
        "apo_down",
        "simpo",
    ] = "sigmoid"
    """The loss; "sigmoid" is DPO, and cDPO with label_smoothing."""
    beta: float | None = None
    """How strongly the policy is held to the reference; for simpo, the scale of its rewards. Null: 2.0 for simpo, as in
    its paper, and 0.1 for the others."""
    label_smoothing: float = 0.0
    """Share of the labels that is taken to be wrong (sigmoid, robust, exo)."""
    simpo_gamma: float = 0.5
    """Margin between the two answers that simpo asks for."""
    sft_weight: float = 0.0
    """Weight of the cross-entropy of the chosen answer, added to the loss (RPO)."""
    ld_alpha: float = 1.0
    """Weight of the log-probability of what the longer answer has beyond the length of the shorter (LD-DPO)."""
    reference: Literal["precomputed", "live", "base"] = "precomputed"
    """The reference's log-probabilities: computed once and kept under a digest; from a second model in each step; or
    from the policy without its adapter (needs lora)."""
    reference_model: str | None = None
    """Model folder of the reference; null: init_from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is None:
            self.beta = default_beta(self.loss)
        if self.beta <= 0:
            raise UserError(f"beta is {self.beta}; it must be above 0")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must be from 0 to below 0.5")
        if self.loss == "exo" and self.label_smoothing == 0.0:
            raise UserError("loss exo needs label_smoothing above 0 (its paper uses 1e-3)")
        if self.sft_weight < 0:
            raise UserError(f"sft_weight is {self.sft_weight}; it must be at least 0")
        if not 0.0 <= self.ld_alpha <= 1.0:
            raise UserError(f"ld_alpha is {self.ld_alpha}; it must be from 0 to 1")
        self._check_effect()
        if self.reference == "base" and not self.lora.active:
            raise UserError("reference base is the policy without its adapter: give lora.rank, or use precomputed")
        if self.reference == "base" and self.reference_model is not None:
            raise UserError("reference base is the policy without its adapter; leave reference_model out")
        if self.lora.adapter is not None and self.reference_model is None and self.loss not in REFERENCE_FREE_LOSSES:
            raise UserError(
                "the reference would be init_from without lora.adapter, which the policy starts with; give "
                "reference_model a folder in which the adapter is merged"
            )

    def _check_effect(self) -> None:
        """Refuse options that the chosen loss does not read."""
        if self.label_smoothing and self.loss not in SMOOTHED_LOSSES:
            raise UserError(f"label_smoothing has no effect on loss {self.loss}; it is read by {SMOOTHED_LOSSES}")
        if self.simpo_gamma != 0.5 and self.loss != "simpo":
            raise UserError(f"simpo_gamma has no effect on loss {self.loss}; it is read by simpo")
        if self.loss in REFERENCE_FREE_LOSSES and (self.reference != "precomputed" or self.reference_model is not None):
            raise UserError(f"loss {self.loss} has no reference; leave reference and reference_model out")


@dataclass
class PPOConfig(PostTrainingConfig):
    """Align a model with a reward by reinforcement learning: PPO, or GRPO."""

    stage: ClassVar[Stage] = "ppo"
    run_name: str = "ppo"
    """Folder of the run inside output_root."""
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    """The prompts; sequence_length holds a prompt and its answer, and too_long is about prompts."""
    algorithm: Literal["ppo", "grpo"] = "ppo"
    """"ppo" learns values for its advantages; "grpo" compares the answers to the same prompt."""
    rewards: list[str] = field(default_factory=list)
    """Folders of reward models, and functions written package.module:function, which are called by name as
    function(prompts=[TEXT, ...], completions=[TEXT, ...], FIELD=[VALUE, ...], ...) and return [NUMBER, ...], an entry
    for each answer. There is a FIELD for each field of the prompts' rows; **fields in the function takes those that it
    does not want. The numbers are finite, higher for better. Modules are looked for in the working directory, too."""
    reward_weights: list[float] | None = None
    """Weight of each of `rewards` in their sum; null: 1 each."""
    max_new_tokens: int = 128
    """Most tokens of an answer."""
    temperature: float = 0.7
    """Divides the logits where answers are drawn, and where they are scored."""
    group_size: int = 1
    """Answers to each prompt; GRPO needs at least 2."""
    update_epochs: int = 4
    """Passes over the answers of a step."""
    minibatches: int = 1
    """Updates in each pass."""
    update_micro_batch_size: int | None = None
    """Answers that one device scores and learns from at once; the rest of an update is accumulated. Null: all."""
    learns_values_by: Literal["critic", "head"] = "critic"
    """"critic": a second model; "head": a scalar head on the policy."""
    critic_from: str | None = None
    """Folder that the critic starts from (reward or language model); null: the first reward model, else init_from."""
    reference_model: str | None = None
    """Model folder of the reference; null: init_from."""
    kl_coefficient: float = 0.05
    """Price of each nat that the policy is away from the reference."""
    kl_estimator: Literal["k1", "k3"] | None = None
    """Estimate of that distance from the drawn tokens: the log-ratio ("k1"), or exp(r) - 1 - r ("k3"), which is never
    negative. Null: k1 for ppo, where the distance is part of the reward, and k3 for grpo, where it is part of the
    loss."""
    kl_target: float | None = None
    """Adapt kl_coefficient so that the distance of an answer stays near this; null keeps it fixed."""
    kl_horizon: int = 10000
    """Answers over which kl_coefficient adapts."""
    discount: float = 1.0
    """Gamma of the advantages."""
    gae_lambda: float = 0.95
    """Lambda of the advantages."""
    clip_range: float = 0.2
    """How far a token's probability may move in one step before its gradient is cut."""
    value_clip_range: float = 0.2
    """How far a value may move in one step."""
    value_coefficient: float = 0.1
    """Weight of the value loss."""
    whiten_rewards: bool = False
    """Divide the rewards of a step by their standard deviation."""
    whiten_advantages: bool = True
    """Give the advantages of a step mean 0 and standard deviation 1."""
    missing_eos_penalty: float | None = None
    """Taken off the score of an answer that was cut off; null: none."""
    rollout_batch_size: int = 64
    """Answers written at once."""
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(name="linear", warmup_steps=0))
    """The learning rate over time, by step; a step is one round of answers with all its updates."""
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(log_every_n_steps=1))
    """The Lightning Trainer; each of the long steps has a point in the curves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "max_new_tokens",
            "group_size",
            "update_epochs",
            "minibatches",
            "kl_horizon",
            "rollout_batch_size",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("temperature", "clip_range", "value_clip_range"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("kl_coefficient", "value_coefficient"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("discount", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.kl_target is not None and self.kl_target <= 0:
            raise UserError(f"kl_target is {self.kl_target}; it must be above 0, or null for a fixed kl_coefficient")
        if self.data.sequence_length is not None:
            self.check_room()
        if self.reward_weights is not None and len(self.reward_weights) != len(self.rewards):
            raise UserError(f"reward_weights has {len(self.reward_weights)} numbers for {len(self.rewards)} rewards")
        if self.update_micro_batch_size is not None and self.update_micro_batch_size < 1:
            raise UserError(
                f"update_micro_batch_size is {self.update_micro_batch_size}; it must be at least 1, or null"
            )
        if self.data.micro_batch_size is not None:
            raise UserError(
                "data.micro_batch_size has no effect: the prompts of a step are answered together; "
                "update_micro_batch_size limits the answers that are learned from at once"
            )
        if self.lora.adapter is not None and self.reference_model is None:
            raise UserError(
                "the reference would be init_from without lora.adapter, which the policy starts with; give "
                "reference_model a folder in which the adapter is merged"
            )
        self._check_algorithm()

    def check_room(self) -> None:
        """Refuse answers that leave no room for a prompt; called again where the model has brought the length.

        Raises:
            UserError: they do not.
        """
        if self.max_new_tokens >= self.data.length:
            raise UserError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for a prompt in data.sequence_length "
                f"{self.data.length}; lower it, or raise data.sequence_length"
            )

    def _check_algorithm(self) -> None:
        """Refuse options that the algorithm would ignore."""
        if self.kl_horizon != 10000 and self.kl_target is None:
            raise UserError("kl_horizon has no effect without kl_target")
        if self.kl_target is not None and self.kl_coefficient == 0.0:
            raise UserError(
                "kl_target has no effect on kl_coefficient 0, which is adapted by factors; give kl_coefficient a start "
                "above 0, or leave kl_target out"
            )
        if self.learns_values_by == "head" and self.critic_from is not None:
            raise UserError("critic_from has no effect where learns_values_by is head; use critic")
        if self.algorithm == "ppo":
            return
        if self.kl_estimator == "k1":
            raise UserError("kl_estimator k1 has no gradient on average, and so no effect in grpo's loss; use k3")
        if self.group_size < 2:
            raise UserError(f"grpo compares the answers to one prompt; group_size {self.group_size} must be at least 2")
        defaults = {name: kind.default for name, kind in self.__dataclass_fields__.items()}
        names = ("learns_values_by", "critic_from", "discount", "gae_lambda", "value_clip_range", "value_coefficient")
        for name in (*names, "whiten_rewards", "whiten_advantages", "kl_target"):
            if getattr(self, name) != defaults[name]:
                raise UserError(f"{name} has no effect on grpo, which learns no values; leave it out or use ppo")

    def _check_strategy(self) -> None:
        super()._check_strategy()
        if self.trainer.strategy in ("fsdp1", "deepspeed"):
            raise UserError(f"PPO makes several updates in a step, which {self.trainer.strategy} cannot; use fsdp")
        if self.trainer.max_tokens is not None:
            raise UserError(
                "trainer.max_tokens cannot be turned into steps before answers are written; give trainer.max_steps, "
                "epochs or trainer.max_time"
            )
        if self.trainer.spike_action == "skip":
            raise UserError("trainer.spike_action skip is about a single update; PPO makes several, use log or off")
