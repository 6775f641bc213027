"""A Lightning module that records what it was trained on, and a Trainer to train it with a data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_llm.data.loading.data_module import ResumableDataModule


class Recorder(LightningModule):
    """One weight; records the samples of every micro-batch with its optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, tuple[int, ...]]] = []
        self.validated = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.global_step, tuple(batch["sample_ids"].tolist())))
        return self.weight * batch["tokens"].float().mean()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.validated += int((batch["targets"] != -100).sum())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Counter(Callback):
    """Advances the data module, and saves where it is told to, as a training callback would."""

    def __init__(self, folder: Path, save_at: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self.save_at = save_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ):
        trainer.datamodule.advance(len(batch["sample_ids"]) * trainer.world_size)
        at_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if at_step and trainer.global_step in self.save_at:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def trainer_for(data: ResumableDataModule, folder: Path, max_steps: int, save_at: tuple[int, ...] = (), **options: Any):
    return Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=data.accumulate_grad_batches(1),
        use_distributed_sampler=False,
        callbacks=[Counter(folder, save_at)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        **{"limit_val_batches": 0, **options},
    )
