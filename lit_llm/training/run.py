"""From a module and its data to a run folder: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, model/."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lit_llm.config import PostTrainingConfig, RunConfig, TrainerConfig, UserError
from lit_llm.data.loading.data_module import ResumableDataModule
from lit_llm.interop import GenerationSettings, generation_settings, save_model_folder
from lit_llm.interop.peft import save_adapter
from lit_llm.tokenizer import Tokenizer
from lit_llm.training.checkpoint import CheckpointPolicy
from lit_llm.training.checkpoint_files import step_of
from lit_llm.training.checkpoint_io import AtomicCheckpointIO
from lit_llm.training.curves import METRICS_FILE, MetricsFile
from lit_llm.training.ends import EndOfRun, check_patience
from lit_llm.training.failures import readable_failures, set_distributed_defaults
from lit_llm.training.guards import StepGuard
from lit_llm.training.header import RunHeader
from lit_llm.training.host_memory import keep_freed_memory
from lit_llm.training.interrupt import GracefulStop
from lit_llm.training.loggers import build_loggers, check_loggers, close_loggers
from lit_llm.training.mixing import MixCurves
from lit_llm.training.optimizer_state import NamedOptimizerState
from lit_llm.training.profiling import StepProfiler
from lit_llm.training.progress import TrainingProgress
from lit_llm.training.resume import ExactResume
from lit_llm.training.run_facts import RunFacts, run_facts
from lit_llm.training.run_folder import SameStart, checkpoint_to_resume
from lit_llm.training.run_record import RunRecord
from lit_llm.training.samples import SamplePrompts, TextSamples
from lit_llm.training.step_lines import StepLines, newest_values
from lit_llm.training.strategies import (
    build_strategy,
    cluster_environment,
    data_parallel_processes,
    is_on_gpu,
    set_matmul_precision,
    trainer_precision,
    whole_weights,
)
from lit_llm.training.throughput import Throughput


@dataclass
class RunResult:
    """The results of a finished run."""

    folder: Path
    """The run folder."""
    model_folder: Path
    """The model folder inside it."""
    metrics: dict[str, float]
    """The last value of each curve."""
    samples: list[str]
    """Texts written at the last validation."""
    tokens: int
    """Tokens that the model has read in training."""
    tokens_per_second: float
    """Speed at the end."""
    steps: int
    """Optimizer steps that are done."""
    ended_early: str | None = None
    """Why the run has ended before `trainer.max_steps`, or None."""
    facts: RunFacts = field(default_factory=RunFacts)
    """What else the run knows of itself."""


def fit(
    config: RunConfig,
    module: L.LightningModule,
    data: ResumableDataModule,
    tokenizer: Tokenizer,
    callbacks: Sequence[L.Callback] = (),
    prompts: SamplePrompts | None = None,
) -> RunResult:
    """Train `module` as `config` says, from the start or from a checkpoint, and write its model folder.

    Where the shards have a test split, the finished model is evaluated on it once.

    Args:
        config: the run, with `config.folder` held by `run_folder`.
        module: a stage's LightningModule with the decoder in `module.model`.
        data: gives the batches.
        tokenizer: goes into the model folder, and writes the samples.
        callbacks: more of them, run before the checkpoint is written.
        prompts: what the samples go on from; None: `config.samples.prompts`, as beginnings of documents.

    Raises:
        UserError: bad input, a loss that is not finite, a full disk, or a request to stop.
    """
    resume_from = _begin(config, data)
    module.resumes = resume_from is not None
    accumulation = data.accumulate_grad_batches(data_parallel_processes(config.trainer))
    speed = Throughput(module.flops_per_token())
    end = EndOfRun(config, CheckpointPolicy(config.folder / "checkpoints", config.trainer))
    first_step = 0 if resume_from is None else step_of(Path(resume_from))
    samples = _samples(config, tokenizer, prompts, first_step)
    loggers = build_loggers(config, first_step, speed.tokens_at)
    settings = _settings(config, tokenizer)  # read before the training: the folder may be gone after it
    with quiet():
        trainer = build_trainer(
            config.trainer,
            accumulation=accumulation,
            loggers=loggers,
            callbacks=_callbacks(config, resume_from, accumulation, (samples, speed), end, callbacks),
            micro_batch_size=data.micro_batch_size(data_parallel_processes(config.trainer)),
        )
        try:
            with readable_failures(config):
                values = _train_and_test(trainer, module, data, resume_from)
        finally:
            close_loggers(loggers)
    weights = whole_weights(trainer, module)  # every rank takes part
    if trainer.is_global_zero:
        _write_model(config, module, weights, tokenizer, settings)
    metrics = _earlier_values(config.folder, trainer.global_step) | values
    return RunResult(
        folder=config.folder,
        model_folder=config.folder / "model",
        metrics=metrics,
        samples=samples.texts or newest_values(samples.lines.path, trainer.global_step).get("samples", []),
        tokens=speed.tokens,
        tokens_per_second=speed.tokens_per_second or metrics.get("throughput/tokens_per_second", 0.0),
        steps=trainer.global_step,
        ended_early=end.reason,
        facts=run_facts(trainer, data, next(each.seconds for each in loggers if isinstance(each, MetricsFile))),
    )


def _samples(config: RunConfig, tokenizer: Tokenizer, prompts: SamplePrompts | None, first_step: int) -> TextSamples:
    """What writes the samples of a run, and puts them down after those of the steps before."""
    if prompts is None:
        prompts = SamplePrompts.of_texts(config.samples.prompts, tokenizer)
    context, sampling = config.model.max_position_embeddings, config.samples.sampling
    prompts = prompts.fitted(context, sampling, given=len(config.samples.prompts))
    lines = StepLines(config.folder / "samples.jsonl", first_step, "the samples")
    return TextSamples(prompts, sampling, tokenizer, lines)


def _begin(config: RunConfig, data: ResumableDataModule) -> str | None:
    """Refuse what cannot be run, make the settings of the process, and return the checkpoint to go on from."""
    check_patience(config, data)
    check_loggers(config)
    set_distributed_defaults(config)
    set_matmul_precision(config.trainer)
    if not is_on_gpu(config.trainer):
        keep_freed_memory()
    return checkpoint_to_resume(config)


def _settings(config: RunConfig, tokenizer: Tokenizer) -> GenerationSettings:
    """Return how the finished model's texts begin, end and are drawn."""
    start = None if config.init_from is None else Path(config.init_from)
    return generation_settings(tokenizer, start, learned_turns=isinstance(config, PostTrainingConfig))


