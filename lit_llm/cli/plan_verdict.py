"""What a plan concludes: the cheapest way that fits, or what keeps all of them from it and what to change."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from lit_llm.config import PlanConfig

if TYPE_CHECKING:
    from lit_llm.planning.choice import Option
    from lit_llm.planning.machine import Hardware

GIB, MIB = 2**30, 2**20

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "state of the optimizer",
    "activations": "activations",
    "loss": "logits and their gradients",
    "temporary": "what a pass makes and lets go of",
    "communication": "gathered weights and buckets",
}
"""Parts of the memory, in words."""


def verdict(config: PlanConfig, hardware: Hardware, options: list[Option], chosen: Option | None, limit: float) -> str:
    """Say in a sentence which option is the cheapest that fits, and why."""
    room = f"{_amount(limit)} ({config.headroom:.0%} of the memory kept free)"
    if chosen is None:
        least = min(options, key=lambda option: option.memory.total)
        largest = max(fields(least.memory), key=lambda part: getattr(least.memory, part.name)).name
        return (
            f"nothing fits in {room}: {least.placement.name} with checkpointing {least.checkpointing} needs least, "
            f"{_amount(least.memory.total)}, of which {_amount(getattr(least.memory, largest))} are {PARTS[largest]}: "
            f"{_advice(config, hardware, least, largest)}"
        )
    held = f"{_amount(chosen.memory.total)} of {room}"
    passed = options[: options.index(chosen)]
    if not passed:
        whole = "every device has a whole copy and " if chosen.placement.kind == "replicas" else ""
        why = f"{whole}nothing is computed again"
    elif passed[-1].placement == chosen.placement:
        why = f"with checkpointing {passed[-1].checkpointing} it would hold {_amount(passed[-1].memory.total)}"
    else:
        least = min(passed, key=lambda option: option.memory.total)
        why = f"{least.placement.name} holds {_amount(least.memory.total)} even at checkpointing "
        why += least.checkpointing
    choice = f"{chosen.placement.name}, checkpointing {chosen.checkpointing}"
    return f"cheapest that fits: {choice}, {held}; {why}"


def _advice(config: PlanConfig, hardware: Hardware, least: Option, largest: str) -> str:
    """Say what makes the largest part of the memory smaller, the cheapest first."""
    from lit_llm.planning.memory import reduces_every_micro_batch

    trainer, placement = config.trainer, least.placement
    if hardware.kind == "cpu":
        return f"lower data.micro_batch_size ({placement.rows} here), or plan for a GPU"
    spread = trainer.strategy == "fsdp"
    by_row = [f"lower data.micro_batch_size ({placement.rows} here)"] if placement.rows > 1 else []
    if largest in ("activations", "temporary"):
        if placement.tensor_parallel > 1 and not trainer.sequence_parallel:
            by_row.append("trainer.sequence_parallel true")
        by_row.append(f"a larger trainer.context_parallel_size ({placement.context_parallel} here)")
    elif largest == "loss":
        by_row.append("lower loss_chunk_tokens")
    elif placement.kind == "fsdp" and largest == "communication":
        by_row = [f"a larger trainer.tensor_parallel_size ({placement.tensor_parallel} here), which cuts the blocks"]
    elif largest == "gradients" and placement.accumulation > 1 and not reduces_every_micro_batch(config, placement):
        by_row = ["trainer.reduce_every_micro_batch true"]
    else:
        by_row = [*by_row, *(["trainer.offload true"] if spread and not trainer.offload else [])]
    return ", ".join([*by_row, "take more or larger GPUs" + ("" if spread else ", or trainer.offload with fsdp")])


def _amount(size: float) -> str:
    """Write a number of bytes in GiB, or in MiB where it is small."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / MIB:.1f} MiB"
