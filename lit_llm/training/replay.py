"""One recorded optimizer step computed again, without an update, to find the sample and the layer that went wrong."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lit_llm.config import DataConfig, PretrainConfig, RunConfig, UserError, flatten, from_plain, to_plain
from lit_llm.config.notices import with_pictures
from lit_llm.data.loading.data_module import ResumableDataModule
from lit_llm.tokenizer import Tokenizer
from lit_llm.training.checkpoint_files import checkpoint_name, saved_checkpoints, step_of
from lit_llm.training.checkpoint_io import read_checkpoint
from lit_llm.training.guards import restore_encoded_random_state
from lit_llm.training.step_record import StepRecord
from lit_llm.training.strategies import set_matmul_precision

C = TypeVar("C", bound=RunConfig)

# Options that may differ from the recorded run's: where its weights and data are now, and what to compute on.
_FREE = ("replay", "ckpt_path", "data.paths", "trainer.accelerator")
_MOST_ROWS = 40
_EXCERPT = 400


@dataclass
class SampleLoss:
    """One sample of the step, computed alone and without dropout."""

    index: int
    """Sample index."""
    rank: int
    """Rank that read it."""
    micro_batch: int
    """Which of that rank's micro-batches it was in, from 0."""
    tokens: int
    """Supervised tokens."""
    loss: float
    """Their mean loss, in nats; 0 where there are none."""


@dataclass
class ReplayReport:
    """The findings of computing a step again."""

    record: StepRecord
    """What the run recorded."""
    checkpoint: Path | None
    """Where the weights are from; None: the initial ones."""
    same_weights: bool
    """Whether they are those that the step started from."""
    bad_weights: list[str]
    """Parameters that are not finite."""
    largest_weight: tuple[str, float]
    """The parameter with the largest absolute value, and that value; a parameter that is not finite wins."""
    loss: float = 0.0
    """Mean over the supervised tokens of the step, in nats."""
    gradient_norm: float = 0.0
    """Of the whole gradient."""
    micro_batch_losses: list[float] = field(default_factory=list)
    """Loss sums, in the order of the record."""
    part_norms: dict[str, float] = field(default_factory=dict)
    """Gradient norm of the embedding, each block, the head and what else there is."""
    first_bad_module: str | None = None
    """The first module, in the order of computation, whose output is not finite."""
    samples: list[SampleLoss] = field(default_factory=list)
    """Every sample, worst first."""
    excerpt: str = ""
    """Text of the worst sample."""
    place: str = ""
    """Where that text is."""

    @property
    def reproduced(self) -> bool:
        """Whether every micro-batch has the recorded loss, to the last bit."""
        recorded = [part.loss_sum for part in self.record.micro_batches]
        return all(a == b or (a != a and b != b) for a, b in zip(recorded, self.micro_batch_losses, strict=True))


def recorded_run(config: C) -> tuple[StepRecord, C]:
    """Read the step that `config.replay` names, and make the configuration that computes it on one device.

    Raises:
        UserError: the file cannot be read, or an option was given that is not the recorded run's.
    """
    record = StepRecord.load(Path(str(config.replay)))
    recorded: C = from_plain(type(config), record.config)
    given, defaults, of_run = (flatten(to_plain(each)) for each in (config, type(config)(), recorded))
    for name, value in given.items():
        if name not in _FREE and value != defaults[name] and value != of_run[name]:
            raise UserError(
                f"{name} is {value}, but the run that is replayed had {of_run[name]}; with --replay give no options "
                f"but {', '.join(_FREE[1:])}"
            )
    trainer = replace(
        recorded.trainer.on_one_device(),
        accelerator=_accelerator(config.trainer.accelerator, recorded.trainer.accelerator),
    )
    data: Any = recorded.data
    if isinstance(data, DataConfig):
        data = data.moved_to(config.data.paths)
    else:
        data = replace(data, paths=config.data.paths or data.paths)
    ckpt_path = str(_weights_of(record, config)) if record.checkpoint is not None or config.ckpt_path else None
    # a checkpoint has all weights of a pretraining run; the other stages take their tokenizer from the folder, too
    init_from = None if isinstance(recorded, PretrainConfig) and ckpt_path is not None else recorded.init_from
    return record, replace(recorded, trainer=trainer, data=data, ckpt_path=ckpt_path, init_from=init_from)


def _accelerator(given: str, recorded: str) -> Any:
    """Choose the device to compute on: the one asked for, else the run's kind if there is such a device here."""
    if given == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator is gpu, but torch finds no CUDA device here; use cpu")
    if given != "auto" or (recorded == "gpu" and not torch.cuda.is_available()):
        return given
    return recorded


