"""The parts of a run that Lightning does not restore by itself: random states and the position in the data."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from lit_llm.config import UserError, sample_seed
from lit_llm.distributed.ranks import data_parallel_rank, gather


def random_state() -> dict[str, Any]:
    """Collect the state of every generator that training may draw from, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
        "torch_version": str(torch.__version__),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back into a state that `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([saved.cpu() for saved in state["cuda"]])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


class ExactResume(L.Callback):
    """Seeds each rank, counts the samples that the data module has given out, and restores random states on resume.

    States are put back at the first batch, after everything that a starting run draws from them. A run that goes on
    at another world size or torch version keeps fresh ones: the streams could not match anyway.

    Args:
        seed: seed of the run; each rank has its own, `sample_seed(seed, rank)`.
        samples_per_micro_batch: samples that all ranks together take in one micro-batch.
    """

    def __init__(self, seed: int, samples_per_micro_batch: int) -> None:
        self.seed = seed
        self.samples_per_micro_batch = samples_per_micro_batch
        self._restored: list[dict[str, Any]] | None = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the steps so far in micro-batches of this run, as Lightning tells by their number where a step ends."""
        if trainer.state.fn != "fit" or not pl_module.automatic_optimization:
            return
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, done))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed this rank; tensor-parallel ranks compute the same stream, so they drop the same parts of it."""
        seed = sample_seed(self.seed, data_parallel_rank(trainer)[0])
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random states back, once."""
        states, self._restored = self._restored, None
        if states is None or len(states) != trainer.world_size:
            return
        state = states[trainer.global_rank]
        if state["torch_version"] == str(torch.__version__):
            restore_random_state(state)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the micro-batch; Lightning runs checkpoint callbacks after this one."""
        trainer.datamodule.advance(self.samples_per_micro_batch)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Gather the random states of all ranks, in order."""
        return {"ranks": gather(random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first batch.

        Raises:
            UserError: the checkpoint holds no random states.
        """
        if "ranks" not in state_dict:
            raise UserError("the checkpoint holds no random states: it was not written by this package")
        self._restored = state_dict["ranks"]
