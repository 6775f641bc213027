"""What a run is planned for."""

from __future__ import annotations

from dataclasses import dataclass

from lit_llm.config.errors import UserError
from lit_llm.config.run import PretrainConfig


@dataclass
class PlanConfig(PretrainConfig):
    """Say what a pretraining recipe needs and costs, without running it. Its data need not be there."""

    gpu: str | None = None
    """Kind of GPU, as B200, H200, H100, H100 PCIe, A100, A100-SXM4-40GB, L40S, L4, A10G, 4090, 3090, V100 or T4; null:
    the GPUs of this machine, or its CPU where it has none."""
    num_gpus: int | None = None
    """GPUs in all; null takes trainer.devices x trainer.num_nodes (where devices is auto, one of a kind that is named,
    or all of this machine's)."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU in GiB; null takes it from the table of GPUs, or from this machine."""
    headroom: float = 0.08
    """Share of the memory kept free, for the CUDA context, the libraries' own memory and fragmentation."""
    mfu: float = 0.4
    """Share of the GPU's dense bf16 peak that training reaches, computing again not counted; on a CPU, of the speed of
    matrix products that is measured here."""
    price: float | None = None
    """Price of a GPU for an hour, in any currency; null leaves the cost out."""
    fit: bool = False
    """Look for the largest micro-batch that fits, for each strategy and checkpointing choice. Without it, checkpointing
    is left out where a step needs less than a tenth of the memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gpu_memory_gib", "price"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}; it must be above 0, or null")
        if self.num_gpus is not None and self.num_gpus < 1:
            raise UserError(f"num_gpus is {self.num_gpus}; it must be at least 1, or null")
        if not 0.0 < self.mfu <= 1.0:
            raise UserError(f"mfu is {self.mfu}; it must be above 0 and at most 1")
        if not 0.0 <= self.headroom < 1.0:
            raise UserError(f"headroom is {self.headroom}; it must be at least 0 and below 1")

    @property
    def gpus(self) -> int:
        """Number of GPUs that the plan is for."""
        if self.num_gpus is not None:
            return self.num_gpus
        devices = self.trainer.devices
        return (1 if devices == "auto" else int(devices)) * self.trainer.num_nodes
