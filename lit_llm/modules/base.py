"""What every training stage shares: optimizer, schedule, clipping, token-weighted losses, curves."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_llm.config import NonFiniteStep, RunConfig
from lit_llm.distributed.ranks import data_parallel_rank
from lit_llm.model.parallel import compiles
from lit_llm.modules.decoder_module import DecoderModule
from lit_llm.modules.metrics import NamedMeans, TokenStatistics
from lit_llm.optimization import (
    build_optimizer,
    build_schedule,
    clip_coefficient,
    gradient_norm,
    scale_gradients,
)
from lit_llm.planning import training_flops_per_token


@dataclass
class StepMean:
    """An optimizer step whose micro-batches are done."""

    number: int
    """Which one of the run, from 1."""
    loss: float
    """Mean over its supervised tokens, in nats."""
    scale: float
    """What turns the mean of the ranks' gradients into that of this loss."""
    parts: list[tuple[Tensor, Tensor]]
    """Loss sum and tokens of each of this rank's micro-batches."""


class LanguageModule(DecoderModule):
    """A decoder and how it is optimised; each stage adds its loss, as a sum over tokens and the number of them.

    The gradient of an optimizer step is that of the summed loss divided by the number of supervised tokens in the
    *whole* step, over all ranks and accumulated micro-batches, whichever way they are spread: `training_step` divides
    by a constant, and the exact quotient is restored once the step's tokens have been counted. (A stage on pairs of
    texts counts pairs where this says tokens.)

    Args:
        config: the run; `config.model.vocab_size` must be set.
        token_bytes: UTF-8 bytes that each token id stands for [vocab_size], for bits per byte; None leaves it out.

    Source: the averaging of ragged micro-batches is Lightning issue 20350.
    """

    metric_names: ClassVar[tuple[str, ...]] = ()
    """Means that the stage's `token_loss` notes; those without a "/" are logged as train/NAME, all as val/NAME."""
    progress_curves: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("train/loss", "loss", ".3f"),
        ("val/loss", "val loss", ".3f"),
    )
    """Curves that a run shows while it goes on: name, what it is called there, and the format of its value."""
    counts_tokens: ClassVar[bool] = True
    """Whether the loss is per token, so that perplexity and bits per byte mean something."""
    replayable: ClassVar[bool] = True
    """Whether a step can be computed again from its samples and random states."""

    def __init__(self, config: RunConfig, token_bytes: Tensor | None = None) -> None:
        super().__init__(config)
        self.register_buffer("token_bytes", token_bytes, persistent=False)
        self.validation_statistics = TokenStatistics()
        self.training_means = NamedMeans(self.metric_names)
        self.validation_means = NamedMeans(self.metric_names)
        self.step_guard: Any = None  # asked before each update: a `lit_llm.training.guards.StepGuard`
        self.is_last_step = False  # set by what ends a run before max_steps: `lit_llm.training.ends.EndOfRun`
        self._parts: list[tuple[Tensor, Tensor]] = []  # loss sum and tokens of each micro-batch of the step

    @abstractmethod
    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """Compute the stage's objective on one micro-batch.

        Args:
            batch: what the data module yields.
            training: whether terms that only regularise training belong in it.

        Returns:
            Loss summed over supervised tokens, and the number of those tokens.
        """

    def note(self, values: Mapping[str, tuple[Tensor, Tensor | float]], training: bool) -> None:
        """Add sums and counts to the means of `metric_names`, those of the step or those of the validation split."""
        means = self.training_means if training else self.validation_means
        means.update(values)

    @property
    def logs(self) -> bool:
        """Whether the curves of the present step will be written."""
        if self._trainer is None:
            return True
        return self.logs_step(self.trainer.global_step + 1)

    def logs_step(self, step: int) -> bool:
        """Whether the curves of a step, counted from 1, are written: every so many, and those of the last one."""
        trainer = self.config.trainer
        return step % trainer.log_every_n_steps == 0 or step >= trainer.max_steps or self.is_last_step

    def tokens_of(self, batch: dict[str, Tensor]) -> int:
        """Count the tokens that the model reads in a micro-batch, padding included, for the throughput."""
        return batch["tokens"].numel()

    def flops_per_token(self) -> float | None:
        """Count the operations of a step, forward and backward, for each of `tokens_of`; None: they do not follow."""
        return training_flops_per_token(self.config.model, self.config.data.length, frozen=self.lora.active)

    @property
    def nominal_tokens(self) -> int:
        """The tokens of a full micro-batch of one rank; dividing by them keeps the summed loss in range."""
        data = self.config.data
        rows = data.batch_size // self.accumulation // self.data_parallel_size
        return rows * (data.length if self.counts_tokens else 1)

    @property
    def data_parallel_size(self) -> int:
        """The number of ranks that share each micro-batch."""
        return data_parallel_rank(self.trainer)[1]

    @property
    def accumulation(self) -> int:
        """The number of micro-batches in an optimizer step."""
        return int(self.trainer.accumulate_grad_batches)

    @property
    def compiles_on_gpu(self) -> bool:
        """Whether more than the blocks is compiled: on CUDA what lies between its products is slow as it is."""
        return self.device.type == "cuda" and compiles(self.config.trainer)

    @property
    def trained(self) -> nn.Module:
        """The modules whose parameters the optimizer updates."""
        return self.model

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer, and its schedule by optimizer step."""
        optimizer = build_optimizer(self.trained, self.config.optimizer, compiled=self.compiles_on_gpu)
        schedule = build_schedule(optimizer, self.config.schedule, self.config.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of one micro-batch, of which Lightning takes the gradient."""
        loss_sum, tokens = self.token_loss(batch, training=True)
        self._parts.append((loss_sum.detach(), tokens))
        return loss_sum / self.nominal_tokens

    def kept_gradient(self, kept: bool) -> AbstractContextManager[Any]:
        """Run a micro-batch of a stage that calls `backward` itself; `kept`: its gradient is not sent to other ranks.

        The last one of an optimizer step sends the sum of all.
        """
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if kept and isinstance(strategy, ParallelStrategy) else nullcontext()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Turn the gradient into the mean over the step's tokens, refuse one that is not finite, clip, and log.

        Raises:
            NonFiniteStep: the gradient or the loss is not finite; weights and optimizer are those of the step before.
        """
        # of DeepSpeed, whose engine keeps the gradients, the strategy does the same
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):
            self.finish_gradient(optimizer, self.accumulation)

    def finish_gradient(self, optimizer: Optimizer, divisor: int) -> dict[str, float]:
        """Turn the sum of the micro-batches' gradients into the gradient of a step; see `configure_gradient_clipping`.

        Args:
            optimizer: has the gradients.
            divisor: what each micro-batch's loss has been divided by, besides `nominal_tokens`.

        Returns:
            The `loss` and the `gradient_norm` of the step.
        """
        step = self.mean_of_step(divisor)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        parts_of = dist.group.WORLD if isinstance(self.trainer.strategy, FSDPStrategy) else None
        norm = float(gradient_norm(gradients, parts_of)) * step.scale
        if self.leaves_out(step, norm):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # which an optimizer passes over
            gradients = []
        scale_gradients(gradients, step.scale * clip_coefficient(norm, self.config.trainer.gradient_clip_val))
        self.log_step(optimizer, step.number, step.loss, norm)
        return {"loss": step.loss, "gradient_norm": norm}

    def mean_of_step(self, divisor: int) -> StepMean:
        """Count the tokens of an optimizer step whose micro-batches are done; every rank must call.

        Args:
            divisor: what each micro-batch's loss has been divided by, besides `nominal_tokens`.
        """
        parts, self._parts = self._parts, []
        loss_sum, tokens = self._count(parts)
        # ranks that share a text have their own parts of its gradient, and are averaged over like the others
        ranks = self.data_parallel_size * self.config.trainer.context_parallel_size
        scale = divisor * ranks * self.nominal_tokens / tokens if tokens else 0.0
        return StepMean(self.trainer.global_step + 1, loss_sum / tokens if tokens else 0.0, scale, parts)

    def log_step(self, optimizer: Optimizer, step: int, loss: float, norm: float) -> None:
        """Write the curves of a step, where one is due."""
        if self.logs:
            rates = {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
            means = self.training_means.compute() if self.metric_names else {}
            named = {name if "/" in name else f"train/{name}": value for name, value in means.items()}
            self.record({"train/loss": loss, **named, "train/gradient_norm": norm, **rates}, step)
        self.training_means.reset()

    def leaves_out(self, step: StepMean, norm: float) -> bool:
        """Tell whether the update of a step is to be left out.

        Args:
            step: the step.
            norm: of its whole gradient.

        Raises:
            NonFiniteStep: the norm or the loss is not finite.
        """
        numbers = step.number, step.loss, norm, step.parts
        if math.isfinite(norm) and math.isfinite(step.loss):
            return self.step_guard is not None and self.step_guard.leaves_out(*numbers)
        advice = "" if self.step_guard is None else f"; {self.step_guard.refuse(*numbers)}"
        raise NonFiniteStep(
            f"the loss ({step.loss}) or the gradient (norm {norm}) of step {step.number} is not finite; stopped before "
            f"the update, and checkpoints are intact: lower optimizer.learning_rate (with --resume_changed true) or "
            f"look at the data, then resume{advice}"
        )

    def _count(self, parts: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Add up the loss and the supervised tokens of an optimizer step, over its micro-batches and all ranks."""
        sums = torch.stack([sum(number.double() for number in numbers) for numbers in zip(*parts, strict=True)])
        loss_sum, tokens = self.total(sums).tolist()
        return loss_sum, tokens

    def total(self, sums: Tensor) -> Tensor:
        """Sum a tensor over the ranks that share the batch; every rank must call this."""
        if self.trainer.world_size > 1:
            # tensor-parallel ranks have all counted the same tokens
            copies = self.trainer.world_size // self.data_parallel_size
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum") / copies
        return sums

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the sums of the split."""
        self._add_statistics(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the sums of the split."""
        self._add_statistics(batch)

    def _add_statistics(self, batch: dict[str, Tensor]) -> None:
        loss_sum, tokens = self.token_loss(batch, training=False)
        num_bytes = self.bytes_of(batch["targets"]) if self.counts_tokens else torch.zeros((), device=self.device)
        self.validation_statistics.update(loss_sum, tokens, num_bytes)

    def bytes_of(self, targets: Tensor) -> Tensor:
        """Count the UTF-8 bytes of the supervised ones of target ids [b, t]; 0 where they are not known."""
        if self.token_bytes is None:
            return torch.zeros((), device=self.device)
        return self.token_bytes[targets.clamp(min=0)].masked_fill(targets < 0, 0).sum()

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, the stage's means, and per token `val/perplexity` and `val/bits_per_byte`."""
        self._record_statistics("val")

    def on_test_epoch_end(self) -> None:
        """Log the same as `test/...`."""
        self._record_statistics("test")

    def _record_statistics(self, split: str) -> None:
        values = {name: float(value) for name, value in self.validation_statistics.compute().items()}
        if not self.counts_tokens:
            values = {"loss": values["loss"]}
        values |= (self.validation_means.compute() if self.metric_names else {}) | self.validation_values()
        self.validation_statistics.reset()
        self.validation_means.reset()
        self.record({f"{split}/{name}": value for name, value in values.items()}, self.trainer.global_step)

    def validation_values(self) -> dict[str, float]:
        """Give the numbers of a whole split that are no means; every rank calls this once, at the end of the split."""
        return {}

    def record(self, values: dict[str, float], step: int) -> None:
        """Write curves now, at the number of finished optimizer steps.

        `self.log` alone would write a step's values after the checkpoint of that step was saved, so a run killed
        between the two would come back without them. It is given them as well, but only so that callbacks find them
        in `trainer.callback_metrics`.
        """
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=step)
        self.log_dict(values, logger=False, batch_size=1)
