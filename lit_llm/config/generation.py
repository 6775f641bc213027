"""How text is drawn from a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.errors import UserError


@dataclass
class SamplingConfig:
    """How each next token is chosen."""

    max_new_tokens: int = 200
    """Tokens to write at most; an end-of-text token stops earlier."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Keep only the k likeliest tokens."""
    top_p: float | None = None
    """Keep the likeliest tokens that together reach this probability."""
    seed: int = 0
    """Seed of the draws; text depends on it, the prompt and the weights alone."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}; it must be at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or null")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1, or null")


@dataclass
class GenerateConfig:
    """Write text with a trained model."""

    model: str = "checkpoints/pretrain/model"
    """Model folder, or a run folder that holds one."""
    prompts: list[str] = field(default_factory=list)
    """Texts to go on from; none: start from the end-of-text token."""
    num_samples: int = 1
    """Texts to write for each prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are chosen."""
    accelerator: str = "auto"
    """Device to run on: auto, cpu or cuda."""
    dtype: str = "auto"
    """Arithmetic: auto (as stored), float32 or bfloat16."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"num_samples is {self.num_samples}; it must be at least 1")
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise UserError(f"accelerator is {self.accelerator!r}; it must be auto, cpu or cuda")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")
