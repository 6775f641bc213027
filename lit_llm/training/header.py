"""What a run says of itself when it starts: stage, model, device, data, length, folder, and the expected time."""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any

import lightning as L
import torch

from lit_llm.config import PRESETS, PROJECTIONS, ModelConfig, PPOConfig, PretrainConfig, RunConfig, preset, to_plain
from lit_llm.config.progress import in_words
from lit_llm.interop.configuration import family_of
from lit_llm.model.arithmetic import multiplies_bfloat16
from lit_llm.model.float8 import MULTIPLE, is_float8
from lit_llm.model.parallel import compiles
from lit_llm.model.spans import SHORT, kernel_for
from lit_llm.planning import count_parameters
from lit_llm.training.strategies import writes_shards

STEPS_MEASURED = 5
"""Steps after the first that the expected time is taken from, or fewer where they take `SECONDS_MEASURED`."""
SECONDS_MEASURED = 10.0

# what may differ from a preset that still gives the architecture its name
_NOT_OF_A_PRESET = (
    "vocab_size",
    "pad_vocab_to_multiple_of",
    "max_position_embeddings",
    "dropout",
    "output",
    "value_head",
)


class RunHeader(L.Callback):
    """Prints on stderr what is about to run, and after the first steps how long it will take; rank 0 alone does.

    Args:
        config: the run.
        resume_from: checkpoint that it goes on from, or None.
    """

    def __init__(self, config: RunConfig, resume_from: str | None) -> None:
        self.config = config
        self.resume_from = resume_from
        self._begin: tuple[int, float] | None = None  # step and time from which steps are measured
        self._told = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the header."""
        self._step = trainer.global_step
        self._started = time.monotonic()
        if trainer.is_global_zero:
            print("\n".join(header_lines(self.config, self.resume_from, trainer, pl_module)), file=sys.stderr)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure anew: the time of a validation is not that of a step."""
        self._begin = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the expected time once a few steps after the first, which is slower than the others, are done."""
        step, now = trainer.global_step, time.monotonic()
        if self._told or not trainer.is_global_zero or step == self._step:
            return
        self._step = step
        if self._begin is None:
            self._begin = step, now
            return
        steps, seconds = step - self._begin[0], now - self._begin[1]
        if steps < STEPS_MEASURED and seconds < SECONDS_MEASURED:
            return
        self._told = True
        if step < trainer.max_steps:
            print(self._expectation(trainer.max_steps - step, seconds / steps, now), file=sys.stderr)

    def _expectation(self, steps: int, seconds_per_step: float, now: float) -> str:
        seconds = steps * seconds_per_step
        line = f"about {in_words(seconds)} for the remaining {steps:,} steps, without their validations"
        limit = self.config.trainer.max_seconds
        if limit is not None and now + seconds - self._started > limit:
            line += f"; trainer.max_time {self.config.trainer.max_time} is over before that"
        return line


def header_lines(
    config: RunConfig, resume_from: str | None, trainer: L.Trainer, module: L.LightningModule
) -> list[str]:
    """The lines that a run begins with.

    Args:
        config: the run.
        resume_from: checkpoint that it goes on from, or None.
        trainer: at the start of training.
        module: what it trains.
    """
    lines = [
        (config.stage, _model_line(config, module)),
        ("device", _device_line(trainer, config)),
        *(("kernels", line) for line in kernel_lines(config, trainer.strategy.root_device.type)),
        *(("float8", line) for line in _float8_lines(config, module)),
        ("data", trainer.datamodule.summary),  # type: ignore[attr-defined]
        *(("mix", line) for line in trainer.datamodule.mix_lines(trainer.max_steps)),  # type: ignore[attr-defined]
        ("length", _length_line(config, trainer)),
        *(("ends", line) for line in _end_lines(config)),
        *(("saves", line) for line in _whole_checkpoint_lines(config, module, trainer.world_size)),
    ]
    width = max(len(name) for name, _ in lines) + 2
    where = f"starting {config.folder}"
    if resume_from is not None:
        where = f"resumed at step {trainer.global_step} from {resume_from}"
    return [*(f"{name:<{width}}{line}" for name, line in lines), where]


def architecture(model: ModelConfig) -> str:
    """A model's architecture in words: the preset that it is, or the one of transformers that computes the same."""
    wanted, scores = _of_architecture(model), model.output == "score"
    use = " as a reward model" if scores else ""
    for name in PRESETS:
        if _of_preset(name, scores) == wanted:
            return f"{name}{use}"
    family, _ = family_of(model)
    return f"{'an architecture of this package' if family is None else f'the {family.model_type} architecture'}{use}"


@cache
def _of_preset(name: str, scores: bool) -> dict[str, Any]:
    known = preset(name)
    return _of_architecture(known.as_score() if scores else known)


def _of_architecture(model: ModelConfig) -> dict[str, Any]:
    return {name: value for name, value in to_plain(model).items() if name not in _NOT_OF_A_PRESET}


def _model_line(config: RunConfig, module: Any) -> str:
    model = config.model
    total = count_parameters(model)
    line = f"{architecture(model)}, {total:,} parameters"
    # sharded strategies of others cut parameters up, and would be counted wrongly
    if config.trainer.strategy in ("auto", "ddp", "fsdp"):
        trained = sum(parameter.numel() for parameter in module.trained.parameters() if parameter.requires_grad)
        if module.lora.active:
            line += f" and {trained:,} trained with lora"
        elif trained != total:
            line += f" ({trained:,} trained with the critic's)"
    line += f": {model.num_layers} layers, width {model.hidden_size}, {model.num_heads} heads"
    return f"{line}, vocabulary {model.vocab_size:,}" + (
        "" if config.init_from is None else f"; from {config.init_from}"
    )