def _weights_of(record: StepRecord, config: RunConfig) -> Path:
    """Find the checkpoint to compute the step with."""
    if config.ckpt_path is not None:
        if not Path(config.ckpt_path).exists():
            raise UserError(f"there is no checkpoint {config.ckpt_path}")
        return Path(config.ckpt_path)
    folder = Path(str(config.replay)).resolve().parents[1] / "checkpoints"
    for step in _equal_weights(record):
        if (folder / checkpoint_name(step)).exists():
            return folder / checkpoint_name(step)
    saved = saved_checkpoints(folder)
    before = [step for step in saved if step < record.step]
    nearest = saved[before[-1]] if before else next(iter(saved.values()), "CHECKPOINT")
    raise UserError(
        f"the weights that step {record.step} started from are not kept (there is no {record.checkpoint}); "
        f"--ckpt_path {shlex.quote(str(nearest))} computes it with the nearest ones"
    )


def _equal_weights(record: StepRecord) -> list[int]:
    """List the steps after which the weights are those that the recorded step started from."""
    return [record.step - 1] if record.updated or not math.isfinite(record.loss) else [record.step - 1, record.step]


def replay_step(
    record: StepRecord, config: RunConfig, module: L.LightningModule, data: ResumableDataModule, tokenizer: Tokenizer
) -> ReplayReport:
    """Compute a recorded step again on one device, print what it shows, and change nothing.

    Every micro-batch of every rank goes forward and backward in turn, from the recorded random states. On the same
    kind of device and version of torch, the losses of a run on one device, or data-parallel, come out bit-identical.

    Args:
        record: the step; see `recorded_run`.
        config: of `recorded_run`.
        module: a stage's module of that configuration.
        data: its data module.
        tokenizer: decodes the worst sample.

    Raises:
        UserError: the data is not the recorded run's, or the checkpoint is damaged.
    """
    data.adopt(record.fingerprint)
    if data.fingerprint != record.fingerprint:
        where = config.data.folders if isinstance(config.data, DataConfig) else config.data.paths
        raise UserError(f"{', '.join(where)} is not the data of the recorded run; give its data.paths")
    trainer = _device_of(config)
    module.configure_model()
    checkpoint = None if config.ckpt_path is None else Path(config.ckpt_path)
    if checkpoint is not None:
        weights = read_checkpoint(checkpoint, keys=("state_dict",))["state_dict"]
        module.load_state_dict(weights, strict=module.strict_loading)
    module.to(trainer.strategy.root_device).train()
    module.on_fit_start()
    largest = {name: float(weight.detach().abs().max()) for name, weight in module.model.named_parameters()}
    report = ReplayReport(
        record,
        checkpoint,
        same_weights=checkpoint is None or step_of(checkpoint) in _equal_weights(record),
        bad_weights=[name for name, value in largest.items() if not math.isfinite(value)],
        largest_weight=max(largest.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf),
    )
    _compute(report, module, data, trainer)
    _compute_samples(report, module, data, trainer)
    _describe_worst(report, data, tokenizer)
    print_report(report)
    return report


