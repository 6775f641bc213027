"""DeepSpeed ZeRO on CUDA or the CPU, with the exact mean over a step's tokens, and checkpoints that are whole or not
there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

from lit_llm.config.files import partial_of
from lit_llm.training.checkpoint_files import checksum, put_in_place, remove, write_manifest
from lit_llm.training.sharded import full_weights
from lit_llm.training.unpickling import check_deepspeed_folder


def prefer_cpu() -> None:
    """Let this process's DeepSpeed compute on the CPU and exchange over gloo; call it before anything imports it.

    It would build kernels for shared memory at the start, for which every user would need a C++ compiler, a minute, and
    no other process that builds them at the same moment.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class AtomicDeepSpeedStrategy(DeepSpeedStrategy):
    """Writes DeepSpeed's folder beside its final name, and gives it a manifest and the name once every rank is done.

    The engine keeps the gradients to itself: it divides and clips them, and tells their norm after the update.
    """

    def setup_environment(self) -> None:
        """Start the process group, on the CPU, too, which Lightning refuses."""
        if self.root_device.type == "cuda":
            super().setup_environment()
        else:
            # both packages ask a device for the number of the process on its machine
            self.parallel_devices = [torch.device("cpu", number) for number in range(self.num_processes)]
            DDPStrategy.setup_environment(self)

    def backward(self, *arguments: Any, **options: Any) -> None:
        """Take the gradient of a loss that Lightning has divided by the number of micro-batches already."""
        super().backward(*arguments, scale_wrt_gas=False, **options)

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any], model: Any | None = None, **options: Any
    ) -> Any:
        """Compute a micro-batch; after the last one of a step update by the mean over the step's tokens, and log it.

        Raises:
            NonFiniteStep: the loss or the gradient is not finite; the engine has left out the update.
        """
        module: Any = self.lightning_module
        engine = self.deepspeed_engine
        if not engine.is_gradient_accumulation_boundary():
            return super().optimizer_step(optimizer, closure, model, **options)
        found: list[Any] = []

        def compute() -> Any:
            result = closure()
            found.append(module.mean_of_step(module.accumulation))
            self._scale_gradient(found[0].scale or 1.0)
            return result

        result = super().optimizer_step(optimizer, compute, model, **options)
        self._scale_gradient(1.0)
        norm = float(engine.get_global_grad_norm())
        module.leaves_out(found[0], norm)  # spikes are written down only: trainer.spike_action skip is refused
        module.log_step(self.optimizers[0], module.trainer.global_step + 1, found[0].loss, norm)
        return result

    def _scale_gradient(self, scale: float) -> None:
        """Multiply the gradient of the present step before the engine takes its norm and clips it."""
        optimizer: Any = self.optimizers[0]
        if hasattr(optimizer, "fp32_groups_gradients_flat"):  # that of stage 1 in bfloat16 alone
            for gradient in optimizer.fp32_groups_gradients_flat:
                gradient.mul_(scale)
        else:  # which divides by what it takes the loss to have been multiplied by
            optimizer.loss_scale = 1.0 / scale

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Save into a folder; every rank must call."""
        target = Path(self.broadcast(str(filepath)))
        partial = partial_of(target)
        if self.is_global_zero and partial.exists():
            remove(partial)
        self.barrier()
        super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier()
        if self.is_global_zero:
            mark_whole(partial, target)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder that asks for nothing but DeepSpeed's own records.

        Raises:
            UserError: it would run code, or is not one of DeepSpeed's.
        """
        check_deepspeed_folder(Path(checkpoint_path))
        return super().load_checkpoint(checkpoint_path, weights_only)


def mark_whole(partial: Path, target: Path) -> None:
    """Give a folder that has been written to the end its manifest, and then its final name."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    write_manifest(partial, {str(path.relative_to(partial)): checksum(path) for path in files})
    put_in_place(partial, target)


def gathered_weights(module: nn.Module) -> dict[str, Tensor]:
    """Gather the whole weights, which ZeRO stage 3 keeps in pieces, on rank 0. Every rank must call."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        return full_weights(module)
