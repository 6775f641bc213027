"""Configuration of a whole run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from lit_llm.config.bounds import check_seed
from lit_llm.config.data import BatchConfig, DataConfig
from lit_llm.config.errors import UserError
from lit_llm.config.files import from_home
from lit_llm.config.generation import SamplingConfig
from lit_llm.config.model import ModelConfig
from lit_llm.config.optimizer import OptimizerConfig, ScheduleConfig
from lit_llm.config.rates import Stage, default_warmup_steps
from lit_llm.config.serialization import check_finite
from lit_llm.config.trainer import TrainerConfig

CONFIG_KEY = "lit_llm_config"
"""What a checkpoint holds its run's configuration under, as a plain dict."""


@dataclass
class SampleConfig:
    """Texts written at each validation, for TensorBoard and the report."""

    prompts: list[str] = field(default_factory=lambda: ["", "", ""])
    """Texts to go on from; an empty one starts at the end-of-text token. An empty list writes no samples."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=100))
    """How tokens are chosen."""


@dataclass
class RunConfig:
    """What every training stage has in common."""

    stage: ClassVar[Stage] = "pretrain"
    """What the defaults of rates and warm-up go by."""
    run_name: str = "run"
    """Folder of the run inside output_root."""
    output_root: str = "checkpoints"
    """Folder that runs land in."""
    seed: int = 1337
    """Seed of the weights, the order of the data and dropout."""
    ckpt_path: str | None = None
    """Resume: "last" for the newest whole checkpoint of this run, or a path to one. "last_or_begin", for scripts that
    start a run again, begins where there is none yet."""
    resume_changed: bool = False
    """Go on although settings that change what is learned (batch size, optimizer, schedule, precision, objective) are
    not those that the checkpoint was made with. Each is named; the earlier configuration is kept as config.1.yaml and
    so on. A mix holds from there on, and what has been read stays as it was. Another model, lora, content of the data
    or seed is refused in any case: a new run starts from this one's model with init_from."""
    overwrite: bool = False
    """Delete what an earlier run of this name left, and start again."""
    replay: str | None = None
    """Do not train: compute the step that a replay file (replay/step_*.json of a run) names again, and report. Of the
    other options only ckpt_path, data.paths and trainer.accelerator may differ from the recorded run's."""
    init_from: str | None = None
    """Model folder or GGUF file whose weights the run starts from; its shape replaces the model options."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The decoder."""
    data: BatchConfig = field(default_factory=BatchConfig)
    """The data."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over time."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The Lightning Trainer."""
    samples: SampleConfig = field(default_factory=SampleConfig)
    """Texts written along the way."""

    def __post_init__(self) -> None:
        self.output_root = from_home(self.output_root)
        if not self.run_name or Path(self.run_name).is_absolute() or ".." in Path(self.run_name).parts:
            raise UserError(f"run_name is {self.run_name!r}; it must name a folder inside output_root")
        check_seed(self.seed)
        if self.ckpt_path is not None and self.overwrite:
            raise UserError("ckpt_path resumes a run and overwrite deletes it; give one of the two")
        if self.resume_changed and (self.ckpt_path is None or self.replay is not None):
            raise UserError("resume_changed has no effect on a run that is not resumed; give ckpt_path, too")
        check_finite(self)
        self._check_strategy()
        if self.trainer.max_tokens is None:  # else the length is not known before the data is
            self.check_warmup()

    def check_warmup(self) -> None:
        """Refuse a warm-up that the run does not reach the end of.

        Raises:
            UserError: it is longer than the run.
        """
        if (self.schedule.warmup_steps or 0) > self.trainer.max_steps:
            raise UserError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is more than "
                f"trainer.max_steps {self.trainer.max_steps}"
            )

    def set_steps_of_tokens(self, tokens_per_row: float) -> None:
        """Put the steps of `trainer.max_tokens`, where it is given, into trainer.max_steps; one at least.

        Args:
            tokens_per_row: tokens that the model reads in a row of a batch, on average.

        Raises:
            UserError: the warm-up is longer than that.
        """
        if self.trainer.max_tokens is not None:
            self.trainer.max_steps = self.steps_of_tokens(tokens_per_row)
            self.check_warmup()

    def steps_of_tokens(self, tokens_per_row: float) -> int:
        """Compute the steps of `trainer.max_tokens` as `set_steps_of_tokens` does; trainer.max_steps if null."""
        if self.trainer.max_tokens is None:
            return self.trainer.max_steps
        return max(1, int(self.trainer.max_tokens / (tokens_per_row * self.data.batch_size)))

    @property
    def trains_adapter(self) -> bool:
        """Whether low-rank additions are trained instead of all weights."""
        return False

    def fill_rates(self, parameters: int) -> list[str]:
        """Give rates and warm-up that are null their defaults, once the model and trainer.max_steps are known.

        Args:
            parameters: all that the model has.

        Returns:
            A line about each choice: what it is, by what, and the option that sets another.
        """
        lines = []
        given, steps = self.optimizer, self.trainer.max_steps
        self.optimizer = given.with_rates(self.stage, parameters, lora=self.trains_adapter)
        trained = f"{_in_words(parameters)} parameters with {'lora' if self.trains_adapter else given.name}"
        for name in ("learning_rate", "muon_learning_rate"):
            value = getattr(self.optimizer, name)
            if getattr(given, name) is None and value is not None:
                label = name.replace("_", " ").replace("muon", "Muon's")
                lines.append(f"{label} {value:g}: {self.stage} of {trained}; --optimizer.{name} sets another")
        if self.schedule.warmup_steps is None:
            chosen = default_warmup_steps(self.stage, steps)
            self.schedule = replace(self.schedule, warmup_steps=chosen)
            lines.append(f"warm-up {chosen} of {steps:,} steps; --schedule.warmup_steps sets another, 0 for none")
        return lines

    def settle_precision(self, has_bfloat16: bool) -> None:
        """Replace trainer.precision auto, once it is known whether the device has units for bfloat16."""
        if self.trainer.precision != "auto":
            return
        self.trainer = replace(self.trainer, precision="bf16-mixed" if has_bfloat16 else "32-true")
        if has_bfloat16 and self.optimizer.muon_ns_dtype == "auto":
            self.optimizer = replace(self.optimizer, muon_ns_dtype="bfloat16")

    def _check_strategy(self) -> None:
        """Refuse what a strategy cannot do."""
        strategy = self.trainer.strategy
        if strategy in ("fsdp1", "deepspeed") and self.optimizer.name == "muon":
            raise UserError(
                f"optimizer.name muon needs whole matrices, which strategy {strategy} cannot give; use fsdp or adamw"
            )
        whole = strategy == "deepspeed" and self.trainer.deepspeed_stage < 3
        if strategy in ("fsdp1", "deepspeed") and not whole and self.samples.prompts:
            raise UserError(
                f"strategy {strategy} cannot write samples while it trains; set samples.prompts to [], or use fsdp"
            )

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_root) / self.run_name


