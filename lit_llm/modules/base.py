"""What every training stage shares: optimizer, schedule, clipping, token-weighted losses, curves."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from lit_llm.config import ModelConfig, NonFiniteStep, RunConfig, UserError, from_plain, to_plain
from lit_llm.data.loader import data_parallel_rank
from lit_llm.interop import iterate_weights
from lit_llm.model import Decoder
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.parallel import arrange, local_part, shard_like
from lit_llm.modules.metrics import TokenStatistics
from lit_llm.optimization import build_optimizer, build_schedule, gradient_norm

CONFIG_KEY = "lit_llm_config"


class LanguageModule(L.LightningModule):
    """A decoder and how it is optimised. A stage says what its loss is: a sum over tokens, and their number.

    The gradient of an optimizer step is that of the summed loss divided by the number of supervised tokens in the
    *whole* step, over all ranks and accumulated micro-batches, whichever way they are spread: `training_step` divides
    by a constant, and the exact quotient is restored once the step's tokens have been counted.

    Args:
        config: the run; `config.model.vocab_size` must be set.
        token_bytes: UTF-8 bytes that each token id stands for [vocab_size], for bits per byte; None leaves it out.

    Source: the averaging of ragged micro-batches is Lightning issue 20350.
    """

    def __init__(self, config: RunConfig, token_bytes: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        # what is to be sharded gets its memory in `configure_model`, one shard on each rank
        sharded = config.trainer.strategy == "fsdp"
        with torch.device("meta") if sharded else nullcontext():
            self.model = Decoder(config.model, seed=config.seed)
        if config.trainer.precision == "bf16-true":
            self.model.to(torch.bfloat16)
        self._arranged = False
        if not sharded:
            self._load_weights()
        self.register_buffer("token_bytes", token_bytes, persistent=False)
        self.validation_statistics = TokenStatistics()
        self.step_guard: Any = None  # asked before each update: a `lit_llm.training.guards.StepGuard`
        self._parts: list[tuple[Tensor, Tensor]] = []  # loss sum and tokens of each micro-batch of the step

    @abstractmethod
    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """The stage's objective on one micro-batch.

        Args:
            batch: what the data module yields.
            training: whether terms that only regularise training belong in it.

        Returns:
            Loss summed over supervised tokens, and the number of those tokens.
        """

    @property
    def nominal_tokens(self) -> int:
        """Tokens in a full micro-batch of one rank: the constant that keeps the summed loss in range."""
        data = self.config.data
        return data.sequence_length * (data.batch_size // self.accumulation // self.data_parallel_size)

    @property
    def data_parallel_size(self) -> int:
        """Shares that a micro-batch is cut into."""
        return data_parallel_rank(self.trainer)[1]

    @property
    def accumulation(self) -> int:
        """Micro-batches in an optimizer step."""
        return int(self.trainer.accumulate_grad_batches)

    def configure_model(self) -> None:
        """Lay the decoder out over the strategy's devices, and give shards their memory and first values."""
        if self._arranged:  # Lightning calls this for a test that follows the training, too
            return
        self._arranged = True
        arrange(self.model, self.config.trainer, self.device_mesh)
        if self.device_mesh is not None:
            self.model.to_empty(device="cpu" if self.config.trainer.offload else self.trainer.strategy.root_device)
            self.model.tie()
            initialize_weights(self.model, self.config.model, self.config.seed)
            self._load_weights()

    @torch.no_grad()
    def _load_weights(self) -> None:
        """Start from the model folder `config.init_from`, if one is given."""
        if self.config.init_from is None:
            return
        parameters = self.model.state_dict()
        # one tensor at a time is whole, and each rank keeps its part of it
        for name, weight in iterate_weights(Path(self.config.init_from), self.config.model):
            parameters[name].copy_(shard_like(weight.to(parameters[name].dtype), parameters[name]))

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and its schedule by optimizer step."""
        optimizer = build_optimizer(self.model, self.config.optimizer)
        schedule = build_schedule(optimizer, self.config.schedule, self.config.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One micro-batch."""
        loss_sum, tokens = self.token_loss(batch, training=True)
        self._parts.append((loss_sum.detach(), tokens))
        return loss_sum / self.nominal_tokens

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
        parts, self._parts = self._parts, []
        loss_sum, tokens = self._count(parts)
        scale = self.accumulation * self.data_parallel_size * self.nominal_tokens / tokens if tokens else 0.0
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        parts_of = dist.group.WORLD if isinstance(self.trainer.strategy, FSDPStrategy) else None
        value = float(gradient_norm(gradients, parts_of)) * scale
        loss = loss_sum / tokens if tokens else 0.0
        step = self.trainer.global_step + 1
        if self._leaves_out(step, loss, value, parts):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # which an optimizer passes over
            gradients = []
        limit = self.config.trainer.gradient_clip_val
        coefficient = scale * min(1.0, limit / (value + 1e-6)) if limit is not None else scale
        if gradients and coefficient != 1.0:
            torch._foreach_mul_([local_part(gradient) for gradient in gradients], coefficient)
        if step % self.config.trainer.log_every_n_steps == 0:
            rates = {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
            # DeepSpeed's engine keeps the gradients to itself
            norm = {"train/gradient_norm": value} if not isinstance(self.trainer.strategy, DeepSpeedStrategy) else {}
            self.record({"train/loss": loss, **norm, **rates}, step)

    def _leaves_out(self, step: int, loss: float, norm: float, parts: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether the update of the step is to be left out; refuses numbers that are not finite."""
        if math.isfinite(norm) and math.isfinite(loss):
            return self.step_guard is not None and self.step_guard.leaves_out(step, loss, norm, parts)
        advice = "" if self.step_guard is None else f"; {self.step_guard.refuse(step, loss, norm, parts)}"
        raise NonFiniteStep(
            f"the loss ({loss}) or the gradient (norm {norm}) of step {step} is not finite; stopped before the update, "
            f"and checkpoints are intact: lower optimizer.learning_rate or look at the data, then resume{advice}"
        )

    def _count(self, parts: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Summed loss and supervised tokens of an optimizer step, over all its micro-batches and ranks."""
        sums = torch.stack([sum(number.double() for number in numbers) for numbers in zip(*parts, strict=True)])
        if self.trainer.world_size > 1:
            # tensor-parallel ranks have all counted the same tokens
            copies = self.trainer.world_size // self.data_parallel_size
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum") / copies
        loss_sum, tokens = sums.tolist()
        return loss_sum, tokens

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the sums of the split."""
        self._add_statistics(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the sums of the split."""
        self._add_statistics(batch)

    def _add_statistics(self, batch: dict[str, Tensor]) -> None:
        loss_sum, tokens = self.token_loss(batch, training=False)
        targets = batch["targets"]
        num_bytes = torch.zeros((), device=self.device)
        if self.token_bytes is not None:
            num_bytes = self.token_bytes[targets.clamp(min=0)].masked_fill(targets < 0, 0).sum()
        self.validation_statistics.update(loss_sum, tokens, num_bytes)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` (nats per token), `val/perplexity` and `val/bits_per_byte`."""
        self._record_statistics("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/loss`, `test/perplexity` and `test/bits_per_byte`."""
        self._record_statistics("test")

    def _record_statistics(self, split: str) -> None:
        values = self.validation_statistics.compute()
        self.validation_statistics.reset()
        self.record({f"{split}/{name}": float(value) for name, value in values.items()}, self.trainer.global_step)

    def record(self, values: dict[str, float], step: int) -> None:
        """Write curves now, at the number of finished optimizer steps.

        `self.log` alone would write a step's values after the checkpoint of that step was saved, so a run killed
        between the two would come back without them. It still gets them, for callbacks that read
        `trainer.callback_metrics`.
        """
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=step)
        self.log_dict(values, logger=False, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration with the weights, as a plain dict."""
        checkpoint[CONFIG_KEY] = to_plain(self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            UserError: the checkpoint was made with other model options; the message names them.
        """
        saved = from_plain(ModelConfig, checkpoint.get(CONFIG_KEY, {}).get("model", {}))
        wanted, found = to_plain(self.config.model), to_plain(saved)
        # dropout may be changed midway: it has no weights
        changed = [name for name in wanted if wanted[name] != found[name] and name != "dropout"]
        if changed:
            pairs = ", ".join(f"{name} {found[name]} (this run: {wanted[name]})" for name in changed)
            raise UserError(f"the checkpoint is of another model: it has {pairs}")
