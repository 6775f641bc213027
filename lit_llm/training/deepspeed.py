"""DeepSpeed ZeRO with checkpoints that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from lit_llm.config.files import partial_of
from lit_llm.training.checkpoint_files import checksum, put_in_place, remove, write_manifest
from lit_llm.training.sharded import full_weights
from lit_llm.training.unpickling import check_deepspeed_folder


class AtomicDeepSpeedStrategy(DeepSpeedStrategy):
    """Writes DeepSpeed's folder beside its final name, and gives it a manifest and the name once every rank is done."""

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