def _device_line(trainer: L.Trainer, config: RunConfig) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"CPU ({threads} thread{'s' * (threads > 1)})"
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    strategy = config.trainer.strategy
    if strategy == "auto":
        strategy = "ddp" if trainer.world_size > 1 else "one device"
    return f"{count}{name}, precision {config.trainer.precision}, strategy {strategy}"


def kernel_lines(config: RunConfig, device_type: str) -> list[str]:
    """What is computed by other kernels than torch's usual ones: nothing, or one line.

    Args:
        config: the run.
        device_type: of the device that trains.
    """
    words, trainer = [], config.trainer
    if device_type == "cpu" and not multiplies_bfloat16(torch.device("cpu")):
        words.extend(_emulated_words(config))
    if compiles(trainer):
        words.append("compiled blocks, loss and Muon" if device_type == "cuda" else "compiled blocks")
    if device_type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        words.append("float32 products of TF32 factors (trainer.float32_matmul_precision)")
    attention = _attention_words(config, device_type)
    return [", ".join([*words, *attention])] if words or attention else []


def _emulated_words(config: RunConfig) -> list[str]:
    """What a processor without units for bfloat16 computes in it, and what to set instead."""
    options = []
    if config.trainer.precision != "32-true":
        options.append("--trainer.precision auto")
    if config.optimizer.name == "muon" and config.optimizer.newton_schulz_dtype("cpu") == "bfloat16":
        options.append("--optimizer.muon_ns_dtype auto")
    return [f"bfloat16 emulated, which is slow: {' '.join(options)} avoids it"] if options else []


def _float8_lines(config: RunConfig, module: Any) -> list[str]:
    """Which projections of the blocks are computed in float8, where any are."""
    if not config.trainer.float8:
        return []
    parts = dict(module.model.blocks.named_modules())
    projections = [part for name, part in parts.items() if name.rpartition(".")[2] in PROJECTIONS]
    taken = sum(is_float8(part) for part in projections)
    line = f"{taken} of {len(projections)} projections of the blocks"
    return [line if taken == len(projections) else f"{line}; of the others a width is no multiple of {MULTIPLE}"]


def _attention_words(config: RunConfig, device_type: str) -> list[str]:
    model, data = config.model, config.data
    parts = {
        "documents": getattr(data, "mask_documents", False) or getattr(data, "packing", False),
        "windows": model.sliding_window is not None and model.sliding_window < data.length,
        "capped scores": model.attention_softcap is not None,
    }
    seen = [name for name, is_there in parts.items() if is_there]
    if not seen:
        return []
    dtype = torch.float32 if config.trainer.precision == "32-true" else torch.bfloat16
    kernel = kernel_for(model, device_type, dtype, model.dropout_of_attention > 0.0)
    forced = config.trainer.attention_kernel == "mask"
    if kernel == "pieces" and data.length <= SHORT and not forced:
        return []
    if kernel is None or forced:
        return [f"attention to {' and '.join(seen)} by a mask"]
    return [f"attention to {' and '.join(seen)} {'by FlexAttention' if kernel == 'tiles' else 'piece by piece'}"]


def _length_line(config: RunConfig, trainer: L.Trainer) -> str:
    data, steps, batch = config.data, trainer.max_steps, config.data.batch_size
    module: Any = trainer.datamodule  # type: ignore[attr-defined]
    is_mixed = isinstance(config, PretrainConfig) and len(config.data.folders) > 1
    over = "the corpus that is read most often" if is_mixed else "the data"
    passes = f"{module.passes(steps * batch):.3g} passes over {over}"
    if isinstance(config, PPOConfig):
        answers = steps * batch * config.group_size
        return f"{steps:,} steps of {batch} prompts x {config.group_size} answers: {answers:,} answers, {passes}"
    tokens = round(steps * batch * module.tokens_per_sample)
    if isinstance(config, PretrainConfig):
        return f"{steps:,} steps of {batch} x {data.length:,} tokens: {tokens:,} tokens, {passes}"
    return f"{steps:,} steps of {batch} rows: about {tokens:,} tokens, {passes}"


def _whole_checkpoint_lines(config: RunConfig, module: Any, ranks: int) -> list[str]:
    """What a checkpoint of one file takes where the state of several ranks has to be gathered for it."""
    if config.trainer.strategy != "fsdp" or ranks == 1 or writes_shards(config.trainer):
        return []
    trained = sum(parameter.numel() for parameter in module.trained.parameters() if parameter.requires_grad)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    size = (weights + 2 * trained * 4) / 2**30
    return [
        f"whole checkpoints (trainer.sharded_checkpoints false): each takes up to {size:,.3g} GiB of host memory, "
        "where the first rank runs"
    ]


def _end_lines(config: RunConfig) -> list[str]:
    """The ends of the run that are not the last step."""
    trainer, lines = config.trainer, []
    if trainer.max_tokens is not None:
        lines.append(f"at trainer.max_tokens {trainer.max_tokens:,}, which gives {trainer.max_steps:,} steps")
    if trainer.max_seconds is not None:
        lines.append(
            f"after {in_words(trainer.max_seconds)} at the latest (trainer.max_time); the learning rate is scheduled "
            f"for all {trainer.max_steps:,} steps"
        )
    if trainer.early_stopping_patience is not None:
        lines.append(f"after {trainer.early_stopping_patience} validations in a row without a lower val/loss")
    return lines
