"""The Lightning Trainer options that are supported and tested, under Lightning's names where it has one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from lit_llm.config.errors import UserError

COMPILED_FROM_STEPS = 500
"""Steps of a run on CUDA from which `compile` "auto" compiles: it takes some 10 to 60 s, and a step 10 to 25% less."""
WHOLE_GRADIENTS = 1 / 8
"""Share of a GPU's memory that the gradients of an accumulated step may take, unless a run says otherwise."""


def sends_each_time(choice: bool | None, numbers: int, memory: float | None) -> bool:
    """Decide `TrainerConfig.reduce_every_micro_batch`.

    Args:
        choice: what it says.
        numbers: of a whole gradient on one device.
        memory: bytes of that, or None for a CPU.
    """
    return choice if choice is not None else memory is not None and 4 * numbers > WHOLE_GRADIENTS * memory


@dataclass
class TrainerConfig:
    """How long, on what and how often. Every count is in optimizer steps, whatever the accumulation."""

    max_steps: int = 1000
    """Optimizer steps in the run."""
    max_tokens: int | None = None
    """End the run when the model has read about so many tokens, without padding: sets max_steps, which the schedule is
    fitted to. Null: max_steps as it is given."""
    max_time: str | float | None = None
    """End the run, with a checkpoint and its model folder, at the first step after this time: minutes, HH:MM:SS or
    DD:HH:MM:SS (in quotes in YAML). Each start and resume counts anew; the schedule stays that of max_steps."""
    early_stopping_patience: int | None = None
    """End the run after so many validations in a row without a lower val/loss (in PPO: without a higher reward). With
    keep_best_checkpoint a checkpoint is written after each best one; model/ is that of the last step."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device."""
    devices: int | Literal["auto"] = "auto"
    """Devices on each machine; "auto" takes every GPU, or one CPU process."""
    num_nodes: int = 1
    """Machines."""
    strategy: Literal["auto", "ddp", "fsdp", "fsdp1", "deepspeed"] = "auto"
    """"auto": one device, or ddp for several. "ddp": replicas. "fsdp": weights, gradients and optimizer sharded over
    the data-parallel ranks (FSDP2), with tensor parallelism as an option. "fsdp1": the older form of it, on CUDA
    alone. "deepspeed": ZeRO (extra `deepspeed`). All but fsdp1 run on the CPU, too."""
    tensor_parallel_size: int = 1
    """Ranks that share each attention and feed-forward product, and the vocabulary where it divides (strategy fsdp);
    the others are data-parallel."""
    sequence_parallel: bool = False
    """Cut the residual stream between those products by tokens, so that each rank norms and keeps its own: less
    memory, and the same amount is sent."""
    context_parallel_size: int = 1
    """Ranks that share each long text (strategy fsdp; pretrain and sft): each keeps its own tokens of the stream, and
    attention exchanges them for some of the heads, so that this divides the heads. They share the weights out, too."""
    fsdp_replicas: int = 1
    """Copies of the sharded model (HSDP, strategy fsdp): each is spread over data-parallel ranks / fsdp_replicas, so
    that weights travel inside a copy, as one machine's GPUs, and only reduced gradients between copies."""
    reshard_after_forward: bool = True
    """Let go of a block's gathered weights between its forward and its backward pass (strategy fsdp). false gathers
    them once for both, and holds the whole weights meanwhile."""
    reduce_every_micro_batch: bool | None = None
    """Send gradients in each micro-batch of an accumulated step (strategy fsdp): a device then holds its shard of them
    alone. false sends them once in a step, and holds the whole gradient, 4 bytes for each weight, until then. Null:
    true where that would take more than an eighth of a GPU's memory."""
    deepspeed_stage: Literal[1, 2, 3] = 2
    """ZeRO stage: shards the optimizer (1), gradients too (2), weights too (3)."""
    offload: bool = False
    """Keep the shards and the optimizer in host memory between uses (strategies fsdp and deepspeed, on CUDA)."""
    activation_checkpointing: Literal["none", "full", "every_n", "selective"] = "none"
    """What a block keeps for its gradient: everything; its input alone, the rest being computed again ("full", or
    "every_n" in each n-th block only); or its input and the results of its matrix products ("selective")."""
    checkpoint_every_n_blocks: int = 2
    """n of activation_checkpointing "every_n"."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "auto"] = "32-true"
    """float32; bfloat16 arithmetic on float32 weights; all bfloat16 (small updates are lost); or auto: bf16-mixed where
    the device has units for it, else 32-true."""
    float8: bool = False
    """Compute the products of the blocks in float8 (extra `torchao`; CUDA from Ada and Hopper on): faster for wide
    layers, and noisier, so that a loss beside that of bfloat16 is worth a look. Layers whose widths are no multiples of
    16 are left out."""
    float32_matmul_precision: Literal["highest", "high", "medium"] | None = None
    """What float32 matrix products on CUDA round their factors to (torch.set_float32_matmul_precision): nothing, or
    TF32, several times as fast, with "high" and "medium". Null: "high" on CUDA; the CPU always has "highest"."""
    attention_kernel: Literal["auto", "mask"] = "auto"
    """How attention to documents, sliding windows and capped scores is computed: without the scores that no token sees
    (FlexAttention on CUDA, piece by piece on the CPU), or over the scores of all pairs of tokens with a mask."""
    gradient_clip_val: float | None = 1.0
    """Largest norm of the whole gradient; null does not clip."""
    val_every_n_steps: int | None = 250
    """Validate after every so many steps and at the last one; null: only at the last one."""
    evaluate_every_n_steps: int | None = None
    """Ask the battery after every so many steps and at the last one, as curves battery/TASK; null: not at all."""
    battery: str | None = None
    """Batteries to ask during training, as --battery of evaluate.py: base, chat, code or YAML files."""
    battery_data: str | None = None
    """Folder with the files of the battery's tasks; null: the folder of the YAML file."""
    battery_tasks: str | None = None
    """Names of the tasks of the battery to ask, separated by commas; null: all of them."""
    battery_limit: int | None = None
    """Ask only the first so many questions of each part of a task; null: all."""
    save_every_n_steps: int | None = 250
    """Write a checkpoint after every so many steps and at the last one; null: only at the last one."""
    save_every_n_minutes: float | None = None
    """Write a checkpoint, too, at the first step that ends so many minutes after the one before."""
    sharded_checkpoints: bool | None = None
    """Each rank writes its own shard into a folder (strategy fsdp); else one file holds everything, which the host of
    the first rank gathers in its memory. Either can be resumed at another number of ranks. Null: shards where there
    are several ranks."""
    async_checkpoints: bool = False
    """Copy the state and write it while training goes on; costs the memory of one copy."""
    keep_last_checkpoints: int = 2
    """Newest checkpoints kept, besides the best."""
    keep_best_checkpoint: bool = True
    """Keep the checkpoint of the lowest val/loss among those saved where validation ran."""
    log_every_n_steps: int = 10
    """Write the training curves after every so many steps and at the last one."""
    loggers: list[Literal["tensorboard", "csv", "wandb"]] = field(default_factory=lambda: ["tensorboard"])
    """Where curves go besides metrics.jsonl: tensorboard, csv (csv/metrics.csv in the run folder) and wandb (Weights
    & Biases, extra `wandb`; WANDB_MODE=offline keeps it on this machine). An empty list leaves metrics.jsonl alone."""
    spike_action: Literal["off", "log", "skip"] = "log"
    """What to do about a step whose loss or gradient norm lies far above the recent ones: nothing; write its score
    as a curve and say so; or leave out its update, too."""
    spike_window: int = 128
    """Steps whose losses and norms a new one is compared with."""
    spike_sigmas: float = 6.0
    """Standard deviations above their mean that make a spike."""
    profile_steps: int = 0
    """Trace so many steps after the first few of the run with the torch profiler, for TensorBoard and Chrome."""
    timeout_minutes: float = 30.0
    """How long a rank waits for the others before the run fails instead of hanging."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile each block, and on CUDA the loss and Muon, too. "auto": on CUDA, where the run is long enough to
    pay for the minute that it may take; on the CPU it gains a few per cent."""
    deterministic: bool = False
    """Only deterministic kernels; needed for bit-identical resume on CUDA."""
    enable_progress_bar: bool = True
    """Show a progress bar, or a line now and then where the output is not a terminal."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "num_nodes",
            "keep_last_checkpoints",
            "log_every_n_steps",
            "tensor_parallel_size",
            "context_parallel_size",
            "fsdp_replicas",
            "checkpoint_every_n_blocks",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("val_every_n_steps", "save_every_n_steps", "evaluate_every_n_steps", "battery_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"trainer.{name} is {value}; it must be at least 1, or null")
        if self.gradient_clip_val is not None and self.gradient_clip_val <= 0:
            raise UserError(f"trainer.gradient_clip_val is {self.gradient_clip_val}; null turns clipping off")
        if self.profile_steps < 0:
            raise UserError(f"trainer.profile_steps is {self.profile_steps}; 0 turns profiling off")
        if self.spike_window < 2:
            raise UserError(f"trainer.spike_window is {self.spike_window}; it must be at least 2")
        for name in ("timeout_minutes", "spike_sigmas", "save_every_n_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"trainer.{name} is {value}; it must be above 0")
        self._check_battery()
        self._check_ends()
        for name in self.loggers:
            if name not in ("tensorboard", "csv", "wandb") or self.loggers.count(name) > 1:
                raise UserError(
                    f"trainer.loggers is {self.loggers}; it must be a list of tensorboard, csv and wandb, each once"
                )
        self._check_strategy()
        if isinstance(self.devices, int) and self.devices < 1:
            raise UserError(f"trainer.devices is {self.devices}; it must be at least 1")

    @property
    def max_seconds(self) -> float | None:
        """The time of `max_time` in seconds; None for no limit.

        Raises:
            UserError: it is no time, or not above 0.
        """
        if self.max_time is None:
            return None
        text = str(self.max_time).strip()
        try:
            parts = [60 * float(text)] if ":" not in text else [int(part) for part in text.split(":")]
        except ValueError:
            parts = []
        seconds = sum(part * size for part, size in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))
        if len(parts) not in (1, 3, 4) or not 0 < seconds < math.inf or min(parts) < 0:
            raise UserError(
                f"trainer.max_time is {self.max_time}; it must be minutes above 0, or a time as '00:30:00' (HH:MM:SS) "
                "or '01:12:00:00' (DD:HH:MM:SS)"
            )
        return seconds

    def _check_battery(self) -> None:
        """Refuse a battery that is never asked, and options of none."""
        if (self.battery is None) != (self.evaluate_every_n_steps is None):
            given, missing = ("battery", "evaluate_every_n_steps")[:: 1 if self.battery is not None else -1]
            raise UserError(f"trainer.{given} is given without trainer.{missing}; give both, or neither")
        for name in ("battery_data", "battery_tasks", "battery_limit"):
            if self.battery is None and getattr(self, name) is not None:
                raise UserError(f"trainer.{name} is given, but no trainer.battery, which alone it is for")

    def _check_ends(self) -> None:
        """Refuse ends of a run that are never reached, or reached at once."""
        for name in ("max_tokens", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"trainer.{name} is {value}; it must be at least 1, or null")
        # YAML reads 12:30:00 without quotes as the number 45000
        if isinstance(self.max_time, int | float) and self.max_time >= 3600:
            raise UserError(
                f"trainer.max_time is {self.max_time:g} minutes; YAML wants a time in quotes, as '12:30:00', and more "
                "than 60 hours as '03:00:00:00' (DD:HH:MM:SS)"
            )
        _ = self.max_seconds
        if self.early_stopping_patience is not None and self.val_every_n_steps is None:
            raise UserError(
                "trainer.early_stopping_patience needs validations on the way; set trainer.val_every_n_steps"
            )

    def on_one_device(self) -> TrainerConfig:
        """The same training in one process on one device, uncompiled and nothing of it spread or offloaded."""
        return replace(
            self,
            devices=1,
            num_nodes=1,
            strategy="auto",
            tensor_parallel_size=1,
            context_parallel_size=1,
            sequence_parallel=False,
            fsdp_replicas=1,
            reshard_after_forward=True,
            reduce_every_micro_batch=None,
            sharded_checkpoints=None,
            offload=False,
            compile=False,
        )

    def compiles(self, device_type: str) -> bool:
        """Whether blocks are compiled on a type of device."""
        if self.compile != "auto":
            return self.compile
        return device_type == "cuda" and self.max_steps >= COMPILED_FROM_STEPS

    def _check_strategy(self) -> None:
        """Refuse options that the strategy would ignore."""
        if self.tensor_parallel_size > 1 and self.strategy != "fsdp":
            raise UserError("trainer.tensor_parallel_size above 1 needs trainer.strategy fsdp")
        if self.sequence_parallel and self.tensor_parallel_size == 1:
            raise UserError("trainer.sequence_parallel needs trainer.tensor_parallel_size above 1")
        for name, default in (
            ("context_parallel_size", 1),
            ("fsdp_replicas", 1),
            ("reshard_after_forward", True),
            ("reduce_every_micro_batch", None),
        ):
            if getattr(self, name) != default and self.strategy != "fsdp":
                raise UserError(f"trainer.{name} needs trainer.strategy fsdp")
        if self.float8:
            self._check_float8()
        if self.sharded_checkpoints and self.strategy != "fsdp":
            raise UserError("trainer.sharded_checkpoints needs trainer.strategy fsdp")
        if self.offload and self.strategy not in ("fsdp", "deepspeed"):
            raise UserError("trainer.offload needs trainer.strategy fsdp or deepspeed")
        if self.spike_action == "skip" and self.strategy == "deepspeed":
            raise UserError(
                "trainer.spike_action skip needs the gradient, which deepspeed keeps; use log, or strategy fsdp"
            )
        if self.strategy == "deepspeed" and self.async_checkpoints:
            raise UserError(
                "trainer.async_checkpoints does not work with deepspeed, which writes its own; use strategy fsdp"
            )
        if self.deepspeed_stage != 2 and self.strategy != "deepspeed":
            raise UserError("trainer.deepspeed_stage needs trainer.strategy deepspeed")
        if self.checkpoint_every_n_blocks != 2 and self.activation_checkpointing != "every_n":
            raise UserError("trainer.checkpoint_every_n_blocks needs trainer.activation_checkpointing every_n")

    def _check_float8(self) -> None:
        """Refuse float8 together with what it cannot be combined with."""
        if self.precision == "32-true":
            raise UserError("trainer.float8 is computed beside bfloat16; set trainer.precision to bf16-mixed")
        if self.tensor_parallel_size > 1 or self.strategy in ("fsdp1", "deepspeed"):
            raise UserError("trainer.float8 needs trainer.strategy auto, ddp or fsdp, without tensor parallelism")
