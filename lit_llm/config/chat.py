"""A conversation in the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.errors import UserError
from lit_llm.config.generation import LoadConfig, SamplingConfig, check_prefix_cache


@dataclass
class ChatConfig(LoadConfig):
    """Talk with a trained model in the terminal."""

    system: str | None = None
    """What the model is told before the conversation begins."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=512, context_full="stop"))
    """How tokens are chosen; room for max_new_tokens, but at most half of the context, is kept free for an answer."""
    prefill_chunk: int = 512
    """Tokens of the conversation read in one pass; smaller takes less memory."""
    prefix_cache_mib: int | None = None
    """Memory in MiB for keys and values of the conversation, so that an answer reads only what is new in it; 0: none,
    and all of it is read again. null: what two full contexts take, but at most an eighth of the machine's memory or of
    what is free on the GPU."""
    compile: bool = False
    """Write with code compiled for the model: the first answer waits for it (a minute or so where the
    machine has none of this form from before), and all are faster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefill_chunk < 1:
            raise UserError(f"prefill_chunk is {self.prefill_chunk}; it must be at least 1")
        check_prefix_cache(self.prefix_cache_mib)