def check_loss_chunk(tokens: int | str | None) -> None:
    """Check an option `loss_chunk_tokens`.

    Raises:
        UserError: it is no number of tokens.
    """
    if isinstance(tokens, int) and tokens < 1:
        raise UserError(f"loss_chunk_tokens is {tokens}; it must be at least 1, auto, or null")


def loss_chunk_on(tokens: int | Literal["auto"] | None, device_type: str) -> int | None:
    """Tokens whose logits exist at a time on a type of device; None: all.

    Each chunk adds to the gradient of the whole head, which takes a GPU as long as a part of the products of 512
    tokens; processors are fastest with what stays in their caches.
    """
    if tokens == "auto":
        return 512 if device_type == "cpu" else 2048
    return tokens


@dataclass
class PretrainConfig(RunConfig):
    """Train a decoder on shards to predict the next token."""

    run_name: str = "pretrain"
    """Folder of the run inside output_root."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data."""
    loss_chunk_tokens: int | Literal["auto"] | None = "auto"
    """Tokens whose logits exist at a time in the loss; auto: 512 on the CPU and 2048 on a GPU; null: all at once."""
    z_loss: float = 0.0
    """Weight of the squared log-partition term that keeps logits small (PaLM uses 1e-4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_chunk(self.loss_chunk_tokens)
        if self.z_loss < 0:
            raise UserError(f"z_loss is {self.z_loss}; it must be at least 0")
        if self.model.output != "tokens" or self.model.value_head:
            raise UserError("pretraining needs model.output tokens and model.value_head false; leave both out")
        if self.init_from is None and self.data.sequence_length is not None:
            self.fit_length()

    def fit_length(self) -> str | None:
        """Fit the windows to the model, once that is known; see `BatchConfig.fit_length`."""
        context = self.model.max_position_embeddings
        return self.data.fit_length(context, f"model.max_position_embeddings {context}")

    def loss_chunk(self, device_type: str) -> int | None:
        """Tokens whose logits exist at a time on a type of device; None: all."""
        return loss_chunk_on(self.loss_chunk_tokens, device_type)


def _in_words(count: int) -> str:
    """A number of parameters as one says it: 4.9M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