def _callbacks(
    config: RunConfig,
    resume_from: str | None,
    accumulation: int,
    measuring: Sequence[L.Callback],
    end: EndOfRun,
    more: Sequence[L.Callback],
) -> list[L.Callback]:
    """List the callbacks of every run and `more`, in the order of their calls: checkpoints are written last.

    Of `measuring` the clock comes last, so that it stands still while samples are written.
    """
    return [
        SameStart(resume_from),
        end,
        RunHeader(config, resume_from),
        RunRecord(config, resume_from),
        NamedOptimizerState(),
        ExactResume(config.seed, config.data.batch_size // accumulation),
        *measuring,
        MixCurves(),
        StepGuard(config),
        StepProfiler(config.folder / "profile", config.trainer.profile_steps),
        *([TrainingProgress()] if config.trainer.enable_progress_bar else []),
        *more,
        GracefulStop(end.policy),
        end.policy,
    ]


def _write_model(
    config: RunConfig,
    module: L.LightningModule,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    settings: GenerationSettings,
) -> None:
    """Write the model folder, and for a run with adapters a folder of these, in PEFT's form."""
    save_model_folder(config.folder / "model", *module.finished(weights), tokenizer, settings=settings)
    if not module.lora.active:
        return
    try:
        save_adapter(config.folder / "adapter", config.model, module.lora, weights, str(config.init_from), tokenizer)
    except UserError as error:  # the merged model is there in any case
        print(f"no adapter folder: {error}", file=sys.stderr)


def _train_and_test(
    trainer: L.Trainer, module: L.LightningModule, data: ResumableDataModule, resume_from: str | None
) -> dict[str, float]:
    """Run the Trainer; returns the last value of each curve that had one in this start of the run."""
    trainer.fit(module, datamodule=data, ckpt_path=resume_from)
    metrics = dict(trainer.callback_metrics)
    if data.has_split("test"):
        trainer.test(module, datamodule=data, verbose=False)
        metrics.update(trainer.callback_metrics)
    return {name: float(value) for name, value in metrics.items()}


def _earlier_values(folder: Path, step: int) -> dict[str, float]:
    """Read the last value of each curve up to a step, as a start that finds its last step saved computes none anew."""
    found = newest_values(folder / METRICS_FILE, step)
    return {name: math.nan if value is None else float(value) for name, value in found.items() if "/" in name}


def build_trainer(
    config: TrainerConfig,
    *,
    accumulation: int,
    loggers: list[Logger],
    callbacks: list[L.Callback],
    micro_batch_size: int = 1,
) -> L.Trainer:
    """Build the Lightning Trainer of a run. Counts in `config` are optimizer steps; Lightning counts micro-batches."""
    every = config.val_every_n_steps or config.max_steps
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices if config.devices != "auto" or config.accelerator != "cpu" else 1,
        num_nodes=config.num_nodes,
        strategy=build_strategy(config, micro_batch_size),
        precision=trainer_precision(config),
        # DeepSpeed's engine clips by itself and reads this; for the other strategies the module clips
        gradient_clip_val=config.gradient_clip_val if config.strategy == "deepspeed" else None,
        # sharded weights are gathered into memory that training uses again, which must not be made in inference mode
        inference_mode=config.strategy not in ("fsdp", "fsdp1", "deepspeed"),
        max_steps=config.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        val_check_interval=every * accumulation,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every_n_steps,
        deterministic=config.deterministic,
        use_distributed_sampler=False,
        # without one of ours, Lightning would add its own, which writes into the working directory
        enable_checkpointing=any(isinstance(each, CheckpointPolicy) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=loggers,
        plugins=[AtomicCheckpointIO(background=config.async_checkpoints), *cluster_environment()],
        callbacks=callbacks,
    )


class quiet(warnings.catch_warnings):
    """A block without what Lightning says at every start, and without warnings about what is done on purpose."""

    def __enter__(self) -> None:
        super().__enter__()
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        for pattern in (
            ".*does not have many workers.*",  # shards of this machine are read fastest without
            ".*your dataloader is not resumable.*",  # the data module resumes, not the loader
            ".*number of training batches.*",
            ".*Checkpoint directory.*exists and is not empty.*",
            ".*sync_dist=True.*",  # what is logged has been reduced over the ranks
            ".*Total length of `list` across ranks is zero.*",  # there is nothing to validate on
            ".*LeafSpec.*",  # between Lightning and torch
            ".*DeepSpeed handles gradient clipping internally.*",  # and is told the norm to clip to
            ".*When saving the DeepSpeed Stage 3 checkpoint.*",  # any strategy resumes from a model folder
            ".*torch.distributed.* is deprecated.*",  # between DeepSpeed and torch
        ):
            warnings.filterwarnings("ignore", message=pattern)
