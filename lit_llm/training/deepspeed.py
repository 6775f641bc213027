"""DeepSpeed ZeRO, on GPUs and on CPUs, with checkpoints that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

from lit_llm.config.files import partial_of
from lit_llm.distributed.ranks import rank
from lit_llm.training.checkpoint_files import checksum, put_in_place, remove, write_manifest
from lit_llm.training.unpickling import check_deepspeed_folder


class AtomicDeepSpeedStrategy(DeepSpeedStrategy):
    """Writes DeepSpeed's folder beside its final name, and gives it a manifest and the name once every rank is done.

    It also trains on the CPU, over gloo, which DeepSpeed can and Lightning's strategy refuses.
    """

    def setup_environment(self) -> None:
        """Start the process group."""
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
        else:
            DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Start DeepSpeed's communication; processes of the CPU have no device to select."""
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

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


@torch.no_grad()
def gathered_weights(module: nn.Module) -> dict[str, Tensor]:
    """Gather the whole weights on rank 0, of which ZeRO stage 3 keeps pieces, one at a time. Every rank must call."""
    import deepspeed

    parameters = dict(module.named_parameters(remove_duplicate=False))
    weights: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        parameter = parameters.get(name)
        with deepspeed.zero.GatheredParameters([parameter] if parameter is not None else []):
            if rank() == 0:
                weights[name] = (value if parameter is None else parameter).detach().to("cpu", copy=True)
    return weights
