"""Where a model cannot go, which is worth knowing before it is trained."""

from __future__ import annotations

from dataclasses import replace

from lit_llm.config import ModelConfig
from lit_llm.interop.folder import why_remote_code
from lit_llm.interop.gguf import why_not_gguf
from lit_llm.tokenizer import Tokenizer


def export_limits(config: ModelConfig, tokenizer: Tokenizer) -> list[str]:
    """What other programs will not do with a model of this architecture and tokenizer.

    Args:
        config: the architecture; a value head does not count, as the finished model is without it.
        tokenizer: goes along with the model.

    Returns:
        A phrase for each limit: none where transformers has the architecture and a GGUF file can be written of it. A
        reward model is none that anybody wants as GGUF.
    """
    config = replace(config, value_head=False)
    needs_code = why_remote_code(config, tokenizer) is not None
    limits = ["transformers loads it with trust_remote_code=True only"] if needs_code else []
    reason = why_not_gguf(config, tokenizer) if config.output == "tokens" else None
    if reason is not None:
        limits.append("it cannot be written as GGUF" + ("" if needs_code else f" ({reason})"))
    return limits