def _device_of(config: RunConfig) -> L.Trainer:
    """Make a Trainer that only gives the device and the context of the precision."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    set_matmul_precision(config.trainer)
    return L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,
        deterministic=config.trainer.deterministic,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _compute(report: ReplayReport, module: Any, data: ResumableDataModule, trainer: L.Trainer) -> None:
    """Compute the step as it was: its loss, its gradient and the first module that gave bad numbers."""
    record = report.record
    device = trainer.strategy.root_device
    seen: set[tuple[int, ...]] = set()
    rank = None
    tokens_in_all, loss_sum_in_all = 0, torch.zeros((), dtype=torch.float64)
    with _watching(module.model, report):
        for part in record.micro_batches:
            if part.rank != rank:
                rank = part.rank
                restore_encoded_random_state(record.random_states[rank])
            batch = _batch(data, part.sample_ids, device)
            with trainer.precision_plugin.train_step_context():
                loss_sum, tokens = module.token_loss(batch, training=True)
            report.micro_batch_losses.append(float(loss_sum.detach()))
            if not torch.isfinite(loss_sum) and report.first_bad_module is None:
                report.first_bad_module = "the loss, after the last module"
            if tuple(part.sample_ids) in seen:
                continue  # tensor-parallel ranks read the same samples, which count once
            seen.add(tuple(part.sample_ids))
            # divided as in training, so that the gradient is rounded in the same way
            nominal = len(part.sample_ids) * (data.config.length if module.counts_tokens else 1)
            (loss_sum / nominal / record.accumulation).backward()
            tokens_in_all += int(tokens)
            loss_sum_in_all += loss_sum.detach().double().cpu()
    report.loss = float(loss_sum_in_all) / tokens_in_all if tokens_in_all else 0.0
    scale = nominal * record.accumulation / max(tokens_in_all, 1)
    squares: dict[str, float] = {}
    for name, parameter in module.model.named_parameters():
        if parameter.grad is not None:
            norm = float(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)) * scale
            squares[part_of(name)] = squares.get(part_of(name), 0.0) + norm**2
    report.part_norms = {name: math.sqrt(square) for name, square in squares.items()}
    report.gradient_norm = math.sqrt(sum(squares.values()))


def part_of(parameter: str) -> str:
    """Name the part of the decoder that a parameter belongs to: "block 3", "embedding", "head", ..."""
    first, _, rest = parameter.partition(".")
    return f"block {rest.partition('.')[0]}" if first == "blocks" else first.replace("_", " ")


@contextmanager
def _watching(model: nn.Module, report: ReplayReport) -> Iterator[None]:
    """Note the first module whose output is not finite; those inside a module come before it."""

    def look(name: str, output: Any) -> None:
        if report.first_bad_module is None and isinstance(output, Tensor) and not output.isfinite().all():
            report.first_bad_module = name

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batch(data: ResumableDataModule, sample_ids: list[int], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in data.train_dataset.__getitems__(sample_ids).items()}


@torch.no_grad()
def _compute_samples(report: ReplayReport, module: Any, data: ResumableDataModule, trainer: L.Trainer) -> None:
    """Compute the loss of each sample alone; without dropout, which could not be the recorded one."""
    module.eval()
    done: set[int] = set()
    for rank, number, sample in _samples_of(report.record):
        if sample in done:
            continue
        done.add(sample)
        batch = _batch(data, [sample], trainer.strategy.root_device)
        with trainer.precision_plugin.train_step_context():
            loss_sum, tokens = module.token_loss(batch, training=True)
        count = int(tokens)
        report.samples.append(SampleLoss(sample, rank, number, count, float(loss_sum) / count if count else 0.0))
    report.samples.sort(key=lambda each: -each.loss if math.isfinite(each.loss) else -math.inf)


def _samples_of(record: StepRecord) -> Iterator[tuple[int, int, int]]:
    """List rank, number of the micro-batch, and sample for every sample of the step."""
    counts: dict[int, int] = {}
    for part in record.micro_batches:
        number = counts.get(part.rank, 0)
        counts[part.rank] = number + 1
        for sample in part.sample_ids:
            yield part.rank, number, sample


def _describe_worst(report: ReplayReport, data: ResumableDataModule, tokenizer: Tokenizer) -> None:
    report.place, text = data.train_dataset.describe(report.samples[0].index, tokenizer)
    report.excerpt = text[:_EXCERPT]


def print_report(report: ReplayReport) -> None:
    """Print the report as tables on stdout."""
    record, console = report.record, Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"step {record.step}, {record.num_samples} samples from {record.first_sample} on", style="bold")
    console.print(f"weights          {report.checkpoint or 'initial'}{_weights_note(report)}")
    console.print("largest weight   {}, {:.4g}".format(*report.largest_weight))
    console.print(f"loss             {report.loss:.6g} (recorded: {record.loss:.6g}{_loss_note(report)})")
    console.print(f"gradient norm    {report.gradient_norm:.6g} (recorded: {record.gradient_norm:.6g})")
    console.print(f"first not finite {report.first_bad_module or 'none: every output of every module is finite'}")
    table = Table(title="samples, each alone and without dropout; worst first", box=box.SIMPLE, title_justify="left")
    for name in ("sample", "rank", "micro-batch", "tokens", "loss"):
        table.add_column(name, justify="right")
    for each in report.samples[:_MOST_ROWS]:
        style = None if math.isfinite(each.loss) else "bold red"
        row = (each.index, each.rank, each.micro_batch, each.tokens, f"{each.loss:.4f}")
        table.add_row(*map(str, row), style=style)
    console.print(table)
    rest = report.samples[_MOST_ROWS:]
    if rest:
        console.print(f"and {len(rest)} more, from {rest[0].loss:.4f} down to {rest[-1].loss:.4f}")
    table = Table(title="norm of the gradient", box=box.SIMPLE, title_justify="left")
    table.add_column("part")
    table.add_column("norm", justify="right")
    for name, norm in report.part_norms.items():
        table.add_row(name, f"{norm:.4g}", style=None if math.isfinite(norm) else "bold red")
    console.print(table)
    console.print(with_pictures(f"worst sample: {report.samples[0].index}, {report.place}"), style="bold")
    console.print(with_pictures(report.excerpt))


def _weights_note(report: ReplayReport) -> str:
    notes = []
    if not report.same_weights:
        notes.append("not those that the step started from")
    if report.bad_weights:
        count = len(report.bad_weights)
        notes.append(f"not finite: {report.bad_weights[0]}{f' and {count - 1} more' if count > 1 else ''}")
    return f" ({'; '.join(notes)})" if notes else ""


def _loss_note(report: ReplayReport) -> str:
    return ", bit-identical" if report.reproduced else ""
