"""What a run is planned for."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.bounds import given
from lit_llm.config.errors import UserError
from lit_llm.config.run import PretrainConfig

_OF_TRAINING = (
    *("num_gpus", "mfu", "price", "prices", "watts", "utilisation", "pue", "kwh_price", "kg_co2_per_kwh"),
    *("what_if", "output", "scaling", "fit"),
)


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
    prices: str | None = None
    """Where price is looked up by the kind of GPU: a YAML or JSON file as "H100: 2.5", as those in
    experiments/configs/prices."""
    watts: float | None = None
    """Power of one GPU, or of this machine, at full load; null: the board power of the kind of GPU."""
    utilisation: float = 0.8
    """Share of watts that training draws on average."""
    pue: float = 1.2
    """Power of the whole data centre / that of its computers."""
    kwh_price: float | None = None
    """Price of a kilowatt hour, in the currency of price; null leaves the cost of energy out."""
    kg_co2_per_kwh: float | None = None
    """Kilograms of CO2 for a kilowatt hour, which the grid's operator says; null leaves them out."""
    what_if: list[int] = field(default_factory=list)
    """Numbers of GPUs to compare, as [8, 16, 32]: what fits, time, cost and energy."""
    output: str | None = None
    """Picture of what_if, *.svg, or a page with its table, *.html."""
    scaling: str | None = None
    """Folder of a grid that lit-llm scaling has trained: the loss to expect, and the best model of the same cost."""
    serve: str | None = None
    """Plan the serving of a model instead: a model folder, a GGUF file or a run, or "recipe" for the recipe's model.
    Says the memory of its weights in each type, and of the cache by tokens and texts at once, and what fits."""
    serve_lengths: list[int] = field(default_factory=list)
    """Tokens of a text with its prompt (max_length of serve) to plan for; none: the model's context and parts of it."""
    serve_texts: list[int] = field(default_factory=lambda: [1, 8, 32, 128])
    """Texts written at once (max_batch of serve) to plan for."""
    fit: bool = False
    """Look for the largest micro-batch that fits, for each strategy and checkpointing choice. Without it, checkpointing
    is left out where a step needs less than a tenth of the memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gpu_memory_gib", "price", "watts", "kwh_price", "kg_co2_per_kwh"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}; it must be above 0, or null")
        if self.price is not None and self.prices is not None:
            raise UserError("price and prices are given; give one of the two")
        if not 0.0 < self.utilisation <= 1.0:
            raise UserError(f"utilisation is {self.utilisation}; it must be above 0 and at most 1")
        if self.pue < 1.0:
            raise UserError(f"pue is {self.pue}; it must be at least 1")
        if self.what_if and min(self.what_if) < 1:
            raise UserError(f"what_if is {self.what_if}; it must be a list of numbers from 1 on")
        if self.output is not None and (not self.what_if or not self.output.endswith((".svg", ".html"))):
            raise UserError(f"output is {self.output}; it must be a file *.svg or *.html, for the picture of what_if")
        for name in ("serve_lengths", "serve_texts"):
            if any(number < 1 for number in getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}; it must be a list of numbers from 1 on")
        if not self.serve_texts:
            raise UserError("serve_texts is empty; give how many texts are written at once, as [1, 8]")
        if self.serve is not None and (found := given(self, *_OF_TRAINING)):
            raise UserError(
                f"{found[0]} is for the training of a recipe; serve says memory alone, so leave {found[0]} out"
            )
        if self.serve is None and (found := given(self, "serve_lengths", "serve_texts")):
            raise UserError(f"{found[0]} is for serve; give serve, or leave {found[0]} out")
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
